"""Checksums of a finished folder: `checksums.json` is written last, and what it lists is compared before it is used."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tfmusic.errors import RunError
from tfmusic.folders import write_text
from tfmusic.jsonfile import read_json_file

CHECKSUMS_NAME = "checksums.json"
CHECKSUMS_VERSION = 1


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
        raise RunError(f"{path}: checksums version must be {CHECKSUMS_VERSION}. Received: {version!r}")
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
