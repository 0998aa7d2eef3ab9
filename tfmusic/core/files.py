"""Files on disk: written in one step, locked, replaced with permission, read as JSON, compared with checksums."""

import ctypes
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tfmusic.errors import RunError, UsageError, printable

MAX_JSON_BYTES = 256 << 20  # 256 MiB; the largest label files known have a few
CHECKSUMS_NAME = "checksums.json"
CHECKSUMS_VERSION = 2  # 1 was that of tfmusic 0.1

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux's renameat2


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a new temporary file beside `path`, which takes its place when the block ends without an error.

    No reader sees half of a file: it is flushed to disk before it is renamed, and removed after an error. Its name is
    random, so nobody can put a link there beforehand. The folder is made where it is missing. The file is locked until
    then, so that `remove_leftovers` tells it from one that a killed process has left.
    """
    tmp = new_temporary(path)
    try:
        with held(tmp):
            yield tmp
            with tmp.open("rb") as file:
                os.fsync(file.fileno())
            tmp.replace(path)
    finally:
        tmp.unlink(missing_ok=True)


def new_temporary(path: Path) -> Path:
    """Makes an empty hidden file with a random name beside `path`, in a folder that is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.with_name(f".{secrets.token_hex(8)}.tmp{path.suffix}")  # the suffix, as Keras and numpy look at it
    os.close(os.open(tmp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666))
    return tmp


def is_temporary(path: Path) -> bool:
    """Returns whether a file is an unfinished one of `replacing`, which a killed process has left."""
    return re.fullmatch(r"\.[0-9a-f]{16}\.tmp(\.\w+)?", path.name) is not None


def remove_leftovers(folder: Path) -> None:
    """Removes the unfinished files of killed processes from a folder; those of others that still write stay."""
    for path in folder.glob(".*.tmp*"):
        if is_temporary(path) and path.is_file() and not path.is_symlink():
            with suppress(OSError, UsageError), held(path, "in use"):
                pass  # the end of `held` removes it


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file in one step, as `replacing`."""
    with replacing(path) as tmp:
        tmp.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 file in one step, as `replacing`."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file in one step, as `replacing`; paths that are not UTF-8 are read from it as they were."""
    text = json.dumps(value, ensure_ascii=False, indent=1) + "\n"
    write_bytes(path, text.encode(errors="backslashreplace"))  # which are escapes of JSON as well


def append_line(path: Path, line: str) -> None:
    """Adds a line to a UTF-8 file of one name, so that nothing is written to a file elsewhere.

    Raises:
        OSError: it is a link, or cannot be written.
        RunError: it has a second name, or is a pipe or a device.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    with os.fdopen(descriptor, "a", encoding="utf-8") as file:
        state = os.fstat(descriptor)
        if not stat.S_ISREG(state.st_mode) or state.st_nlink != 1:
            raise RunError(f"{path}: must be a file of its own. Received: a hard link, a pipe or a device; remove it")
        file.write(line + "\n")


def foreign_entries(folder: Path) -> list[Path]:
    """Returns what a folder holds, at any depth, beside files and folders: links, pipes and devices."""
    found = []
    for here, folders, names in os.walk(folder):
        for path in (Path(here, name) for name in (*folders, *names)):
            with suppress(FileNotFoundError):  # a temporary file of another process
                mode = path.lstat().st_mode
                if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                    found.append(path)
    return sorted(found)


def check_own_files(folder: Path) -> None:
    """Checks that all that is written into a folder stays in it.

    Raises:
        RunError: it holds a link, a pipe or a device, at any depth; the message names the first.
    """
    if entries := foreign_entries(folder):
        more = f" and {len(entries) - 1} more" if len(entries) > 1 else ""
        raise RunError(
            f"{entries[0]}{more}: a folder that is to be written must hold files and folders alone. Received: a"
            " symbolic link, a pipe or a device; put a copy of the file in its place, or remove it"
        )


def check_way_to(path: Path) -> None:
    """Checks that an output in a run or an export is not reached through a link in it.

    Raises:
        RunError: the output, or a folder on the way from the run or export to it, is a link.
    """
    path = path.absolute()
    way: list[Path] = [path]
    for parent in path.parents:
        if any((parent / name).is_file() for name in (CHECKSUMS_NAME, "contract.json")):
            for part in way:
                if part.is_symlink():
                    raise RunError(f"{part}: must not be a link in a run or an export; choose another output")
        way.append(parent)


def text_cell(text: str) -> str:
    """Returns a printable cell of a CSV file. What a spreadsheet could run as a formula gets a quote before it.

    Also after a semicolon or a bar, which separates cells in some countries and programs.
    """
    return re.sub(r"""((?:^|[;|])[\s"']*)(?=[=+\-@＝＋－＠])""", r"\1'", printable(text))


def resolved(out: Path) -> Path:
    """Returns where an output stands that may be a link, which stays."""
    return out.resolve() if out.is_symlink() else out


@contextmanager
def replacing_folder(out: Path) -> Iterator[Path]:
    """Yields a new hidden folder, which takes the place of `out` when the block ends without an error.

    It stands beside `out`, or beside the folder that a link of that name leads to. One process at a time writes it, and
    removes what those that were killed have left.

    Raises:
        UsageError: another process is writing it, or the lock file is somebody's file.
    """
    out = resolved(out)
    with locked(out):
        for leftover in out.parent.iterdir():
            if re.fullmatch(rf"\.{re.escape(out.name)}\.[0-9a-f]{{16}}\.partial", leftover.name) and leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)  # not through a link
        partial = out.parent / f".{out.name}.{secrets.token_hex(8)}.partial"
        partial.mkdir()
        try:
            yield partial
            put_in_place(partial, out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def put_in_place(finished: Path, target: Path) -> None:
    """Renames a finished folder to its name. An older folder of that name is removed after the new one is there."""
    if not target.exists():
        finished.rename(target)
    elif _exchange(finished, target):
        shutil.rmtree(finished, ignore_errors=True)  # the older one, since the exchange
    else:
        old = target.parent / f".{secrets.token_hex(8)}.tmp.old"
        target.rename(old)
        finished.rename(target)
        shutil.rmtree(old, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Exchanges two folders in one step, so that a reader always finds one; returns False where Linux cannot."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    names = (os.fsencode(first), os.fsencode(second))
    return rename is not None and rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Lets one process at a time write under a name. The lock file is hidden beside it.

    Raises:
        UsageError: another process is writing there, or the lock file is somebody's file, which would be removed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    refusal = f"{target}: another process is writing it; wait for it to end, or choose another name"
    lock = target.parent / f".{target.name}.lock"
    if lock.is_file() and lock.stat().st_size:
        raise UsageError(f"{lock}: must be empty, as a lock file is. Received: other contents; move it elsewhere")
    with held(lock, refusal):
        yield


@contextmanager
def held(path: Path, refusal: str | None = None) -> Iterator[None]:
    """Holds a lock file, which is removed in the end.

    Args:
        path: the lock file.
        refusal: the message where another process holds it; None waits for that process.

    Raises:
        UsageError: another process holds it, and `refusal` is given.
    """
    while (descriptor := _try_to_lock(path, wait=refusal is None)) is None:
        if refusal is not None:
            raise UsageError(refusal)
    try:
        yield
    finally:
        if _is_same_file(descriptor, path):  # someone may have removed it, and another process made its own
            path.unlink(missing_ok=True)
        os.close(descriptor)


def _try_to_lock(path: Path, *, wait: bool) -> int | None:
    """Returns the descriptor of a lock file that this process holds now, or None where it does not."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        if _is_same_file(descriptor, path):
            return descriptor
    except BlockingIOError:
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)  # another process holds it, or has ended and removed it since it was opened
    return None


def _is_same_file(descriptor: int, path: Path) -> bool:
    """Returns whether a path still names the file of a descriptor."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def check_target(path: Path, *, overwrite: bool, marker: str, what: str) -> None:
    """Checks that a folder may be written.

    Args:
        path: the folder.
        overwrite: whether an existing one may be replaced.
        marker: a file that every folder of this kind holds.
        what: the kind of folder, for the message.

    Raises:
        UsageError: it exists and `overwrite` is False, or it is no folder of this kind, or a mount point, or its name
            is not UTF-8.
        RunError: it lies in a run or an export, behind a link.
    """
    if str(path) != os.fsencode(path).decode(errors="replace"):
        raise UsageError(f"{path}: the name of a folder that is written must be UTF-8, as TensorFlow reads no other")
    check_way_to(path)
    if not path.exists():
        return
    if not overwrite:
        raise UsageError(f"{path}: exists already. Pass --overwrite to replace it, or another name")
    if not path.is_dir() or (any(path.iterdir()) and not (path / marker).is_file()):
        raise UsageError(
            f"{path}: --overwrite replaces only {what}, which would hold {marker}. Choose another name, or remove it"
            " yourself"
        )
    if _is_mount_point(path):
        raise UsageError(f"{path}: must not be a mount point, which cannot be replaced; choose a folder in it")


def _is_mount_point(path: Path) -> bool:
    """Returns whether a folder is a mount point; on Linux also one that is bound to a folder of the same disk."""
    mounts = Path("/proc/self/mountinfo")
    lines = mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines() if mounts.is_file() else []
    escaped = re.sub(r"[ \t\n\\]", lambda match: f"\\{ord(match[0]):03o}", str(path.resolve()))
    return os.path.ismount(path) or any(line.split(" ")[4:5] == [escaped] for line in lines)


def check_target_file(path: Path, *, overwrite: bool) -> None:
    """Checks that a file may be written.

    Raises:
        UsageError: it exists and `overwrite` is False, or it is a folder.
        RunError: it lies in a run or an export, behind a link.
    """
    check_way_to(path)
    if path.is_dir():
        raise UsageError(f"{path}: must be the name of a file. Received: a folder")
    if path.exists() and not overwrite:
        raise UsageError(f"{path}: exists already. Pass --overwrite to replace it, or another name")


def read_json_file(path: Path) -> Any:
    """Returns the value of a JSON file in UTF-8.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON, too large, nested too deeply, or has a key twice in one object.
    """
    size = path.stat().st_size
    if not path.is_file():  # reading a pipe would wait for ever
        raise ValueError("it must be a file")
    if size > MAX_JSON_BYTES:
        raise ValueError(f"it must be at most {MAX_JSON_BYTES >> 20} MiB. Received: {size:,} bytes")
    return parse_json(path.read_text(encoding="utf-8"))


def parse_json(text: str) -> Any:
    """Returns the value of a JSON text; raises ValueError as `read_json_file`."""
    try:
        return json.loads(text, object_pairs_hook=_unique_keys)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise ValueError(f"key {name!r} appears twice in one object")
        values[name] = value
    return values


def file_sha256(path: Path) -> str:
    """Returns the sha256 of a file as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(body: Mapping[str, Any]) -> str:
    """Returns the sha256 of a JSON value as hexadecimal digits, the same for every order of its keys."""
    return hashlib.sha256(json.dumps(body, sort_keys=True, default=str).encode()).hexdigest()


def write_checksums(folder: Path, names: Iterable[str]) -> None:
    """Writes size and sha256 of files of a folder, by their paths in it, and a checksum of the list itself."""
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": file_sha256(folder / name)} for name in sorted(names)
    }
    body: dict[str, Any] = {"version": CHECKSUMS_VERSION, "files": files}
    write_json(folder / CHECKSUMS_NAME, body | {"sha256": digest_of(body)})


def check_files(folder: Path, *, may_lack: Iterable[str] = (), only: Iterable[str] | None = None) -> list[str]:
    """Compares files of a folder with its checksums and returns their names; none where it has no checksums.

    Args:
        folder: the folder.
        may_lack: files that may be missing.
        only: the files to compare, as far as they are listed; None compares all that are listed.

    Raises:
        RunError: the list is damaged, or a file is missing or differs; the message names it.
    """
    path = folder / CHECKSUMS_NAME
    if not path.exists():
        return []
    files = _read_checksums(path)
    names = sorted(files if only is None else files.keys() & set(only))
    checked = [name for name in names if name not in may_lack or (folder / name).exists()]
    for name in checked:
        _check_file(folder / name, files[name])
    return checked


def _read_checksums(path: Path) -> dict[str, tuple[int, str]]:
    """Returns size and sha256 of every file listed; the list is untrusted."""
    try:
        body = read_json_file(path)
        digest, version = body.pop("sha256", None), body.get("version")
    except (OSError, ValueError, AttributeError, TypeError) as error:  # a list, for example, is no mapping
        raise RunError(f"{path}: must be the checksums of a folder of tfmusic. Received: {error}") from error
    if digest != digest_of(body):
        raise RunError(f"{path}: damaged: its own checksum does not match")
    if version != CHECKSUMS_VERSION:
        raise RunError(
            f"{path.parent}: was written by another version of tfmusic (format {version!r}, this one reads"
            f" {CHECKSUMS_VERSION}): train or export again"
        )
    try:
        files = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in body["files"].items()}
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise RunError(f"{path}: must list size and sha256 of files. Received: {error!r}") from error
    if any(name.startswith("/") or "\0" in name or ".." in name.split("/") for name in files):
        raise RunError(f"{path}: must list only files of its own folder")
    return files


def _check_file(path: Path, expected: tuple[int, str]) -> None:
    if not path.is_file():
        raise RunError(f"{path}: no such file, but {CHECKSUMS_NAME} lists it")
    if (path.stat().st_size, file_sha256(path)) != expected:
        raise RunError(
            f"{path}: damaged: it is not the file that {CHECKSUMS_NAME} lists. Take it from a copy; if you changed it"
            f" on purpose, remove {CHECKSUMS_NAME}"
        )
