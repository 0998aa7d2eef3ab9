"""Records on an object store (s3://, gs://, memory:// ...) through fsspec.

Such a store has no rename and no lock: shards go there one by one, the manifest last, and a place without a manifest
holds no records. They are read from a local copy, every file of it compared with the manifest's sha256.
"""

import fcntl
import hashlib
import importlib.util
import os
import uuid
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tfmusic.core.files import file_sha256
from tfmusic.errors import RecordsError, UsageError
from tfmusic.records.manifest import MANIFEST_NAME, TOKENS_NAME, TRACKS_NAME, Manifest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_CLIENTS = ("aiobotocore", "aiohttp", "botocore", "gcsfs", "google")  # whose errors are about keys and networks
_PARTIAL = ".tfmusic.tmp"
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}


def is_url(place: object) -> bool:
    """Returns whether a place is on a store, not a folder of this machine."""
    return "://" in str(place)


def _is_partial(name: str) -> bool:
    return name.startswith(".") and name.endswith(_PARTIAL)


@dataclass(frozen=True)
class Store:
    """The place of one records folder on a store.

    Attributes:
        url: such as s3://bucket/q2; options of the store, keys above all, come from its own environment variables.
    """

    url: str

    def __post_init__(self) -> None:
        """Raises UsageError for a URL of no place, or of one with a password, which messages and logs would show."""
        if not self.url.partition("://")[2].strip("/"):
            raise UsageError(f"{self.url}: must name a place on a store, such as s3://bucket/q2")
        if "@" in urlsplit(self.url).netloc and ":" in urlsplit(self.url).netloc.rpartition("@")[0]:
            raise UsageError("URLs of stores must hold no password: give it by the environment variables of the store")

    def _open(self) -> tuple[Any, str]:
        """Returns the file system and the path there; raises UsageError where its package is missing."""
        extra = _EXTRAS.get(self.url.partition("://")[0])
        needed = f"pip install 'tfmusic[{extra}]'" if extra else "pip install fsspec, and its package for this store"
        if importlib.util.find_spec("fsspec") is None:
            raise UsageError(f"{self.url}: needs more than is installed: {needed}")
        import fsspec

        try:
            # A list of what is there must not be an old one.
            files, root = fsspec.core.url_to_fs(self.url.rstrip("/"), use_listings_cache=False)
        except ImportError as error:
            raise UsageError(f"{self.url}: needs more than is installed: {needed} ({error})") from error
        except ValueError as error:
            raise UsageError(f"{self.url}: must be a URL that fsspec knows: {error}") from error
        return files, str(root)

    @contextmanager
    def _files(self) -> "Iterator[tuple[Any, str]]":
        """Gives the file system and the path there, and turns what a client refuses into a UsageError."""
        files, root = self._open()
        try:
            yield files, root
        except FileNotFoundError:  # the caller knows what that means
            raise
        except Exception as error:
            # Clients say what is forbidden or out of reach by errors of their own, or by an OSError without a number.
            if not isinstance(error, OSError) and type(error).__module__.partition(".")[0] not in _CLIENTS:
                raise
            raise UsageError(f"{self.url}: {type(error).__name__}: {error}") from error

    def names(self, *, partial: bool = False) -> set[str]:
        """Returns the names of the files there; or of the parts of such, which a killed process has left."""
        with self._files() as (files, root):
            try:
                found = files.ls(root, detail=True)
                names = {str(one["name"]).rsplit("/", 1)[-1] for one in found if one["type"] == "file"} - {""}
                return {name for name in names if _is_partial(name) == partial}
            except FileNotFoundError:
                return set()

    def put(self, path: Path) -> None:
        """Copies a file there; it appears under its own name when complete."""
        is_bucket = self.url.partition("://")[0] in _EXTRAS
        with self._files() as (files, root):
            if is_bucket:  # which has no folders: it would make a bucket; and shows no half of an object
                try:
                    files.put_file(str(path), f"{root}/{path.name}")
                except FileNotFoundError as error:
                    raise UsageError(f"{self.url}: must be in a bucket that exists: {error}") from error
                return
            files.makedirs(root, exist_ok=True)
            partial = f"{root}/.{path.name}.{uuid.uuid4().hex}{_PARTIAL}"
            try:
                files.put_file(str(path), partial)
                files.mv(partial, f"{root}/{path.name}")
            except Exception:
                with suppress(Exception):  # which may be gone with the connection; the next build removes it
                    files.rm_file(partial)
                raise

    def get(self, name: str, path: Path) -> None:
        """Copies a file from there; it appears under its name when complete."""
        partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        with self._files() as (files, root):
            try:
                files.get_file(f"{root}/{name}", str(partial))
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)

    def read(self, name: str) -> bytes | None:
        """Returns what a file there holds, or None where there is none."""
        with self._files() as (files, root):
            try:
                return bytes(files.cat_file(f"{root}/{name}"))
            except FileNotFoundError:
                return None

    def remove(self, names: "Iterable[str]") -> None:
        """Removes files there."""
        with self._files() as (files, root):
            for name in sorted(names):
                files.rm_file(f"{root}/{name}")


def fetch(url: str) -> Path:
    """Returns the folder of a local copy of records on a store; what is there already is not copied again.

    Copies are kept in tfmusic/records in the user's cache, named by the sha256 of their manifest.

    Raises:
        RecordsError: there are no records, or a file is missing or not the manifest's.
        UsageError: what reads the store is not installed.
    """
    store = Store(url)
    body = store.read(MANIFEST_NAME)
    if body is None:
        raise RecordsError(f"{url}: must hold {MANIFEST_NAME}, which a finished build writes last. Received: none")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tfmusic" / "records"
    folder = cache / hashlib.sha256(body).hexdigest()[:16]
    if (folder / MANIFEST_NAME).is_file():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of several processes of a machine one copies, the others wait
        if not (folder / MANIFEST_NAME).is_file():
            _copy(store, body, folder)
    return folder


def _copy(store: Store, manifest: bytes, folder: Path) -> None:
    """Makes the copy beside its place, where an interrupted one is gone on with."""
    partial = folder.with_name(f".{folder.name}.partial")
    partial.mkdir(exist_ok=True)
    (partial / MANIFEST_NAME).write_bytes(manifest)
    for name, sha256 in _listed(Manifest.read(partial)):
        _get_checked(store, name, partial / name, sha256)
    partial.rename(folder)


def _listed(manifest: Manifest) -> "Iterator[tuple[str, str]]":
    """Yields name and sha256 of every file that a manifest lists; it has been read, so names stay in its folder."""
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
        raise RecordsError(f"{store.url}/{name}: damaged: its sha256 is not the manifest's; build the records again")
