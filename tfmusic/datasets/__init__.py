"""Raw data on disk to tracks. Every loader is a file with the same parts in the same order: layout, `Options`, `load`.

A new loader is a line in `LOADERS`; its `Options` are then a choice of the config's section `data`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol, Union

from pydantic import Discriminator, Tag

from tfmusic.core.track import Dataset
from tfmusic.datasets import airush, fma, folder, gtzan, jamendo, table
from tfmusic.datasets.multitask import join
from tfmusic.datasets.options import DataSection, loader_of

LOADERS = {"airush": airush, "gtzan": gtzan, "fma": fma, "jamendo": jamendo, "folder": folder, "table": table}
LOADER_SECTIONS: dict[str, type[DataSection]] = {name: module.Options for name, module in LOADERS.items()}

if TYPE_CHECKING:
    AnyData = DataSection
else:  # the union of all sections, of which data.loader chooses one
    AnyData = Annotated[
        Union[tuple(Annotated[section, Tag(name)] for name, section in LOADER_SECTIONS.items())],  # noqa: UP007
        Discriminator(loader_of),
    ]


class _LoadFn(Protocol):
    def __call__(self, folder: Path, options: DataSection, *, task: str) -> Dataset: ...


def load(folder: Path, tasks: Mapping[str, DataSection]) -> Dataset:
    """Returns the tracks of a task, or those of several tasks as one dataset.

    Args:
        folder: the raw data.
        tasks: the section `data` of every task, `Config.tasks`.

    Raises:
        DataError: a file, label or id is not what the layout of the loader says.
    """
    datasets = []
    for task, options in tasks.items():
        load_fn: _LoadFn = LOADERS[options.loader].load
        datasets.append(load_fn(folder, options, task=task))
    return datasets[0] if len(datasets) == 1 else join(datasets)
