"""A build whose records go to an object store, where nothing can be renamed or locked.

Shards go there one by one, each with its note; the small files and the manifest come last. Without a manifest the place
holds no records, but an unfinished build, which the same command goes on with.
"""

import tempfile
import time
from dataclasses import replace
from pathlib import Path

from tfmusic.core.track import Dataset
from tfmusic.errors import DataError, UsageError
from tfmusic.records.build.build import PLAN_NAME, BuildSummary, write_small_files
from tfmusic.records.build.plan import BuildOptions, Plan, make_plan
from tfmusic.records.build.pool import write_all
from tfmusic.records.build.shard import ShardResult
from tfmusic.records.build.sinks import DONE, OnStore, finished
from tfmusic.records.build.survey import NOTES_NAME
from tfmusic.records.manifest import MANIFEST_NAME
from tfmusic.records.store import Store


def check_store(store: Store, *, overwrite: bool) -> None:
    """Checks that records may be written to a place.

    Raises:
        UsageError: there are some and `overwrite` is false, or what is there is not ours; or the store cannot be read.
    """
    names = store.names()
    if MANIFEST_NAME in names and not overwrite:
        raise UsageError(f"{store.url}: exists already. Pass --overwrite to replace it, or another name")
    if names and not names & {MANIFEST_NAME, PLAN_NAME}:
        raise UsageError(
            f"{store.url}: must be empty, or hold records or an unfinished build. Received: {len(names)} other files,"
            f" such as {min(names)}"
        )


def build_on_store(dataset: Dataset, store: Store, options: BuildOptions, *, overwrite: bool) -> BuildSummary:
    """Writes records to a store and returns what they hold; the place of records to replace is emptied first.

    Raises:
        UsageError: as `check_store`.
        DataError: a track cannot be stored and `on_error` is `stop`, or a split would be empty.
    """
    check_store(store, overwrite=overwrite)
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tfmusic-") as name:
        folder = Path(name)
        plan = make_plan(dataset, options, folder)
        done = _finished_shards(store, plan, folder)
        try:
            results = write_all(plan.specs, done, options.workers, options.beam, OnStore(store))
            (folder / NOTES_NAME).unlink()
            manifest = write_small_files(plan, options, results, folder)
        except DataError:
            store.remove(store.names() - {PLAN_NAME})
            store.remove({PLAN_NAME})  # last, as it says whose the others are
            raise
        for path in sorted(folder.iterdir()):
            store.put(path)
        manifest.write()
        store.put(folder / MANIFEST_NAME)
        store.remove(name for name in store.names() if name.endswith(DONE) or name == PLAN_NAME)
    return BuildSummary(store.url, replace(manifest, folder=Path()), time.monotonic() - begin, len(done))


def _finished_shards(store: Store, plan: Plan, folder: Path) -> dict[str, ShardResult]:
    """Returns the shards that an unfinished build of the same plan has left, and removes everything else."""
    names, fingerprint = store.names(), plan.fingerprint()
    same = MANIFEST_NAME not in names and store.read(PLAN_NAME) == fingerprint.encode()
    done = finished(names, lambda name: (store.read(name) or b"").decode()) if same else {}
    old = names - {MANIFEST_NAME, PLAN_NAME, *done, *(name + DONE for name in done)}
    notes = {name for name in old if name.endswith(DONE)}
    # In this order, wherever it is interrupted, the place is ours to go on with, and no old note is trusted.
    store.remove(notes | store.names(partial=True))
    (folder / PLAN_NAME).write_text(fingerprint)
    store.put(folder / PLAN_NAME)
    (folder / PLAN_NAME).unlink()
    store.remove(names & {MANIFEST_NAME})  # what stands without it is no records
    store.remove(old - notes)
    return done
