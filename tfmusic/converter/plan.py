"""What a build will write: folds, scale, and which tracks go into which shard."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tfmusic.contract import Contract
from tfmusic.converter.beam import BeamRun
from tfmusic.converter.shard import PlannedTrack, ShardSpec, short_reason
from tfmusic.datasets.splits import deal_folds
from tfmusic.datasets.track import Dataset, Track
from tfmusic.errors import DataError
from tfmusic.features.scale import Scale
from tfmusic.features.segments import segment_starts
from tfmusic.features.source import count_frames, read_feature
from tfmusic.records.shards import deal_ranges, n_shards, order_key, shard_name

SCALE_SAMPLE_TRACKS = 64


@dataclass(frozen=True)
class BuildOptions:
    """How a build is done, from the sections `data`, `feature` and `record` of a config."""

    feature: Mapping[str, Any]
    segment_frames: int
    hop_frames: int
    dtype: str
    scale: Any
    scale_range: tuple[float, float] | None
    num_shards: int
    shard_bytes: int
    n_folds: int
    split_seed: int
    order_seed: int
    on_error: str
    workers: int
    trunk_tracks: tuple[str, ...] = ()
    beam: BeamRun | None = None


@dataclass(frozen=True)
class Plan:
    """Tracks with their folds, the shards to write, and the tracks that cannot even be opened."""

    tracks: tuple[Track, ...]
    splits: tuple[str, ...]
    n_frames: tuple[int, ...]
    unreadable: Mapping[int, str]
    specs: tuple[ShardSpec, ...]
    contract: Contract
    source_bytes: int

    def fingerprint(self) -> str:
        """Returns a hash of all that the records depend on, file sizes and times included."""
        files = [
            (
                track.track_id,
                track.labels,
                track.feature_path.stat().st_size,
                track.feature_path.stat().st_mtime_ns,
            )
            for row, track in enumerate(self.tracks)
            if row not in self.unreadable
        ]
        specs = [replace(spec, path=Path(spec.path.name)) for spec in self.specs]
        text = json.dumps([files, self.contract.to_dict(), [asdict(spec) for spec in specs]], default=str)
        return hashlib.sha256(text.encode()).hexdigest()


def make_plan(dataset: Dataset, options: BuildOptions, partial: Path) -> Plan:
    """Returns the plan of a build: every track looked at, folds dealt, scale measured, shards laid out.

    Raises:
        DataError: a track cannot be opened and `on_error` is `stop`, or a split would be empty.
    """
    n_frames, unreadable, source_bytes = _scan(dataset.tracks, options.feature, options.on_error)
    splits = deal_folds(dataset.tracks, dataset.labels, n_folds=options.n_folds, seed=options.split_seed)
    scale = (
        Scale(options.scale, *options.scale_range)
        if options.scale_range
        else _measure_scale(dataset.tracks, unreadable, options)
    )
    contract = Contract(
        task=dataset.task,
        kind=dataset.kind,
        heads=dataset.heads,
        labels=dataset.labels,
        feature=dict(options.feature),
        scale=scale.to_dict(),
        dtype=options.dtype,
        frames=options.segment_frames,
        hop_frames=options.hop_frames,
    )
    ids = {name: index for index, name in enumerate(dataset.labels)}
    planned = [
        PlannedTrack(
            row,
            track.track_id,
            track.feature_path,
            tuple(sorted(ids[name] for name in track.labels)),
            n_frames[row],
        )
        for row, track in enumerate(dataset.tracks)
        if row not in unreadable
    ]
    specs = [
        spec
        for split in sorted(set(splits), key=lambda name: (len(name), name))
        for spec in _shard_specs(
            split,
            [track for track in planned if splits[track.row] == split],
            options,
            scale,
            dataset.task,
            partial,
        )
    ]
    return Plan(dataset.tracks, tuple(splits), tuple(n_frames), unreadable, tuple(specs), contract, source_bytes)


def _scan(tracks: Sequence[Track], feature: Mapping[str, Any], on_error: str) -> tuple[list[int], dict[int, str], int]:
    """Returns frames of every track, reasons of those that cannot be opened, and the bytes of the files."""
    n_frames, unreadable, sizes = [], {}, {}
    for row, track in enumerate(tracks):
        try:
            n_frames.append(count_frames(track.feature_path, track.track_id, feature))
            sizes[track.feature_path] = track.feature_path.stat().st_size
        except DataError as error:
            if on_error == "stop":
                raise
            n_frames.append(0)
            unreadable[row] = short_reason(error, track.feature_path)
    return n_frames, unreadable, sum(sizes.values())


def _measure_scale(tracks: Sequence[Track], unreadable: Mapping[int, str], options: BuildOptions) -> Scale:
    """Returns the scale of a sample of tracks, chosen by hash; a track with faulty cells is left out here."""
    if options.scale == "identity":
        return Scale.measure(options.scale, [])
    rows = [row for row in range(len(tracks)) if row not in unreadable]
    rows.sort(key=lambda row: order_key(options.order_seed, tracks[row].track_id))
    mels = []
    for row in rows[:SCALE_SAMPLE_TRACKS]:
        try:
            mel = read_feature(tracks[row].feature_path, tracks[row].track_id, options.feature)
        except DataError:
            if options.on_error == "stop":
                raise
            continue
        mels.append(mel.max(axis=1))  # the loudest cell is all that counts
    return Scale.measure(options.scale, mels)


def _shard_specs(
    split: str, tracks: list[PlannedTrack], options: BuildOptions, scale: Scale, task: str, partial: Path
) -> Iterator[ShardSpec]:
    if not tracks:
        raise DataError(f"split {split}: must hold at least one readable track. Received: none; lower data.folds")
    tracks = sorted(tracks, key=lambda track: order_key(options.order_seed, track.track_id))
    n_bins = int(options.feature["n_bins"])
    segment_bytes = options.segment_frames * n_bins * np.dtype(options.dtype).itemsize
    sizes = [
        segment_bytes
        * len(segment_starts(track.n_frames, frames=options.segment_frames, hop_frames=options.hop_frames))
        for track in tracks
    ]
    count = n_shards(sum(sizes), at_least=options.num_shards, shard_bytes=options.shard_bytes, n_tracks=len(tracks))
    for index, chosen in enumerate(deal_ranges(sizes, count)):
        yield ShardSpec(
            path=partial / shard_name(task, split, index, count),
            split=split,
            tracks=tuple(tracks[item] for item in chosen),
            segment_frames=options.segment_frames,
            hop_frames=options.hop_frames,
            feature=options.feature,
            dtype=options.dtype,
            scale=scale,
            seed=options.order_seed,
            on_error=options.on_error,
        )
