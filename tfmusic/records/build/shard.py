"""One shard: a pure function of its spec and the tracks' files, so workers and their timing play no part."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tfmusic.config.sections import RecordSection
from tfmusic.core.feature import Feature
from tfmusic.core.scale import Encoder, Scale
from tfmusic.core.windows import segment_starts, tile_to
from tfmusic.errors import DataError
from tfmusic.features.offline_augment import Change
from tfmusic.features.read import read_feature
from tfmusic.records.format import SegmentHeader, order_key
from tfmusic.records.manifest import RunningStatistics, Shard, Statistics
from tfmusic.records.writer import ShardWriter

ALL = "all"


def stored_starts(n_frames: int, track_id: str, record: RecordSection) -> list[int]:
    """Returns the first frames of the segments of a track that are stored, ascending.

    `record.segments` chooses: all of them, or `segments_per_track`: the first, some at random by the track's name, or
    evenly spaced ones, of which one alone is the middle. A track that has no more than that keeps all.
    """
    count = record.segments_per_track
    starts: list[int] = segment_starts(n_frames, frames=record.segment_frames, hop_frames=record.hop_frames).tolist()
    if record.segments == ALL or len(starts) <= count:
        return starts
    if record.segments == "first":
        return starts[:count]
    if record.segments == "random":
        return sorted(sorted(starts, key=lambda start: order_key(record.seed, track_id, start))[:count])
    last = len(starts) - 1
    places = np.round(np.linspace(0, last, count)) if count > 1 else [last // 2]
    return [starts[int(place)] for place in places]


@dataclass(frozen=True, slots=True)
class PlannedTrack:
    """A track with all that a worker needs to store it; `change` makes it a changed copy of its file."""

    row: int
    track_id: str
    path: Path
    label: tuple[int, ...]
    n_frames: int
    change: Change | None = None


@dataclass(frozen=True)
class ShardSpec:
    """All that the bytes of one shard depend on."""

    path: Path
    split: str
    tracks: tuple[PlannedTrack, ...]
    record: RecordSection
    feature: Feature
    scale: Scale
    on_error: str

    @property
    def segment_bytes(self) -> int:
        """Size of the codes of a segment."""
        return self.record.segment_frames * self.feature.n_bins * np.dtype(self.record.dtype).itemsize

    def starts(self, track: PlannedTrack) -> list[int]:
        """Returns the first frames of the segments of a track that are stored, ascending."""
        return stored_starts(track.n_frames, track.track_id, self.record)


@dataclass(frozen=True)
class ShardResult:
    """What a worker reports of a finished shard."""

    shard: Shard
    statistics: Statistics
    clipped_cells: int
    skipped: Mapping[int, str]

    @classmethod
    def from_json(cls, text: str) -> "ShardResult | None":
        """Returns a result that was noted as JSON, or None where the machine went down while it was written."""
        try:
            fields = json.loads(text)
        except ValueError:
            return None
        numbers = fields["statistics"]
        return cls(
            Shard(**fields["shard"]),
            Statistics(numbers["frames"], tuple(numbers["sum"]), tuple(numbers["sum_of_squares"])),
            fields["clipped_cells"],
            {int(row): reason for row, reason in fields["skipped"].items()},
        )


def write_shard(spec: ShardSpec) -> ShardResult:
    """Writes one shard and returns what it holds.

    Raises:
        DataError: a track cannot be stored and `on_error` is `stop`.
    """
    skipped: dict[int, str] = {}
    while True:  # a second time only where the first found tracks to skip
        kept = [track for track in spec.tracks if track.row not in skipped]
        result = _try_shard(spec, kept, skipped)
        if result is not None:
            return result


def _try_shard(spec: ShardSpec, tracks: list[PlannedTrack], skipped: dict[int, str]) -> ShardResult | None:
    """Returns the result, or None after adding to `skipped` the tracks that cannot be stored."""
    encoder, statistics = (
        Encoder(spec.scale, spec.record.dtype),
        RunningStatistics(spec.feature.n_bins, spec.record.dtype),
    )
    clipped, complete = 0, True
    headers = _ordered_headers(spec, tracks)
    with ShardWriter(spec.path, headers, spec.segment_bytes) as writer:
        for track in tracks:
            try:
                mel = _read(track, spec.feature)
            except DataError as error:
                if spec.on_error == "stop":
                    raise
                skipped[track.row], complete = short_reason(error, track.path), False
                continue
            codes, starts = encoder.encode(mel), spec.starts(track)
            stored = codes[_stored_frames(len(codes), starts, spec)]
            statistics.add(stored)
            clipped += encoder.count_clipped(stored)
            tiled = tile_to(codes, spec.record.segment_frames)
            for start in starts:
                writer.write(track.row, start, tiled[start : start + spec.record.segment_frames])
        if not complete:
            return None
        size, digest = writer.finish()
    shard = Shard(spec.path.name, len(headers), size, digest)
    return ShardResult(shard, statistics.result(), clipped, skipped)


def _stored_frames(n_frames: int, starts: Sequence[int], spec: ShardSpec) -> np.ndarray | slice:
    """Returns which frames of a track are in some segment that is stored."""
    if spec.record.segments == ALL:
        return slice(None)
    stored = np.zeros(n_frames, bool)
    for start in starts:
        stored[start : start + spec.record.segment_frames] = True
    return stored


def short_reason(error: DataError, path: Path) -> str:
    """Returns the reason why a track is skipped, with its file named but not the folders of this machine."""
    return str(error).replace(str(path), path.name)


def _read(track: PlannedTrack, feature: Feature) -> np.ndarray:
    mel = read_feature(track.path, track.track_id, feature, change=track.change)
    if mel.shape[1] != track.n_frames:
        raise DataError(
            f"{track.path}: changed while the records were built: {track.n_frames} frames, now {mel.shape[1]}"
        )
    return mel


def _ordered_headers(spec: ShardSpec, tracks: Sequence[PlannedTrack]) -> list[SegmentHeader]:
    headers = [
        SegmentHeader(
            track_id=track.track_id,
            track=track.row,
            start=start,
            valid=min(spec.record.segment_frames, track.n_frames),
            label=track.label,
        )
        for track in tracks
        for start in spec.starts(track)
    ]
    return sorted(headers, key=lambda header: order_key(spec.record.seed, header.track_id, header.start))
