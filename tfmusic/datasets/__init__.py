"""Raw data on disk to tracks. Every loader is a file with the same parts in the same order: layout, `Options`, `load`.

A new loader is a line in `LOADERS`; its `Options` are then a choice of the config's section `data`.
`join` makes one dataset of several tasks on the same tracks: `TASK:LABEL` names the label of a task.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol, Union

from pydantic import Discriminator, Tag

from tfmusic.core.contract import Head
from tfmusic.core.track import Dataset, Track
from tfmusic.datasets import airush, fma, folder, gtzan, jamendo, table
from tfmusic.datasets.metadata import VARIOUS_ARTISTS
from tfmusic.datasets.options import DataSection, loader_of
from tfmusic.errors import DataError

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


def join(datasets: Sequence[Dataset]) -> Dataset:
    """Returns the tracks that any of the datasets has, each with its labels of every task that has some for it.

    A track keeps the order of its first dataset, and appears once: the same id means the same track. Artists and albums
    are numbered by each dataset for itself; they group tracks by the numbers of every dataset and by their names.

    Raises:
        DataError: two datasets give one id to different tracks, or they share no track at all.
    """
    tracks: dict[str, Track] = {}
    for dataset in datasets:
        for track in dataset.tracks:
            renamed, earlier = _of_task(track, dataset.task), tracks.get(track.track_id)
            tracks[track.track_id] = _merged(earlier, renamed) if earlier else renamed
    if len(tracks) == sum(len(dataset.tracks) for dataset in datasets):
        names = " and ".join(dataset.task for dataset in datasets)
        raise DataError(f"{names}: must share tracks. Received: none in common")
    heads = tuple(Head(dataset.task, dataset.kind, dataset.labels) for dataset in datasets)
    labels = tuple(f"{head.task}:{name}" for head in heads for name in head.labels)
    return Dataset("_".join(head.task for head in heads), "tasks", labels, tuple(tracks.values()), heads)


def _of_task(track: Track, task: str) -> Track:
    """Returns the track with labels and grouping keys that say which task they are of; artists' names are of all."""
    keys = [f"{task}:{artist}" for artist in track.artists]
    keys += [name for name in _names(track) if name not in VARIOUS_ARTISTS]
    if track.album:  # an album is a group like an artist: a track may have another number for it in every dataset
        keys.append(f"album {task}:{track.album}")
    return replace(track, labels=tuple(f"{task}:{name}" for name in track.labels), artists=tuple(keys), album=None)


def _merged(first: Track, second: Track) -> Track:
    """Returns the first track with the labels and grouping keys of both."""
    sizes = [track.feature_path.stat().st_size for track in (first, second) if track.feature_path.is_file()]
    names = [_names(track) for track in (first, second) if _names(track)]
    if len(set(sizes)) == 2 or len(set(names)) == 2:
        raise DataError(
            f"track {first.track_id}: must be one track in all tasks. Received: {first.feature_path} and"
            f" {second.feature_path} whose sizes or artists differ"
        )
    keys = dict.fromkeys((*first.artists, *second.artists))
    return replace(first, labels=(*first.labels, *second.labels), artists=tuple(keys))


def _names(track: Track) -> tuple[str, ...]:
    return tuple(track.metadata.get("artists", ()))
