"""Where shards are written, each with a note of what it holds: a folder, or an object store.

A note is written after its shard, and a build that goes on trusts it. A cluster may write a shard twice, also at the
same time: both have the same bytes, and nobody sees half of one.
"""

import json
import tempfile
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tfmusic.errors import UsageError
from tfmusic.records.build.shard import ShardResult, ShardSpec, write_shard
from tfmusic.records.store import Store

DONE = ".done.json"


@dataclass(frozen=True)
class InFolder:
    """Shards stand where their specs say."""

    def write(self, spec: ShardSpec) -> ShardResult:
        """Writes a shard, and its note beside it."""
        result = write_shard(spec)
        note = self._note(spec)
        mine = note.with_name(f"{note.name}.{uuid.uuid4().hex}")  # as a shard's, whoever writes it at the same time
        mine.write_text(json.dumps(asdict(result)))  # not flushed: a note that is cut off counts as none
        mine.replace(note)
        return result

    def read(self, spec: ShardSpec) -> ShardResult:
        """Returns what the note of a shard says; raises UsageError where it is damaged."""
        return _parsed(self._note(spec).read_text(), str(self._note(spec)))

    def _note(self, spec: ShardSpec) -> Path:
        return spec.path.with_name(spec.path.name + DONE)


@dataclass(frozen=True)
class OnStore:
    """Shards are written to a temporary folder of the worker, and go to the store one by one."""

    store: Store

    def write(self, spec: ShardSpec) -> ShardResult:
        """Writes a shard to the store, and then its note."""
        with tempfile.TemporaryDirectory(prefix="tfmusic-") as place:
            here = replace(spec, path=Path(place) / spec.path.name)
            result = write_shard(here)
            self.store.put(here.path)
            note = Path(place) / (spec.path.name + DONE)
            note.write_text(json.dumps(asdict(result)))
            self.store.put(note)
        return result

    def read(self, spec: ShardSpec) -> ShardResult:
        """Returns what the note of a shard says; raises UsageError where it is damaged."""
        name = spec.path.name + DONE
        return _parsed((self.store.read(name) or b"").decode(), f"{self.store.url}/{name}")


Place = InFolder | OnStore


def finished(names: set[str], read_fn: Callable[[str], str]) -> dict[str, ShardResult]:
    """Returns the results of the shards among some files that have a whole note; `read_fn` reads a file by its name."""
    found = {}
    for name in names:
        result = ShardResult.from_json(read_fn(name)) if name.endswith(DONE) else None
        if result is not None and result.shard.file in names:
            found[result.shard.file] = result
    return found


def _parsed(text: str, origin: str) -> ShardResult:
    result = ShardResult.from_json(text)
    if result is None:
        raise UsageError(f"{origin}: damaged: build the records again")
    return result
