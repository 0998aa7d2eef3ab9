"""Writing without losing: files appear whole, folders of ours alone are replaced."""

import ctypes
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tfmusic.errors import UsageError

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux's renameat2


def text_cell(text: str) -> str:
    """Returns a cell of a CSV file that no spreadsheet runs as a formula: where it could, a quote stands before it."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 file under its name in one step, so that no reader sees half of it; makes its folder."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file as `write_text` does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.with_name(f".{path.name}.tmp")  # hidden: no reader takes it for a file of the folder
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
    if target.exists() and not _exchange(finished, target):
        old = target.parent / f".{target.name}.old"
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
        finished.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    elif target.exists():
        shutil.rmtree(finished, ignore_errors=True)  # which is the older one now
    else:
        finished.rename(target)


def _exchange(one: Path, other: Path) -> bool:
    """Exchanges two folders in one step, so that no reader finds neither; False where the system cannot."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    names = (os.fsencode(one), os.fsencode(other))
    return rename is not None and rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Holds what will be written under a name for one process at a time; the lock stands beside it, hidden.

    Raises:
        UsageError: another process holds it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    refusal = f"{target}: another process is writing it; wait for it to end, or choose another name"
    with held(target.parent / f".{target.name}.lock", refusal):
        yield


@contextmanager
def held(path: Path, refusal: str) -> Iterator[None]:
    """Holds a lock file, which goes in the end; raises UsageError with `refusal` where another process holds it."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_held = path.is_file() and os.path.samestat(os.fstat(lock.fileno()), path.stat())
        except OSError:
            is_held = False
        if not is_held:  # or the file was of a process that has just ended
            raise UsageError(refusal)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


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
