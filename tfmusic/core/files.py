"""Files of tfmusic: written in one step, locked, checked by size and sha256; JSON from untrusted sources."""

import ctypes
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tfmusic.errors import RunError, UsageError

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


MAX_JSON_BYTES = 256 << 20  # 256 MiB; the largest label files known have a few


def read_json_file(path: Path) -> Any:
    """Returns the value of a JSON file in UTF-8.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON, too large, nested too deeply, or has a key twice in one object.
    """
    size = path.stat().st_size
    if not path.is_file():  # a pipe would keep us waiting
        raise ValueError("it must be a file")
    if size > MAX_JSON_BYTES:
        raise ValueError(f"it must be at most {MAX_JSON_BYTES >> 20} MiB. Received: {size:,} bytes")
    return parse_json(path.read_text(encoding="utf-8"))


def parse_json(text: str) -> Any:
    """Returns the value of a JSON text; raises ValueError as `read_json_file`."""
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _object(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    pairs = list(pairs)
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for i, name in enumerate(names) if name in names[:i])
        raise ValueError(f"key {repeated!r} stands twice")
    return found


CHECKSUMS_NAME = "checksums.json"
CHECKSUMS_VERSION = 2  # 1 was that of tfmusic 0.1


def write_checksums(folder: Path, names: Iterable[str]) -> None:
    """Writes size and sha256 of some files of a folder, by their paths in it, and a checksum of the list itself."""
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": file_sha256(folder / name)} for name in sorted(names)
    }
    body: dict[str, Any] = {"version": CHECKSUMS_VERSION, "files": files}
    write_text(folder / CHECKSUMS_NAME, json.dumps(body | {"sha256": digest_of(body)}, indent=1) + "\n")


def check_files(folder: Path, *, may_lack: Iterable[str] = (), only: Iterable[str] | None = None) -> list[str]:
    """Compares files of a folder with its checksums and returns their names; none where it has no checksums.

    Args:
        folder: the folder.
        may_lack: files that may be missing.
        only: the files to compare, as far as they are listed; all that are listed where this is None.

    Raises:
        RunError: the list is damaged, or a file is missing or differs; the message names it.
    """
    path = folder / CHECKSUMS_NAME
    if not path.exists():
        return []
    files, checked = _read(path), []
    for name in files if only is None else files.keys() & set(only):
        if name in may_lack and not (folder / name).exists():
            continue
        _check(folder / name, files[name])
        checked.append(name)
    return sorted(checked)


def file_sha256(path: Path) -> str:
    """Returns the sha256 of a file as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(body: Mapping[str, Any]) -> str:
    """Returns the sha256 of a value of JSON, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(body, sort_keys=True, default=str).encode()).hexdigest()


def _read(path: Path) -> dict[str, tuple[int, str]]:
    try:
        body = read_json_file(path)
        digest, version = body.pop("sha256", None), body.get("version")
    except (OSError, ValueError, AttributeError, TypeError) as error:  # a list, say, in place of a mapping
        raise RunError(f"{path}: must be the checksums of a folder of tfmusic. Received: {error}") from error
    if digest != digest_of(body):
        raise RunError(f"{path}: damaged: its own checksum does not match")
    if version != CHECKSUMS_VERSION:
        raise RunError(
            f"{path.parent}: was written by another version of tfmusic (format {version!r}, this one reads"
            f" {CHECKSUMS_VERSION}): train or export again"
        )
    try:
        files = {str(name): (int(one["bytes"]), str(one["sha256"])) for name, one in body["files"].items()}
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise RunError(f"{path}: must list size and sha256 of files. Received: {error!r}") from error
    if any(name.startswith("/") or "\0" in name or ".." in name.split("/") for name in files):
        raise RunError(f"{path}: must list files of its folder alone")
    return files


def _check(path: Path, wanted: tuple[int, str]) -> None:
    if not path.is_file():
        raise RunError(f"{path}: no such file, but {CHECKSUMS_NAME} lists it")
    if (path.stat().st_size, file_sha256(path)) != wanted:
        raise RunError(
            f"{path}: damaged: it is not the file that {CHECKSUMS_NAME} lists. Take it from a copy; if it was changed"
            f" on purpose, remove {CHECKSUMS_NAME}"
        )
