"""The folder of an export: a model in one of three formats, with contract, calibration and labels beside it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfmusic.core.files import locked, put_in_place, write_checksums, write_text
from tfmusic.core.rundir import RunDir, write_json
from tfmusic.errors import RunError
from tfmusic.export.card import CARD_JSON, CARD_MARKDOWN, card_markdown
from tfmusic.scoring.aggregate import AGGREGATORS

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


def read_answer(folder: Path) -> tuple[str, int]:
    """Returns how the windows of a track become its answer: the aggregator and its k; from the card of an export.

    Raises:
        RunError: there is no card, or it names none.
    """
    card = folder / CARD_JSON
    if not card.is_file():
        raise RunError(f"{folder}: must say how windows become an answer, in {CARD_JSON}. Export the run again")
    answer = RunDir(folder).read_json(card).get("answer")
    named = answer if isinstance(answer, dict) else {}
    aggregator = named.get("aggregator")
    top_k = named.get("top_k") if aggregator == "top_k_mean" else 1
    if not isinstance(aggregator, str) or aggregator not in AGGREGATORS or type(top_k) is not int or top_k < 1:
        raise RunError(
            f"{card}: answer must name an aggregator, {', '.join(AGGREGATORS)}, and for top_k_mean a top_k of 1 or"
            f" more. Received: {answer!r}"
        )
    return aggregator, top_k


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
            loaded.calibration.save(partial / "calibration.json")
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
    write_json(card, folder / CARD_JSON)
    write_text(folder / CARD_MARKDOWN, card_markdown(card))
