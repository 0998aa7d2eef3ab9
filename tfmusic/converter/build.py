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

from tfmusic.checksums import file_sha256
from tfmusic.converter.choice import ALL
from tfmusic.converter.look import NOTES_NAME
from tfmusic.converter.plan import BuildOptions, Plan, make_plan
from tfmusic.converter.pool import write_all
from tfmusic.converter.shard import ShardResult
from tfmusic.datasets.splits import has_official
from tfmusic.datasets.tokens import tokens_of
from tfmusic.datasets.track import Dataset
from tfmusic.errors import DataError, UsageError
from tfmusic.folders import check_target, put_in_place, text_cell
from tfmusic.records import tfds
from tfmusic.records.manifest import (
    MANIFEST_NAME,
    TOKENS_NAME,
    TRACKS_NAME,
    Manifest,
    Shard,
    Split,
    Statistics,
)

RECORDS_VERSION = "1.0.0"


@dataclass(frozen=True)
class BuildSummary:
    """What the table at the end of a build shows."""

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
    begin = time.monotonic()
    partial = out.parent / f".{out.name}.partial"
    with _locked(partial):
        try:
            plan = make_plan(dataset, options, partial)
            done = _finished_shards(partial, plan)
            results = write_all(plan.specs, done, options.workers)
            manifest = _finish(plan, options, results, partial, out)
        except (DataError, OSError):
            # Nothing half-written stays after an error; after Ctrl-C, a kill or a crash finished shards do.
            shutil.rmtree(partial, ignore_errors=True)
            raise
    return BuildSummary(replace(manifest, folder=out), time.monotonic() - begin, len(done))


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
    plan_path, fingerprint = partial / "plan.sha256", plan.fingerprint()
    same = plan_path.is_file() and plan_path.read_text() == fingerprint
    done = {}
    for path in partial.glob("*.done.json") if same else ():
        result = _read_result(path)
        if result is not None and (partial / result.shard.file).is_file():
            done[result.shard.file] = result
    keep = {"lock", NOTES_NAME, *done, *(f"{name}.done.json" for name in done)}
    for path in partial.iterdir():
        if path.name not in keep:
            path.unlink()
    plan_path.write_text(fingerprint)
    return done


def _read_result(path: Path) -> ShardResult | None:
    try:
        fields = json.loads(path.read_text())
    except ValueError:  # the machine went down while this was written
        return None
    numbers = fields["statistics"]
    return ShardResult(
        Shard(**fields["shard"]),
        Statistics(numbers["frames"], tuple(numbers["sum"]), tuple(numbers["sum_of_squares"])),
        fields["clipped_cells"],
        {int(row): reason for row, reason in fields["skipped"].items()},
    )


def _finish(plan: Plan, options: BuildOptions, results: list[ShardResult], partial: Path, out: Path) -> Manifest:
    """Writes the small files, the manifest last, and puts the folder in its place."""
    skipped = dict(plan.unreadable)
    for result in results:
        skipped |= result.skipped
    _write_tracks(plan, skipped, partial / TRACKS_NAME)
    _write_tokens(plan, partial / TOKENS_NAME)
    manifest = _manifest(plan, options, results, skipped, partial)
    tfds.write(manifest, RECORDS_VERSION)
    for leftover in [*partial.glob("*.done.json"), partial / "plan.sha256", partial / NOTES_NAME]:
        leftover.unlink()
    manifest.write()
    (partial / "lock").unlink()
    put_in_place(partial, out)
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
        | ({"perturb": dict(options.perturb)} if options.perturb else {})
        | ({"trunk_tracks": options.trunk_tracks} if options.trunk_tracks else {})
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
