"""One shard: a pure function of its spec and the tracks' files, so workers and their timing play no part."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tfmusic.config.sections import RecordSection
from tfmusic.core.feature import Feature
from tfmusic.core.scale import Encoder, Scale
from tfmusic.core.windows import segment_starts, tile_to
from tfmusic.errors import DataError, printable
from tfmusic.features.offline_augment import Change
from tfmusic.features.read import read_feature
from tfmusic.records.format import SegmentHeader, order_key
from tfmusic.records.manifest import RunningStatistics, Shard, Statistics
from tfmusic.records.writer import ShardWriter


def stored_starts(n_frames: int, record: RecordSection) -> list[int]:
    """Returns the first frames of the segments of a track that are stored, ascending."""
    if record.chosen is not None:
        starts = record.chosen.starts(n_frames)
    else:
        starts = segment_starts(n_frames, frames=record.segment_frames, hop_frames=record.hop_frames)
    return [int(start) for start in starts]


MOST_CLIPPED = 0.5  # share of a track's codes beyond which it is named


@dataclass(frozen=True, slots=True)
class PlannedTrack:
    """A track with all that a worker needs to store it; `change` makes it a changed copy of its file."""

    row: int
    track_id: str
    path: Path
    label: tuple[int, ...]
    n_frames: int
    change: Change | None = None
    embedded_as: str | None = None


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
    min_share: float

    @property
    def segment_bytes(self) -> int:
        """Size of the codes of a segment."""
        return self.record.segment_frames * self.feature.n_bins * np.dtype(self.record.dtype).itemsize

    def starts(self, track: PlannedTrack) -> list[int]:
        """Returns the first frames of the segments of a track that are stored, ascending."""
        return stored_starts(track.n_frames, self.record)


@dataclass(frozen=True)
class ShardResult:
    """What a worker reports of a finished shard."""

    shard: Shard
    statistics: Statistics
    clipped_cells: int
    skipped: Mapping[int, str]
    clipped: Mapping[int, float] = field(default_factory=dict)  # share of a track's cells, of the most clipped tracks

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
            {int(row): share for row, share in fields.get("clipped", {}).items()},
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
    n_clipped, clipped, complete = 0, dict[int, float](), True
    headers = _ordered_headers(spec, tracks)
    with ShardWriter(spec.path, headers, spec.segment_bytes) as writer:
        for track in tracks:
            try:
                mel = _read(track, spec)
            except DataError as error:
                if spec.on_error == "stop":
                    raise
                skipped[track.row], complete = short_reason(error, track.path), False
                continue
            codes, starts = encoder.encode(mel), spec.starts(track)
            stored = codes[_stored_frames(len(codes), starts, spec)]
            statistics.add(stored)
            n_here = encoder.count_clipped(stored)
            n_clipped += n_here
            if n_here > MOST_CLIPPED * stored.size:
                clipped[track.row] = n_here / stored.size
            tiled = tile_to(codes, spec.record.segment_frames)
            for start in starts:
                writer.write(track.row, start, tiled[start : start + spec.record.segment_frames])
        if not complete:
            return None
        size, digest = writer.finish()
    shard = Shard(spec.path.name, len(headers), size, digest)
    return ShardResult(shard, statistics.result(), n_clipped, skipped, clipped)


def _stored_frames(n_frames: int, starts: Sequence[int], spec: ShardSpec) -> np.ndarray | slice:
    """Returns which frames of a track are in some segment that is stored."""
    if spec.record.chosen is None:
        return slice(None)
    stored = np.zeros(n_frames, bool)
    for start in starts:
        stored[start : start + spec.record.segment_frames] = True
    return stored


def short_reason(error: DataError, path: Path) -> str:
    """Returns the reason why a track is skipped, with its file named but not the folders of this machine."""
    reason = str(error).replace(printable(str(path)), printable(path.name))
    for folder in path.absolute().parents[:-1]:  # the longest first; not the root
        reason = reason.replace(printable(f"{folder}/"), "").replace(printable(str(folder)), printable(folder.name))
    return reason


def _read(track: PlannedTrack, spec: ShardSpec) -> np.ndarray:
    track_id = track.embedded_as or track.track_id
    mel = read_feature(track.path, track_id, spec.feature, change=track.change, min_share=spec.min_share)
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
