"""Records on an object store (s3://, gs://, memory:// ...) through fsspec.

A store has neither rename nor lock. A build puts the shards there one by one and the manifest last; a URL without a
manifest holds no records. Records are read from a local copy, whose files are compared with the manifest's sha256.
"""

import hashlib
import importlib.util
import os
import uuid
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tfmusic.core.files import file_sha256, held, replacing, write_bytes
from tfmusic.errors import RecordsError, UsageError
from tfmusic.records.manifest import MANIFEST_NAME, TOKENS_NAME, TRACKS_NAME, Manifest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_CLIENTS = ("aiobotocore", "aiohttp", "botocore", "gcsfs", "google")  # packages whose errors concern keys and networks
_PARTIAL = ".tfmusic.tmp"  # ends the name of a file that is still being written
_LISTINGS = 5  # tries to list a folder in which another build removes files
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}


def is_url(place: object) -> bool:
    """Returns whether a place is the URL of a store rather than a folder of this machine."""
    return "://" in str(place)


def _is_partial(name: str) -> bool:
    return name.startswith(".") and name.endswith(_PARTIAL)


@dataclass(frozen=True)
class Store:
    """One records folder on a store.

    Attributes:
        url: for example s3://bucket/q2. The store reads its keys and options from its own environment variables.
    """

    url: str

    def __post_init__(self) -> None:
        """Raises UsageError for a URL without a path, or with a password, which messages and logs would show."""
        if not self.url.partition("://")[2].strip("/"):
            raise UsageError(f"{self.url}: must name a folder of a store, such as s3://bucket/q2")
        if "@" in urlsplit(self.url).netloc and ":" in urlsplit(self.url).netloc.rpartition("@")[0]:
            raise UsageError(
                "the URL of a store must not contain a password: use the environment variables of the store"
            )

    def _open(self) -> tuple[Any, str]:
        """Returns the file system and the path in it; raises UsageError where its package is missing."""
        extra = _EXTRAS.get(self.url.partition("://")[0])
        needed = f"pip install 'tfmusic[{extra}]'" if extra else "pip install fsspec, and its package for this store"
        if importlib.util.find_spec("fsspec") is None:
            raise UsageError(f"{self.url}: needs a package that is not installed: {needed}")
        import fsspec

        try:
            # Without the cache, which would list files as they were earlier.
            files, root = fsspec.core.url_to_fs(self.url.rstrip("/"), use_listings_cache=False)
        except ImportError as error:
            raise UsageError(f"{self.url}: needs a package that is not installed: {needed} ({error})") from error
        except ValueError as error:
            raise UsageError(f"{self.url}: must be a URL that fsspec can open: {error}") from error
        return files, str(root)

    @contextmanager
    def _files(self) -> "Iterator[tuple[Any, str]]":
        """Yields the file system and the path in it; an error of the client becomes a UsageError."""
        files, root = self._open()
        try:
            yield files, root
        except FileNotFoundError:  # the callers handle it
            raise
        except Exception as error:
            # Forbidden or unreachable: clients raise errors of their own classes, or an OSError without a number.
            if not isinstance(error, OSError) and type(error).__module__.partition(".")[0] not in _CLIENTS:
                raise
            raise UsageError(f"{self.url}: {type(error).__name__}: {error}") from error

    def names(self, *, partial: bool = False) -> set[str]:
        """Returns the names of the files there; with `partial`, of unfinished files that a killed process has left."""
        with self._files() as (files, root):
            entries: list[dict[str, Any]] = []
            for _ in range(_LISTINGS):
                try:
                    entries = files.ls(root, detail=True)
                    break
                except FileNotFoundError:  # the folder; or a file that another build removed while it was listed
                    if not files.exists(root):
                        break
            names = {str(entry["name"]).rsplit("/", 1)[-1] for entry in entries if entry["type"] == "file"} - {""}
            return {name for name in names if _is_partial(name) == partial}

    def put(self, path: Path) -> None:
        """Uploads a file; it appears under its name when it is complete."""
        is_bucket = self.url.partition("://")[0] in _EXTRAS
        with self._files() as (files, root):
            if is_bucket:  # objects appear complete, and makedirs would try to make the bucket
                try:
                    files.put_file(str(path), f"{root}/{path.name}")
                except FileNotFoundError as error:
                    raise UsageError(f"{self.url}: the bucket must exist: {error}") from error
                return
            files.makedirs(root, exist_ok=True)
            partial = f"{root}/.{path.name}.{uuid.uuid4().hex}{_PARTIAL}"
            try:
                files.put_file(str(path), partial)
                files.mv(partial, f"{root}/{path.name}")
            except Exception:
                with suppress(Exception):  # the connection may be down; the next build removes the file
                    files.rm_file(partial)
                raise

    def get(self, name: str, path: Path) -> None:
        """Downloads a file; it appears under its name when it is complete."""
        with self._files() as (files, root), replacing(path) as partial:
            files.get_file(f"{root}/{name}", str(partial))

    def read(self, name: str) -> bytes | None:
        """Returns the content of a file, or None where there is no such file."""
        with self._files() as (files, root):
            try:
                return bytes(files.cat_file(f"{root}/{name}"))
            except FileNotFoundError:
                return None

    def remove(self, names: "Iterable[str]") -> None:
        """Removes files; those that another build has removed already are gone."""
        with self._files() as (files, root):
            for name in sorted(names):
                with suppress(FileNotFoundError):
                    files.rm_file(f"{root}/{name}")


def fetch(url: str) -> Path:
    """Returns the folder of a local copy of records on a store, and makes the copy where there is none.

    Copies are kept in tfmusic/records in the user's cache, named after the sha256 of their manifest.

    Raises:
        RecordsError: there are no records, or a file is missing or damaged.
        UsageError: the package that reads the store is not installed.
    """
    store = Store(url)
    body = store.read(MANIFEST_NAME)
    if body is None:
        raise RecordsError(f"{url}: no {MANIFEST_NAME}: it must hold records, and a build writes their manifest last")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tfmusic" / "records"
    folder = cache / hashlib.sha256(body).hexdigest()[:16]
    if (folder / MANIFEST_NAME).is_file():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with held(cache / f".{folder.name}.lock"):  # one process of a machine copies, the others wait
        if not (folder / MANIFEST_NAME).is_file():
            _copy(store, body, folder)
    return folder


def _copy(store: Store, manifest: bytes, folder: Path) -> None:
    """Copies into a hidden folder, which keeps the files of an interrupted copy, and renames it in the end."""
    partial = folder.with_name(f".{folder.name}.partial")
    partial.mkdir(exist_ok=True)
    write_bytes(partial / MANIFEST_NAME, manifest)
    for name, sha256 in _listed(Manifest.read(partial)):
        _get_checked(store, name, partial / name, sha256)
    partial.rename(folder)


def _listed(manifest: Manifest) -> "Iterator[tuple[str, str]]":
    """Yields name and sha256 of every file that a manifest lists. `Manifest.read` has checked the names."""
    yield TRACKS_NAME, manifest.tracks_sha256
    if "tokens_sha256" in manifest.settings:
        yield TOKENS_NAME, manifest.settings["tokens_sha256"]
    for split in manifest.splits.values():
        for shard in split.shards:
            yield shard.file, shard.sha256


def _get_checked(store: Store, name: str, path: Path, sha256: str) -> None:
    if path.is_file() and file_sha256(path) == sha256:
        return
    try:
        store.get(name, path)
    except FileNotFoundError as error:
        raise RecordsError(f"{store.url}/{name}: no such file, but the manifest lists it") from error
    if file_sha256(path) != sha256:
        path.unlink()
        raise RecordsError(
            f"{store.url}/{name}: damaged: its sha256 is not that of the manifest. Build the records again"
        )
