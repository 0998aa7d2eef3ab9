"""What a build will write: splits, scale, and which tracks go into which shard."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tfmusic.config.sections import Config
from tfmusic.console import console
from tfmusic.core.contract import Contract
from tfmusic.core.scale import Scale, too_loud
from tfmusic.core.track import Dataset, Track, check_track_id, check_unique
from tfmusic.datasets.splits import OFFICIAL, choose_splits
from tfmusic.errors import DataError
from tfmusic.features.audio import is_audio
from tfmusic.features.offline_augment import Change, OfflineAugment, changed_length, draw
from tfmusic.features.read import count_frames, frames_of
from tfmusic.records.build.beam import BeamRun
from tfmusic.records.build.shard import PlannedTrack, ShardSpec, short_reason
from tfmusic.records.build.survey import NOTES_NAME, count_all_samples, loudest_values
from tfmusic.records.format import copies_of, even_ranges, n_shards, order_key, shard_name

SCALE_SAMPLE_TRACKS = 64
_SHOWN = 5  # tracks that a message names


def add_copies(
    tracks: Sequence[Track], splits: Sequence[str], unreadable: Mapping[int, str], section: OfflineAugment
) -> Iterator[tuple[Track, str, Change]]:
    """Yields the track, the split and the change of every copy, source by source.

    Args:
        tracks: all tracks.
        splits: that of each.
        unreadable: rows that get no copies.
        section: how many copies, and what they get.

    Raises:
        DataError: a track is no sound file, or a copy would have the name of another track.
    """
    if not section.copies:
        return
    chosen = [row for row, split in enumerate(splits) if row not in unreadable and _trains(split)]
    names = [f"{tracks[row].track_id}+copy{copy}" for row in chosen for copy in range(1, section.copies + 1)]
    check_unique([*(track.track_id for track in tracks), *names], "offline_augment.copies")
    for row in chosen:
        track = tracks[row]
        if not is_audio(track.feature_path):
            raise DataError(
                f"{track.feature_path}: offline_augment.copies are made of sound files."
                " Received: another file; set copies=0"
            )
        for copy in range(1, section.copies + 1):
            name = check_track_id(f"{track.track_id}+copy{copy}", "offline_augment.copies")
            yield replace(track, track_id=name), copies_of(splits[row]), draw(section, track.track_id, copy)


def _trains(split: str) -> bool:
    return split == "train" or split.startswith("fold")


@dataclass(frozen=True)
class Build:
    """One build: the tracks, a config, and what the caller adds.

    Attributes:
        dataset: the tracks, with the splits that are kept.
        config: of which the sections data, feature, record and offline_augment count.
        workers: processes.
        scale: of the model whose contract the records keep; None measures one.
        backbone_tracks: names of the tracks that trained the network whose embeddings are stored.
        beam: where Apache Beam runs, in place of local processes.
        paths: of the tracks' files in the data, for tracks.csv; none where the ids name the files.
    """

    dataset: Dataset
    config: Config
    workers: int = 1
    scale: Scale | None = None
    backbone_tracks: tuple[str, ...] = ()
    beam: BeamRun | None = None
    paths: tuple[str, ...] = ()

    @property
    def stops(self) -> bool:
        """Whether the first track that cannot be used ends the build."""
        return self.config.data.on_error == "stop"


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
        for part in self._dependencies():  # one by one: as one text they would take more memory than the build
            digest.update(repr(part).encode())
        return digest.hexdigest()

    def _dependencies(self) -> Iterator[Any]:
        yield self.contract.to_dict()
        for row, track in enumerate(self.tracks):
            if row not in self.unreadable:
                state = track.feature_path.stat()
                yield track.track_id, track.labels, state.st_size, state.st_mtime_ns
        for spec in self.specs:
            yield replace(spec, path=Path(spec.path.name))


def make_plan(build: Build, folder: Path) -> Plan:
    """Returns the plan of a build: every track looked at, splits chosen, scale measured, shards laid out.

    Args:
        build: what to build.
        folder: where its shards will stand, and the notes of an interrupted build.

    Raises:
        DataError: a track cannot be opened and `data.on_error` is stop, or a split would be empty.
    """
    dataset, config, feature = build.dataset, build.config, build.config.feature
    samples = count_all_samples(
        dataset.tracks,
        feature,
        config.data,
        workers=build.workers,
        notes=folder / NOTES_NAME,
    )
    n_frames, unreadable, source_bytes = _scan(build, samples)
    splits = choose_splits(dataset.tracks, dataset.labels, n_folds=config.data.folds, seed=config.data.seed)
    rows = [row for row, split in enumerate(splits) if row not in unreadable and split != "test"]
    scale = build.scale or _measure_scale(build, rows)
    label_ids = _LabelIds(dataset)
    planned = [
        PlannedTrack(
            row, track.track_id, track.feature_path, label_ids.of(track), n_frames[row], embedded_as=track.embedded_as
        )
        for row, track in enumerate(dataset.tracks)
        if row not in unreadable
    ]
    tracks = list(dataset.tracks)
    for copy, split, change in add_copies(dataset.tracks, tuple(splits), unreadable, config.offline_augment):
        length = frames_of(changed_length(_length(samples[copy.feature_path]), change), feature)
        planned.append(PlannedTrack(len(tracks), copy.track_id, copy.feature_path, label_ids.of(copy), length, change))
        tracks.append(copy)
        splits.append(split)
        n_frames.append(length)
    _check_splits(dataset.tracks, splits, unreadable)
    contract = Contract(
        task=dataset.task,
        kind=dataset.kind,
        heads=dataset.heads,
        labels=dataset.labels,
        feature=feature,
        scale=scale,
        dtype=config.record.dtype,
        frames=config.record.segment_frames,
        hop_frames=config.record.hop_frames,
        segments=config.record.chosen,
    )
    specs: list[ShardSpec] = []
    for split in sorted(set(splits), key=_split_order):
        chosen = [track for track in planned if splits[track.row] == split]
        specs += _shard_specs(split, chosen, build, contract, folder)
    return Plan(tuple(tracks), tuple(splits), tuple(n_frames), unreadable, tuple(specs), contract, source_bytes)


def _check_splits(tracks: Sequence[Track], splits: Sequence[str], unreadable: Mapping[int, str]) -> None:
    """Raises DataError where no track of a split can be used."""
    usable = {split for row, split in enumerate(splits) if row not in unreadable}
    empty = set(splits) - usable
    if empty:
        row, reason = next(iter(unreadable.items()))
        raise DataError(
            f"split {min(empty)}: must hold at least one readable track. Received: none; {len(unreadable)} of"
            f" {len(splits)} tracks cannot be used, such as {tracks[row].track_id}: {reason}"
        )


def _split_order(name: str) -> tuple[int, int, str]:
    """Returns the position of a split: train, validation, test; or folds by their number."""
    return OFFICIAL.index(name) if name in OFFICIAL else 0, len(name), name


class _LabelIds:
    """Labels of tracks as they are stored: numbers, ascending; of a track with one label that one first."""

    def __init__(self, dataset: Dataset) -> None:
        self._ids = {name: index for index, name in enumerate(dataset.labels)}
        self._is_single = dataset.kind == "single"
        self._shared: dict[tuple[int, ...], tuple[int, ...]] = {}  # one object for all tracks of the same labels

    def of(self, track: Track) -> tuple[int, ...]:
        """Returns the labels of a track."""
        ids = tuple(self._ids[name] for name in track.labels)
        ids = ids if self._is_single else tuple(sorted(ids))
        return self._shared.setdefault(ids, ids)


def _scan(build: Build, samples: Mapping[Path, int | DataError]) -> tuple[list[int], dict[int, str], int]:
    """Returns frames of every track, reasons of those that cannot be used, and the bytes of the files."""
    n_frames, unreadable, sizes = [], {}, {}
    for row, track in enumerate(build.dataset.tracks):
        try:
            n_frames.append(_count_frames(track, build.config, samples))
            sizes[str(track.feature_path)] = track.feature_path.stat().st_size  # text takes less memory than a path
        except DataError as error:
            if build.stops:
                raise
            n_frames.append(0)
            unreadable[row] = short_reason(error, track.feature_path)
    return n_frames, unreadable, sum(sizes.values())


def _count_frames(track: Track, config: Config, samples: Mapping[Path, int | DataError]) -> int:
    if track.feature_path in samples:
        n_frames = frames_of(_length(samples[track.feature_path]), config.feature)
    else:
        track_id, min_share = track.embedded_as or track.track_id, config.data.min_share
        n_frames = count_frames(track.feature_path, track_id, config.feature, min_share)
    seconds, min_s = n_frames / config.feature.frames_per_s, config.data.min_s
    if seconds < min_s:
        raise DataError(f"{track.feature_path}: must last at least {min_s:g} s (data.min_s). Received: {seconds:.2f} s")
    return n_frames


def _measure_scale(build: Build, rows: list[int]) -> Scale:
    """Returns the scale of a sample of tracks, chosen by hash; tracks that cannot be read are left out here.

    Tracks that are much louder than the others do not set the scale: one of them would leave nothing of the others.
    """
    record, tracks = build.config.record, build.dataset.tracks
    if record.scale == "identity":
        return Scale.measure(record.scale, [])
    rows = sorted(rows, key=lambda row: order_key(record.seed, tracks[row].track_id))
    sample = [tracks[row] for row in rows[:SCALE_SAMPLE_TRACKS]]
    loudest = loudest_values(sample, build.config.feature, build.config.data, workers=build.workers)
    odd = dict(zip(loudest, too_loud(list(loudest.values())), strict=True))
    if names := [name for name in loudest if odd[name]]:
        more = ", ..." if len(names) > _SHOWN else ""
        console.warn(
            f"{len(names)} of {len(loudest)} sampled tracks are more than 40 dB above the median track and do not set"
            f" the scale: {', '.join(names[:_SHOWN])}{more}. Are they of another unit, or damaged?"
        )
    return Scale.measure(record.scale, [np.array(value) for name, value in loudest.items() if not odd[name]])


def _length(n_samples: int | DataError) -> int:
    if isinstance(n_samples, DataError):
        raise n_samples
    return n_samples


def _shard_specs(
    split: str, tracks: list[PlannedTrack], build: Build, contract: Contract, folder: Path
) -> Iterator[ShardSpec]:
    if not tracks:
        hint = "; lower data.folds" if split.startswith("fold") else ""
        raise DataError(f"split {split}: must hold at least one readable track. Received: none{hint}")
    record = build.config.record
    tracks = sorted(tracks, key=lambda track: order_key(record.seed, track.track_id))
    whole = ShardSpec(
        path=folder,
        split=split,
        tracks=tuple(tracks),
        record=record,
        feature=contract.feature,
        scale=contract.scale,
        on_error=build.config.data.on_error,
        min_share=build.config.data.min_share,
    )
    sizes = [whole.segment_bytes * len(whole.starts(track)) for track in tracks]
    count = n_shards(sum(sizes), at_least=record.num_shards, shard_bytes=record.shard_mib << 20, n_tracks=len(tracks))
    for index, chosen in enumerate(even_ranges(sizes, count)):
        path = folder / shard_name(contract.task, split, index, count)
        yield replace(whole, path=path, tracks=tuple(tracks[item] for item in chosen))
