"""The whole build: resume, write all shards, finish with the manifest, put the folder in its place.

While it grows, the folder stands beside its target under a hidden name. Finished shards there are kept when a build
is interrupted, and the next build with the same plan goes on from them.
"""

import csv
import fcntl
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tfmusic.core.files import check_target, file_sha256, put_in_place, text_cell
from tfmusic.core.track import Dataset
from tfmusic.datasets.metadata import tokens_of
from tfmusic.datasets.splits import has_official
from tfmusic.errors import DataError, UsageError
from tfmusic.records import tfds
from tfmusic.records.build.plan import BuildOptions, Plan, make_plan
from tfmusic.records.build.pool import write_all
from tfmusic.records.build.shard import ALL, ShardResult
from tfmusic.records.build.sinks import DONE, finished
from tfmusic.records.build.survey import NOTES_NAME
from tfmusic.records.manifest import MANIFEST_NAME, TOKENS_NAME, TRACKS_NAME, Manifest, Split, Statistics
from tfmusic.records.writer import warn_of_slow_checksums

RECORDS_VERSION = "1.0.0"
PLAN_NAME = "plan.sha256"


@dataclass(frozen=True)
class BuildSummary:
    """What the table at the end of a build shows; `place` is the folder or URL of the records."""

    place: str
    manifest: Manifest
    seconds: float
    resumed_shards: int


def build_records(dataset: Dataset, out: Path, options: BuildOptions, *, overwrite: bool) -> BuildSummary:
    """Writes the records folder `out` and returns what it holds.

    Raises:
        UsageError: the folder exists and `overwrite` is false, or another build is writing it.
        DataError: a track cannot be stored and `on_error` is `stop`, or a split would be empty.
    """
    check_target(out, overwrite=overwrite, marker=MANIFEST_NAME, what="records")
    warn_of_slow_checksums()
    begin = time.monotonic()
    partial = out.parent / f".{out.name}.partial"
    with _locked(partial):
        try:
            plan = make_plan(dataset, options, partial)
            done = _finished_shards(partial, plan)
            results = write_all(plan.specs, done, options.workers, options.beam)
            manifest = _finish(plan, options, results, partial, out)
        except (DataError, OSError):
            # Nothing half-written stays after an error; after Ctrl-C, a kill or a crash finished shards do.
            shutil.rmtree(partial, ignore_errors=True)
            raise
    return BuildSummary(str(out), replace(manifest, folder=out), time.monotonic() - begin, len(done))


@contextmanager
def _locked(partial: Path) -> Iterator[None]:
    """Holds the folder of a growing build for one process at a time."""
    partial.mkdir(parents=True, exist_ok=True)
    with (partial / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(f"{partial}: another build is writing here; wait for it to end") from error
        yield


def _finished_shards(partial: Path, plan: Plan) -> dict[str, ShardResult]:
    """Returns the shards that an interrupted build of the same plan has left, and clears everything else."""
    plan_path, fingerprint = partial / PLAN_NAME, plan.fingerprint()
    same = plan_path.is_file() and plan_path.read_text() == fingerprint
    names = {path.name for path in partial.iterdir()}
    done = finished(names, lambda name: (partial / name).read_text()) if same else {}
    for name in names - {"lock", NOTES_NAME, *done, *(name + DONE for name in done)}:
        (partial / name).unlink()
    plan_path.write_text(fingerprint)
    return done


def _finish(plan: Plan, options: BuildOptions, results: list[ShardResult], partial: Path, out: Path) -> Manifest:
    """Writes the small files, the manifest last, and puts the folder in its place."""
    manifest = write_small_files(plan, options, results, partial)
    # A worker of a cluster that went down leaves its half of a shard behind, and another one has written it whole.
    leftovers = ("*.done.json*", "*.tmp", PLAN_NAME, NOTES_NAME)
    for leftover in {path for pattern in leftovers for path in partial.glob(pattern)}:
        leftover.unlink()
    manifest.write()
    (partial / "lock").unlink()
    put_in_place(partial, out)
    return manifest


def write_small_files(plan: Plan, options: BuildOptions, results: list[ShardResult], folder: Path) -> Manifest:
    """Writes into a folder all files beside the shards but the manifest, which is returned."""
    skipped = dict(plan.unreadable)
    for result in results:
        skipped |= result.skipped
    _write_tracks(plan, skipped, folder / TRACKS_NAME)
    _write_tokens(plan, folder / TOKENS_NAME)
    manifest = _manifest(plan, options, results, skipped, folder)
    tfds.write(manifest, RECORDS_VERSION)
    return manifest


def _manifest(
    plan: Plan, options: BuildOptions, results: list[ShardResult], skipped: Mapping[int, str], partial: Path
) -> Manifest:
    splits = {}
    for name in dict.fromkeys(spec.split for spec in plan.specs):
        parts = [result for spec, result in zip(plan.specs, results, strict=True) if spec.split == name]
        n_tracks = sum(split == name and row not in skipped for row, split in enumerate(plan.splits))
        if n_tracks == 0:
            raise DataError(f"split {name}: must hold at least one usable track. Received: none")
        shards = tuple(part.shard for part in parts)
        splits[name] = Split(
            shards,
            n_tracks,
            sum(shard.segments for shard in shards),
            Statistics.merge([part.statistics for part in parts]),
        )
    n_frames = sum(split.statistics.frames for split in splits.values())
    return Manifest(
        folder=partial,
        name=plan.contract.task,
        contract=plan.contract,
        splits=splits,
        skipped=tuple({"track_id": plan.tracks[row].track_id, "reason": skipped[row]} for row in sorted(skipped)),
        clipped_cells=sum(result.clipped_cells for result in results),
        total_cells=n_frames * plan.contract.n_bins,
        source_bytes=plan.source_bytes,
        tracks_sha256=file_sha256(partial / TRACKS_NAME),
        settings={"folds": options.n_folds, "split_seed": options.split_seed, "order_seed": options.order_seed}
        | ({"splits": "official"} if has_official(plan.tracks) else {})
        | _choice(options)
        | ({"perturb": options.offline_augment.model_dump()} if options.offline_augment.copies else {})
        | ({"trunk_tracks": options.backbone_tracks} if options.backbone_tracks else {})
        | ({"tokens_sha256": file_sha256(tokens)} if (tokens := partial / TOKENS_NAME).is_file() else {}),
    )


def _choice(options: BuildOptions) -> dict[str, Any]:
    """Returns how segments were chosen, for the manifest; nothing where all are stored."""
    if options.segments == ALL:
        return {}
    return {"segments": options.segments, "segments_per_track": options.segments_per_track}


def _write_tokens(plan: Plan, path: Path) -> None:
    """Writes the metadata tokens of every track, a line each; no file where no track has any."""
    tokens = [tokens_of(track.metadata) for track in plan.tracks]
    if any(tokens):
        path.write_text("".join(json.dumps(some, ensure_ascii=False) + "\n" for some in tokens), encoding="utf-8")


def _write_tracks(plan: Plan, skipped: Mapping[int, str], path: Path) -> None:
    header = ("row", "track_id", "split", "labels", "n_frames", "artists", "album", "skipped")
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(header)
        for row, track in enumerate(plan.tracks):
            labels, artists = (json.dumps(names, ensure_ascii=False) for names in (track.labels, track.artists))
            known = (row, track.track_id, plan.splits[row], labels, plan.n_frames[row], artists)
            table.writerow((*known, text_cell(track.album or ""), text_cell(skipped.get(row, ""))))
