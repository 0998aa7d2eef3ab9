"""The folder of an export: a model in one of three formats, with contract, calibration and labels beside it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tfmusic.checksums import write_checksums
from tfmusic.folders import locked, put_in_place

if TYPE_CHECKING:
    from tfmusic.serving.predict import LoadedRun

SAVED_MODEL = "saved_model.pb"
FILES = {"onnx": "model.onnx", "litert": "model.tflite"}


def is_export(folder: Path) -> bool:
    """Whether a folder holds an exported model."""
    return any((folder / name).is_file() for name in (SAVED_MODEL, *FILES.values()))


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
