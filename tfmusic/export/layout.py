"""The folder of an export: a model in one of three formats, with contract, calibration and labels beside it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfmusic.core.files import locked, put_in_place, write_checksums, write_json, write_text
from tfmusic.export.card import CARD_JSON, CARD_MARKDOWN, card_markdown
from tfmusic.scoring.track_scorer import save_scorers

if TYPE_CHECKING:
    from tfmusic.inference.predictor import LoadedRun

SAVED_MODEL = "saved_model.pb"
FILES = {"onnx": "model.onnx", "litert": "model.tflite"}


def is_export(folder: Path) -> bool:
    """Whether a folder holds an exported model."""
    return (folder / SAVED_MODEL).is_file() or is_of_segments(folder)


def is_of_segments(folder: Path) -> bool:
    """Whether the exported model takes windows of codes, so that others make them and join the answers."""
    return any((folder / name).is_file() for name in FILES.values())


@contextmanager
def export_folder(out: Path, loaded: "LoadedRun") -> Iterator[Path]:
    """Yields a folder to write a model to, which appears under its name when complete, checksums included.

    Raises:
        UsageError: another process writes the folder.
    """
    with locked(out):
        partial = out.parent / f".{out.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            loaded.contract.save(partial / "contract.json")
            save_scorers({loaded.contract.task: loaded.scorer}, partial / "calibration.json")
            names = "".join(f"{name}\n" for name in loaded.contract.labels)
            (partial / "labels.txt").write_text(names, encoding="utf-8")
            yield partial
            files = [path for path in partial.rglob("*") if path.is_file()]
            write_checksums(partial, [path.relative_to(partial).as_posix() for path in files])
            put_in_place(partial, out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def write_card(folder: Path, card: dict[str, Any]) -> None:
    """Writes the model card, for programs and for readers."""
    write_json(folder / CARD_JSON, card)
    write_text(folder / CARD_MARKDOWN, card_markdown(card))
