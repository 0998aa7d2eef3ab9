"""Where records are written: a folder, or an object store, on which nothing can be renamed or locked.

Both write shards one by one, each followed by a note of what it holds; a build that is continued trusts the notes. The
manifest comes last. A cluster may write a shard twice, also at the same time: both copies have the same bytes, and
nobody sees half of one.
"""

import json
import re
import shutil
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tfmusic.core.files import check_target, is_temporary, locked, put_in_place, resolved
from tfmusic.errors import DataError, UsageError
from tfmusic.records import descriptions
from tfmusic.records.build.shard import ShardResult, ShardSpec, write_shard
from tfmusic.records.build.survey import NOTES_NAME
from tfmusic.records.manifest import MANIFEST_NAME, TOKENS_NAME, TRACKS_NAME, Manifest
from tfmusic.records.store import Store, is_url

DONE = ".done.json"  # ending of the note of a shard
PLAN_NAME = "plan.sha256"
_SHARD_NAME = re.compile(r"\.tfrecord-\d+-of-\d+(\.|$)")  # and its note, and the temporary files of both


@dataclass(frozen=True)
class InFolder:
    """A folder. While it is written, it stands beside its target under a hidden name.

    Finished shards are kept when a build is interrupted, and the next build with the same plan continues from them.
    """

    out: Path

    def __str__(self) -> str:
        """Returns the folder, as the user named it."""
        return str(self.out)

    def check(self, *, overwrite: bool) -> None:
        """Raises UsageError where the folder exists and is no records folder, or `overwrite` is false."""
        check_target(self.out, overwrite=overwrite, marker=MANIFEST_NAME, what="records")

    @contextmanager
    def working_folder(self) -> Iterator[Path]:
        """Holds the hidden folder for this process; removes it after an error.

        Raises:
            UsageError: another build is writing there, or it holds what no build writes.
        """
        out = resolved(self.out)
        partial = out.parent / f".{out.name}.partial"
        with locked(out):
            if partial.is_symlink() or (partial.exists() and not partial.is_dir()):
                raise UsageError(
                    f"{partial}: must be a folder, in which {out} is written first. Received: a link or a file"
                )
            partial.mkdir(exist_ok=True)
            _check_partial(partial)
            try:
                yield partial
            except (DataError, OSError):  # after Ctrl-C, a kill or a crash it stays, to be continued
                shutil.rmtree(partial, ignore_errors=True)
                raise

    def finished_shards(self, partial: Path, fingerprint: str) -> dict[str, ShardResult]:
        """Returns the shards that an interrupted build of the same plan has left, and removes everything else."""
        plan_path = partial / PLAN_NAME
        is_same = plan_path.is_file() and plan_path.read_text() == fingerprint
        names = {path.name for path in partial.iterdir()}
        done = _noted(names, lambda name: (partial / name).read_text()) if is_same else {}
        for name in names - {NOTES_NAME, *done, *(name + DONE for name in done)}:
            (partial / name).unlink()
        plan_path.write_text(fingerprint)
        return done

    def write(self, spec: ShardSpec) -> ShardResult:
        """Writes a shard, and its note beside it."""
        result = write_shard(spec)
        note = self._note(spec)
        partial_note = note.with_name(f"{note.name}.{uuid.uuid4().hex}")  # another worker may write the same shard
        partial_note.write_text(json.dumps(asdict(result)))  # not flushed: a note that is cut off counts as none
        partial_note.replace(note)
        return result

    def read(self, spec: ShardSpec) -> ShardResult:
        """Returns what the note of a shard says; raises UsageError where it is damaged."""
        return _parsed(self._note(spec).read_text(), str(self._note(spec)))

    def discard(self) -> None:
        """Does nothing: `working_folder` removes what an error has left."""

    def publish(self, partial: Path, manifest: Manifest) -> Manifest:
        """Writes the manifest, puts the folder in its place, and returns the manifest that stands there."""
        # A worker of a cluster that went down leaves half of a shard behind, which another one has written whole.
        for leftover in {
            path for ending in (f"*{DONE}*", "*.tmp", PLAN_NAME, NOTES_NAME) for path in partial.glob(ending)
        }:
            leftover.unlink()
        manifest.write()
        put_in_place(partial, resolved(self.out))
        return replace(manifest, folder=self.out)

    def _note(self, spec: ShardSpec) -> Path:
        return spec.path.with_name(spec.path.name + DONE)


@dataclass(frozen=True)
class OnStore:
    """An object store. Workers write shards to temporary folders and copy them there.

    Without a manifest the place holds no records but an unfinished build, which the same command continues.
    """

    store: Store

    def __str__(self) -> str:
        """Returns the URL."""
        return self.store.url

    def check(self, *, overwrite: bool) -> None:
        """Checks that records may be written to the place.

        Raises:
            UsageError: it holds records and `overwrite` is false, or other files; or the store cannot be read.
        """
        names = self.store.names()
        if MANIFEST_NAME in names and not overwrite:
            raise UsageError(f"{self.store.url}: exists already. Pass --overwrite to replace it, or another name")
        if names and not names & {MANIFEST_NAME, PLAN_NAME}:
            raise UsageError(
                f"{self.store.url}: must be empty, or hold records or an unfinished build. Received: {len(names)}"
                f" other files, such as {min(names)}"
            )

    @contextmanager
    def working_folder(self) -> Iterator[Path]:
        """Gives a temporary folder for the small files."""
        with tempfile.TemporaryDirectory(prefix="tfmusic-") as folder:
            yield Path(folder)

    def finished_shards(self, folder: Path, fingerprint: str) -> dict[str, ShardResult]:
        """Returns the shards that an unfinished build of the same plan has left, and removes everything else."""
        names = self.store.names()
        is_same = MANIFEST_NAME not in names and self.store.read(PLAN_NAME) == fingerprint.encode()
        done = _noted(names, lambda name: (self.store.read(name) or b"").decode()) if is_same else {}
        old = names - {MANIFEST_NAME, PLAN_NAME, *done, *(name + DONE for name in done)}
        notes = {name for name in old if name.endswith(DONE)}
        # In this order: wherever it is interrupted, the same command can continue, and no old note is trusted.
        self.store.remove(notes | self.store.names(partial=True))
        (folder / PLAN_NAME).write_text(fingerprint)
        self.store.put(folder / PLAN_NAME)
        (folder / PLAN_NAME).unlink()
        self.store.remove(names & {MANIFEST_NAME})  # without it the rest is no records
        self.store.remove(old - notes)
        return done

    def write(self, spec: ShardSpec) -> ShardResult:
        """Writes a shard to the store, and then its note."""
        with tempfile.TemporaryDirectory(prefix="tfmusic-") as folder:
            local = replace(spec, path=Path(folder) / spec.path.name)
            result = write_shard(local)
            self.store.put(local.path)
            note = Path(folder) / (spec.path.name + DONE)
            note.write_text(json.dumps(asdict(result)))
            self.store.put(note)
        return result

    def read(self, spec: ShardSpec) -> ShardResult:
        """Returns what the note of a shard says; raises UsageError where it is damaged."""
        name = spec.path.name + DONE
        return _parsed((self.store.read(name) or b"").decode(), f"{self.store.url}/{name}")

    def discard(self) -> None:
        """Empties the place after an error."""
        self.store.remove(self.store.names() - {PLAN_NAME})
        self.store.remove({PLAN_NAME})  # last, as it says whose the others are

    def publish(self, folder: Path, manifest: Manifest) -> Manifest:
        """Copies the small files to the store, the manifest last, and returns it without a folder."""
        (folder / NOTES_NAME).unlink()
        for path in sorted(folder.iterdir()):
            self.store.put(path)
        manifest.write()
        self.store.put(folder / MANIFEST_NAME)
        self.store.remove(name for name in self.store.names() if name.endswith(DONE) or name == PLAN_NAME)
        return replace(manifest, folder=Path())


Place = InFolder | OnStore


def place_of(out: str | Path, *, absolute: bool = False) -> Place:
    """Returns the place that a path or URL names; `absolute` for workers with another working folder."""
    if is_url(out):
        return OnStore(Store(str(out)))
    return InFolder(Path(out).resolve() if absolute else Path(out))


def _check_partial(partial: Path) -> None:
    """Raises UsageError where the hidden folder of a build holds what no build writes: that would be removed."""
    fixed = {
        PLAN_NAME,
        NOTES_NAME,
        MANIFEST_NAME,
        TRACKS_NAME,
        TOKENS_NAME,
        *descriptions.NAMES,
        descriptions.CROISSANT_NAME,
    }
    for path in partial.iterdir():
        state = path.lstat()
        is_file = stat.S_ISREG(state.st_mode) and state.st_nlink == 1
        if not is_file or not (path.name in fixed or _SHARD_NAME.search(path.name) or is_temporary(path)):
            raise UsageError(
                f"{path}: is no file of a build, which would remove it; remove the folder {partial} yourself"
            )


def _noted(names: set[str], read_fn: Callable[[str], str]) -> dict[str, ShardResult]:
    """Returns the results of the shards among some files that have a whole note; `read_fn` reads a file by name."""
    results = {}
    for name in names:
        result = ShardResult.from_json(read_fn(name)) if name.endswith(DONE) else None
        if result is not None and result.shard.file in names:
            results[result.shard.file] = result
    return results


def _parsed(text: str, origin: str) -> ShardResult:
    result = ShardResult.from_json(text)
    if result is None:
        raise UsageError(f"{origin}: damaged: build the records again")
    return result
