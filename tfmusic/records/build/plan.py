"""What a build will write: splits, scale, and which tracks go into which shard."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tfmusic.core.contract import Contract
from tfmusic.core.feature import Feature
from tfmusic.core.scale import Scale, ScaleName
from tfmusic.core.track import Dataset, Track, check_track_id, check_unique
from tfmusic.datasets.splits import OFFICIAL, choose_splits
from tfmusic.errors import DataError
from tfmusic.features.audio import is_audio
from tfmusic.features.offline_augment import Change, OfflineAugment, changed_length, draw
from tfmusic.features.read import count_frames, frames_of
from tfmusic.records.build.beam import BeamRun
from tfmusic.records.build.shard import ALL, PlannedTrack, ShardSpec, short_reason
from tfmusic.records.build.survey import NOTES_NAME, count_all_samples, loudest_cells
from tfmusic.records.format import copies_of, even_ranges, n_shards, order_key, shard_name

SCALE_SAMPLE_TRACKS = 64


def add_copies(
    tracks: Sequence[Track], splits: Sequence[str], unreadable: Mapping[int, str], settings: OfflineAugment
) -> Iterator[tuple[Track, str, Change]]:
    """Yields the track, the split and the change of every copy, source by source.

    Args:
        tracks: all tracks.
        splits: that of each.
        unreadable: rows that get no copies.
        settings: how many copies, and what they get.

    Raises:
        DataError: a track is no sound file, or a copy would have the name of another track.
    """
    if not settings.copies:
        return
    chosen = [row for row, split in enumerate(splits) if row not in unreadable and _trains(split)]
    names = [f"{tracks[row].track_id}+copy{copy}" for row in chosen for copy in range(1, settings.copies + 1)]
    check_unique([*(track.track_id for track in tracks), *names], "offline_augment.copies")
    for row in chosen:
        track = tracks[row]
        if not is_audio(track.feature_path):
            raise DataError(
                f"{track.feature_path}: offline_augment.copies are made of sound files."
                " Received: another file; set copies=0"
            )
        for copy in range(1, settings.copies + 1):
            name = check_track_id(f"{track.track_id}+copy{copy}", "offline_augment.copies")
            yield replace(track, track_id=name), copies_of(splits[row]), draw(settings, track.track_id, copy)


def _trains(split: str) -> bool:
    return split == "train" or split.startswith("fold")


@dataclass(frozen=True)
class BuildOptions:
    """How a build is done, from the sections `data`, `feature` and `record` of a config."""

    feature: Feature
    segment_frames: int
    hop_frames: int
    dtype: str
    scale: Scale | ScaleName
    num_shards: int
    shard_bytes: int
    n_folds: int
    split_seed: int
    order_seed: int
    on_error: str
    workers: int
    backbone_tracks: tuple[str, ...] = ()
    min_s: float = 0.0
    segments: str = ALL
    segments_per_track: int = 1
    offline_augment: OfflineAugment = field(default_factory=OfflineAugment)
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
        digest = hashlib.sha256()
        for part in self._what_counts():  # one by one: as one text they would take more memory than the build
            digest.update(repr(part).encode())
        return digest.hexdigest()

    def _what_counts(self) -> Iterator[Any]:
        yield self.contract.to_dict()
        for row, track in enumerate(self.tracks):
            if row not in self.unreadable:
                state = track.feature_path.stat()
                yield track.track_id, track.labels, state.st_size, state.st_mtime_ns
        for spec in self.specs:
            yield replace(spec, path=Path(spec.path.name))


def make_plan(dataset: Dataset, options: BuildOptions, partial: Path) -> Plan:
    """Returns the plan of a build: every track looked at, splits chosen, scale measured, shards laid out.

    Raises:
        DataError: a track cannot be opened and `on_error` is `stop`, or a split would be empty.
    """
    samples = count_all_samples(
        dataset.tracks,
        options.feature,
        workers=options.workers,
        stop=options.on_error == "stop",
        notes=partial / NOTES_NAME,
    )
    n_frames, unreadable, source_bytes = _scan(dataset.tracks, options, samples)
    splits = choose_splits(dataset.tracks, dataset.labels, n_folds=options.n_folds, seed=options.split_seed)
    rows = [row for row, split in enumerate(splits) if row not in unreadable and split != "test"]
    scale = (
        options.scale
        if isinstance(options.scale, Scale)
        else _measure_scale(dataset.tracks, rows, options.scale, options)
    )
    contract = Contract(
        task=dataset.task,
        kind=dataset.kind,
        heads=dataset.heads,
        labels=dataset.labels,
        feature=options.feature,
        scale=scale,
        dtype=options.dtype,
        frames=options.segment_frames,
        hop_frames=options.hop_frames,
    )
    ids = {name: index for index, name in enumerate(dataset.labels)}
    shared: dict[tuple[int, ...], tuple[int, ...]] = {}  # one object for all tracks of the same labels

    def label_ids(track: Track) -> tuple[int, ...]:
        found = _label_ids(track, ids, dataset.kind)
        return shared.setdefault(found, found)

    planned = [
        PlannedTrack(
            row,
            track.track_id,
            track.feature_path,
            label_ids(track),
            n_frames[row],
        )
        for row, track in enumerate(dataset.tracks)
        if row not in unreadable
    ]
    tracks = list(dataset.tracks)
    for copy, split, change in add_copies(dataset.tracks, tuple(splits), unreadable, options.offline_augment):
        length = frames_of(changed_length(_length(samples[copy.feature_path]), change), options.feature)
        planned.append(PlannedTrack(len(tracks), copy.track_id, copy.feature_path, label_ids(copy), length, change))
        tracks.append(copy)
        splits.append(split)
        n_frames.append(length)
    bare = set(splits) - {splits[track.row] for track in planned}
    if bare and unreadable:
        row, reason = next(iter(unreadable.items()))
        raise DataError(
            f"split {min(bare)}: must hold at least one readable track. Received: none; {len(unreadable)} of"
            f" {len(splits)} tracks cannot be used, such as {dataset.tracks[row].track_id}: {reason}"
        )
    specs = [
        spec
        for split in sorted(set(splits), key=_split_order)
        for spec in _shard_specs(
            split,
            [track for track in planned if splits[track.row] == split],
            options,
            scale,
            dataset.task,
            partial,
        )
    ]
    return Plan(tuple(tracks), tuple(splits), tuple(n_frames), unreadable, tuple(specs), contract, source_bytes)


def _split_order(name: str) -> tuple[int, int, str]:
    """Returns the place of a split: train, validation, test; or folds by their number."""
    return OFFICIAL.index(name) if name in OFFICIAL else 0, len(name), name


def _label_ids(track: Track, ids: Mapping[str, int], kind: str) -> tuple[int, ...]:
    """Returns the labels of a track as they are stored: ascending, but the first one first where it is the label."""
    stored = tuple(ids[name] for name in track.labels)
    return stored if kind == "single" else tuple(sorted(stored))


def _scan(
    tracks: Sequence[Track], options: BuildOptions, samples: Mapping[Path, int | DataError]
) -> tuple[list[int], dict[int, str], int]:
    """Returns frames of every track, reasons of those that cannot be used, and the bytes of the files."""
    n_frames, unreadable, sizes = [], {}, {}
    for row, track in enumerate(tracks):
        try:
            n_frames.append(_count_frames(track, options, samples))
            sizes[str(track.feature_path)] = track.feature_path.stat().st_size  # a path that is a key is larger
        except DataError as error:
            if options.on_error == "stop":
                raise
            n_frames.append(0)
            unreadable[row] = short_reason(error, track.feature_path)
    return n_frames, unreadable, sum(sizes.values())


def _count_frames(track: Track, options: BuildOptions, samples: Mapping[Path, int | DataError]) -> int:
    if samples and track.feature_path in samples:
        n_frames = frames_of(_length(samples[track.feature_path]), options.feature)
    else:
        n_frames = count_frames(track.feature_path, track.track_id, options.feature)
    seconds = n_frames / options.feature.frames_per_s
    if seconds < options.min_s:
        raise DataError(
            f"{track.feature_path}: must last {options.min_s:g} s at least (data.min_s). Received: {seconds:.2f} s"
        )
    return n_frames


def _measure_scale(tracks: Sequence[Track], rows: list[int], name: ScaleName, options: BuildOptions) -> Scale:
    """Returns the scale of a sample of some tracks, chosen by hash; a track with faulty cells is left out here."""
    if name == "identity":
        return Scale.measure(name, [])
    rows = sorted(rows, key=lambda row: order_key(options.order_seed, tracks[row].track_id))
    chosen = [tracks[row] for row in rows[:SCALE_SAMPLE_TRACKS]]
    stop = options.on_error == "stop"
    return Scale.measure(name, loudest_cells(chosen, options.feature, workers=options.workers, stop=stop))


def _length(n_samples: int | DataError) -> int:
    if isinstance(n_samples, DataError):
        raise n_samples
    return n_samples


def _shard_specs(
    split: str, tracks: list[PlannedTrack], options: BuildOptions, scale: Scale, task: str, partial: Path
) -> Iterator[ShardSpec]:
    if not tracks:
        hint = "; lower data.folds" if split.startswith("fold") else ""
        raise DataError(f"split {split}: must hold at least one readable track. Received: none{hint}")
    tracks = sorted(tracks, key=lambda track: order_key(options.order_seed, track.track_id))
    whole = ShardSpec(
        path=partial,
        split=split,
        tracks=tuple(tracks),
        segment_frames=options.segment_frames,
        hop_frames=options.hop_frames,
        feature=options.feature,
        dtype=options.dtype,
        scale=scale,
        seed=options.order_seed,
        on_error=options.on_error,
        segments=options.segments,
        segments_per_track=options.segments_per_track,
    )
    sizes = [whole.segment_bytes * len(whole.starts(track)) for track in tracks]
    count = n_shards(sum(sizes), at_least=options.num_shards, shard_bytes=options.shard_bytes, n_tracks=len(tracks))
    for index, chosen in enumerate(even_ranges(sizes, count)):
        path = partial / shard_name(task, split, index, count)
        yield replace(whole, path=path, tracks=tuple(tracks[item] for item in chosen))
