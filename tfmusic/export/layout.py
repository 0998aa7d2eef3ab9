"""The folder of an export: a model in one of three formats, with contract, calibration and labels beside it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tfmusic.core.files import locked, put_in_place, write_checksums, write_json, write_text
from tfmusic.export.card import CARD_JSON, CARD_MARKDOWN, card_markdown
from tfmusic.inference.predictor import Predictor
from tfmusic.scoring.track_scorer import save_scorers


@contextmanager
def export_folder(out: Path, predictor: Predictor) -> Iterator[Path]:
    """Yields a folder to write a model to, which appears under its name when complete, checksums included.

    Raises:
        UsageError: another process writes the folder.
    """
    with locked(out):
        partial = out.parent / f".{out.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            predictor.contract.save(partial / "contract.json")
            save_scorers({predictor.contract.task: predictor.scorer}, partial / "calibration.json")
            names = "".join(f"{name}\n" for name in predictor.contract.labels)
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
