"""Writing without losing: files appear whole, folders of ours alone are replaced."""

import os
import shutil
from pathlib import Path

from tfmusic.errors import UsageError


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 file under its name in one step, so that no reader sees half of it; makes its folder."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file as `write_text` does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.with_name(path.name + ".tmp")
    try:
        with tmp.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        tmp.replace(path)
    finally:
        tmp.unlink(missing_ok=True)


def put_in_place(finished: Path, target: Path) -> None:
    """Renames a finished folder to its name; an older one of that name goes only when the new one stands."""
    old = target.parent / f".{target.name}.old"
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    finished.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def check_target(path: Path, *, overwrite: bool, marker: str, what: str) -> None:
    """Checks that a folder may be written.

    Args:
        path: the folder.
        overwrite: whether an existing one may be replaced.
        marker: a file that every folder of this kind holds.
        what: the kind of folder, for the message.

    Raises:
        UsageError: it exists and must not be replaced, or is not of this kind, so that something else would be lost.
    """
    if not path.exists():
        return
    if not overwrite:
        raise UsageError(f"{path}: exists already. Pass --overwrite to replace it, or another name")
    if not path.is_dir() or (any(path.iterdir()) and not (path / marker).is_file()):
        raise UsageError(
            f"{path}: --overwrite replaces only {what} (it would hold {marker}). Choose another name,"
            " or remove what is there yourself"
        )
