"""What a data set or its records hold: labels, lengths, which tags go together, and what is wrong with which file."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from tfmusic.console import format_table
from tfmusic.core.feature import POWER, Feature
from tfmusic.core.pool import run_all
from tfmusic.core.scale import too_loud
from tfmusic.core.track import Dataset, Track
from tfmusic.datasets.options import DataSection
from tfmusic.errors import DataError, printable
from tfmusic.features.audio import read_blocks
from tfmusic.features.read import read_feature
from tfmusic.records.format import holds_copies
from tfmusic.records.manifest import Manifest
from tfmusic.records.reader import iterate_tracks
from tfmusic.reports.page import render

FAULTS = ("missing", "corrupt", "too short", "other length", "too loud", "silent", "duplicate", "skipped")
_SILENCE = 1e-9  # of the loudest cell of the median track: 90 dB below
_OTHER_LENGTH_S, _OTHER_LENGTH_SHARE = 5.0, 0.05  # more than both is another length than the metadata's
_SHOWN_VALUES = 5  # of a field of the metadata
_FEW_TRACKS = 16  # are looked at in this process: starting others takes longer


@dataclass(frozen=True)
class Item:
    """One track: its labels, split or None, length in seconds or None where it is not known."""

    track_id: str
    labels: tuple[str, ...]
    split: str | None
    seconds: float | None


@dataclass(frozen=True)
class Fault:
    """What is wrong with a track, in a word of `FAULTS` and in a line."""

    kind: str
    track_id: str
    reason: str


@dataclass(frozen=True)
class Inspection:
    """The tracks of a data set or of records, and their faults.

    Attributes:
        name: of the task.
        kind: `single`, `multi` or `tasks`.
        items: all tracks, those with faults too.
        faults: in the order of `FAULTS`.
        metadata: tracks of every value of every field, the most common first.
        tracks_with: how many tracks have every field.
    """

    name: str
    kind: str
    items: tuple[Item, ...]
    faults: tuple[Fault, ...]
    metadata: Mapping[str, Counter[str]] = field(default_factory=dict)
    tracks_with: Counter[str] = field(default_factory=Counter)

    @property
    def counts(self) -> dict[str, int]:
        """Tracks of every label, the most common first."""
        counts = Counter(label for item in self.items for label in item.labels)
        return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits, sorted; none where there are none."""
        official = ("train", "validation", "test")
        return tuple(
            sorted(
                {item.split for item in self.items if item.split},
                key=lambda s: (s not in official, official.index(s) if s in official else 0, s),
            )
        )

    def counts_of(self, split: str) -> Counter[str]:
        """Returns the tracks of every label in a split."""
        return Counter(label for item in self.items if item.split == split for label in item.labels)

    @property
    def seconds(self) -> np.ndarray:
        """Lengths that are known, float64 [n_tracks]."""
        return np.array([item.seconds for item in self.items if item.seconds is not None])

    @property
    def labels_per_track(self) -> dict[int, int]:
        """How many tracks have one label, two, and so on."""
        return dict(sorted(Counter(len(item.labels) for item in self.items).items()))

    @property
    def pairs(self) -> dict[tuple[str, str], int]:
        """Tracks of every two labels that stand together, the most common first."""
        pairs = Counter(pair for item in self.items for pair in combinations(sorted(item.labels), 2))
        return dict(sorted(pairs.items(), key=lambda pair: (-pair[1], pair[0])))

    def together(self, labels: Sequence[str]) -> np.ndarray:
        """Returns the share of the tracks of a row's label that have the column's as well, [n_labels, n_labels]."""
        place = {label: i for i, label in enumerate(labels)}
        counts = np.zeros((len(labels), len(labels)))
        for item in self.items:
            columns = [place[label] for label in item.labels if label in place]
            counts[np.ix_(columns, columns)] += 1
        return np.asarray(counts / np.maximum(np.diag(counts), 1)[:, None])

    def to_dict(self) -> dict[str, Any]:
        """Returns everything for JSON."""
        seconds = self.seconds
        return {
            "task": self.name,
            "kind": self.kind,
            "tracks": len(self.items),
            "labels": self.counts,
            "splits": {split: dict(self.counts_of(split)) for split in self.splits},
            "hours": float(seconds.sum() / 3600),
            "seconds": length_quantiles(seconds),
            "labels_per_track": self.labels_per_track,
            "pairs": [[*pair, count] for pair, count in self.pairs.items()],
            "faults": [vars(fault) for fault in self.faults],
            "metadata": {
                name: {"tracks": self.tracks_with[name], "most_frequent": dict(values.most_common(_SHOWN_VALUES))}
                for name, values in self.metadata.items()
            },
        }


def length_quantiles(seconds: np.ndarray) -> dict[str, float]:
    """Returns the shortest and longest track and what lies between, in seconds; nothing where none is known."""
    if not len(seconds):
        return {}
    shares = {"shortest": 0, "5 %": 5, "25 %": 25, "median": 50, "75 %": 75, "95 %": 95, "longest": 100}
    return {name: float(np.percentile(seconds, share)) for name, share in shares.items()}


# --- Raw data --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Look:
    """What reading a file tells."""

    fault: str = ""
    n_frames: int = 0
    loudest: float = 0.0
    is_constant: bool = False
    digest: str = ""


def inspect_data(
    dataset: Dataset,
    feature: Feature,
    section: DataSection,
    *,
    workers: int,
    on_track: Callable[[], None],
) -> Inspection:
    """Returns the inspection of a data set; every file is read and its feature computed once.

    Args:
        dataset: the tracks.
        feature: name and parameters of the spectrogram.
        section: tracks shorter than its `min_s`, and sound files that hold less than its `min_share`, are faults.
        workers: processes.
        on_track: called after each track.
    """
    tasks = [(track.feature_path, track.track_id, feature, section.min_share) for track in dataset.tracks]
    results: dict[str, _Look] = {}
    for (_, track_id, *_), look in run_all(_look, tasks, workers if len(tasks) > _FEW_TRACKS else 1):
        results[track_id] = look
        on_track()
    looks = [results[track.track_id] for track in dataset.tracks]
    s_per_frame = 1 / feature.frames_per_s
    items = tuple(
        Item(track.track_id, track.labels, track.split, look.n_frames * s_per_frame if look.n_frames else None)
        for track, look in zip(dataset.tracks, looks, strict=True)
    )
    faults = [
        *_faults_of_files(dataset.tracks, looks, feature, section.min_s, s_per_frame),
        *_duplicates(dataset.tracks, looks),
    ]
    ordered = sorted(faults, key=lambda fault: FAULTS.index(fault.kind))
    metadata, tracks_with = _count_metadata(dataset.tracks)
    return Inspection(dataset.task, dataset.kind, items, tuple(ordered), metadata, tracks_with)


def _count_metadata(tracks: Sequence[Track]) -> tuple[dict[str, Counter[str]], Counter[str]]:
    """Returns how many tracks have every value of every field, and how many have the field."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for track in tracks:
        for name, value in track.metadata.items():
            values = value if isinstance(value, list) else [value]
            counts[name].update({" ".join(str(item).split())[:40] for item in values})
    return dict(counts), Counter(name for track in tracks for name in track.metadata)


def _look(task: tuple[Path, str, Feature, float]) -> _Look:
    path, track_id, feature, min_share = task
    if not path.is_file():
        return _Look("no such file")
    try:
        values = read_feature(path, track_id, feature, min_share=min_share)
    except DataError as error:
        return _Look(str(error).replace(printable(str(path)), printable(path.name)))
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    loudest, quietest = float(values.max()), float(values.min())
    return _Look("", values.shape[1], loudest, loudest == quietest, digest)


def _faults_of_files(
    tracks: Sequence[Track], looks: Sequence[_Look], feature: Feature, min_s: float, s_per_frame: float
) -> Iterator[Fault]:
    loudest = [look.loudest for look in looks if not look.fault]
    is_power = feature.name in POWER
    odd = too_loud([look.loudest if is_power and not look.fault else 0.0 for look in looks])
    silence = _SILENCE * float(np.median(loudest)) if loudest and feature.name in POWER else -np.inf
    for track, look, is_odd in zip(tracks, looks, odd, strict=True):
        if look.fault:
            kind = "missing" if look.fault == "no such file" else "corrupt"
            name = printable(track.feature_path.name)
            yield Fault(kind, track.track_id, f"{name}: {look.fault.removeprefix(f'{name}: ')}")
            continue
        seconds = look.n_frames * s_per_frame
        if seconds < min_s:
            yield Fault("too short", track.track_id, f"{seconds:.2f} s, data.min_s is {min_s:g}")
        stated = track.metadata.get("duration_s")
        if stated and abs(seconds - stated) > max(_OTHER_LENGTH_S, _OTHER_LENGTH_SHARE * stated):
            yield Fault("other length", track.track_id, f"{seconds:.1f} s, the metadata says {stated:g} s")
        if is_odd:
            times = look.loudest / float(np.median([value for value in loudest if value > 0]))
            yield Fault("too loud", track.track_id, f"{10 * np.log10(times):.0f} dB above the median track")
        if look.is_constant or look.loudest <= silence:
            yield Fault(
                "silent", track.track_id, f"{printable(track.feature_path.name)}: nothing above {look.loudest:g}"
            )


def _duplicates(tracks: Sequence[Track], looks: Sequence[_Look]) -> Iterator[Fault]:
    """Yields every file that has the very bytes of an earlier one."""
    by_digest = defaultdict(list)
    for track, look in zip(tracks, looks, strict=True):
        if look.digest:
            by_digest[look.digest].append(track)
    for first, *others in by_digest.values():
        for track in others:
            same = "the same labels" if track.labels == first.labels else f"labels {', '.join(first.labels)} there"
            where = f", in {first.split} and {track.split}" if first.split != track.split else ""
            yield Fault("duplicate", track.track_id, f"the bytes of {first.track_id}, {same}{where}")


# --- Records ---------------------------------------------------------------------------------------------------


def inspect_records(manifest: Manifest) -> Inspection:
    """Returns the inspection of records: what tracks.csv says; tracks that the build skipped are its faults."""
    manifest.verify([])
    items, faults = [], []
    for row in manifest.read_tracks().to_dict("records"):
        if holds_copies(row["split"]):  # changed copies are no tracks of their own
            continue
        seconds = row["n_frames"] / manifest.contract.frames_per_s if row["n_frames"] else None
        items.append(Item(row["track_id"], tuple(row["labels"]), row["split"], seconds))
        if row["skipped"]:
            faults.append(Fault("skipped", row["track_id"], row["skipped"]))
    return Inspection(manifest.name, manifest.contract.kind, tuple(items), tuple(faults))


# --- Examples --------------------------------------------------------------------------------------------------

_EXAMPLE_S = 10.0


@dataclass(frozen=True)
class Example:
    """A stretch of a track: values [n_bins, n_frames] from `start_s` on."""

    track_id: str
    values: np.ndarray
    start_s: float


def choose_examples(inspection: Inspection, n_examples: int, n_labels: int) -> dict[str, list[str]]:
    """Returns names of tracks of each of the most common labels, spread over all usable tracks of the label."""
    kinds = ("missing", "corrupt", "skipped", "silent")
    unusable = {fault.track_id for fault in inspection.faults if fault.kind in kinds}
    chosen = {}
    for label in list(inspection.counts)[:n_labels]:
        ids = [item.track_id for item in inspection.items if label in item.labels and item.track_id not in unusable]
        step = max(len(ids) / n_examples, 1.0)
        chosen[label] = [ids[int(i * step)] for i in range(min(n_examples, len(ids)))]
    return chosen


def examples_of_data(dataset: Dataset, feature: Feature, track_ids: set[str]) -> Iterator[Example]:
    """Yields the middle of every chosen track; reads the files again."""
    for track in dataset.tracks:
        if track.track_id in track_ids:
            values = read_feature(track.feature_path, track.track_id, feature, min_share=0.0)
            yield _middle(track.track_id, values, feature.frames_per_s)


def examples_of_records(manifest: Manifest, track_ids: set[str]) -> Iterator[Example]:
    """Yields the middle of every chosen track, as it is stored."""
    left = set(track_ids)
    for split in manifest.splits:
        for track in iterate_tracks(manifest, split) if left else ():
            if track.track_id in left:
                left.remove(track.track_id)
                yield _middle(track.track_id, track.codes.T, manifest.contract.frames_per_s)


def _middle(track_id: str, values: np.ndarray, frames_per_s: float) -> Example:
    n_frames = min(int(_EXAMPLE_S * frames_per_s), values.shape[1])
    start = (values.shape[1] - n_frames) // 2
    return Example(track_id, values[:, start : start + n_frames].copy(), start / frames_per_s)


_SOUND_HZ = 22050  # ten seconds are 441 kB


def write_sounds(folder: Path, name: str, sounds: Sequence[tuple[str, str, Example, Path]]) -> None:
    """Writes examples.html, which plays the ten seconds of one example a label beside its pictures.

    Args:
        folder: of the pictures; gets a .wav file an example.
        name: of the task.
        sounds: name of the picture's file, label, example, audio file.
    """
    import soundfile

    shown = []
    for file, label, example, path in sounds:
        first, n_samples = int(example.start_s * _SOUND_HZ), int(_EXAMPLE_S * _SOUND_HZ)
        samples = np.concatenate(list(read_blocks(path, _SOUND_HZ)))[first : first + n_samples]
        soundfile.write(folder / f"{file}.wav", np.clip(samples, -1.0, 1.0), _SOUND_HZ, subtype="PCM_16")
        end_s = example.start_s + len(samples) / _SOUND_HZ
        shown.append(
            {"file": file, "label": label, "track_id": example.track_id, "start_s": example.start_s, "end_s": end_s}
        )
    (folder / "examples.html").write_text(render("examples.html", name=name, examples=shown), encoding="utf-8")


# --- Tables ----------------------------------------------------------------------------------------------------

_BAR = 30  # columns of the longest bar
_SHOWN_LABELS = 60
_SHOWN_PAIRS = 15
_SHOWN_FAULTS = 40


def format_inspection(inspection: Inspection, names: dict[str, str]) -> str:
    """Returns all tables; `names` is what stands for a label on pictures, where that is not the label itself."""
    parts = [_summary(inspection), _labels(inspection, names), _lengths(inspection)]
    if max(inspection.labels_per_track) > 1:
        parts += [_labels_per_track(inspection), _pairs(inspection)]
    if inspection.metadata:
        parts.append(_metadata(inspection))
    return "\n\n".join([*parts, _faults(inspection)])


def _metadata(inspection: Inspection) -> str:
    rows = [
        (
            name,
            inspection.tracks_with[name],
            f"{100 * inspection.tracks_with[name] / len(inspection.items):.1f} %",
            len(values),
            "; ".join(f"{value} {count}" for value, count in values.most_common(_SHOWN_VALUES)),
        )
        for name, values in inspection.metadata.items()
    ]
    return format_table(rows, ("metadata", "tracks", "share", "values", "most frequent"))


def _summary(inspection: Inspection) -> str:
    what = "tags" if inspection.kind == "multi" else "labels"
    splits = Counter(item.split for item in inspection.items if item.split)
    hours = inspection.seconds.sum() / 3600
    line = f"{inspection.name}: {len(inspection.items):,} tracks, {len(inspection.counts)} {what}, {hours:,.2f} hours"
    parts = ", ".join(f"{split} {splits[split]:,}" for split in inspection.splits)
    return printable(line) + (f"\n{printable(f'splits: {parts}')}" if parts else "")


def _labels(inspection: Inspection, names: dict[str, str]) -> str:
    counts, splits = inspection.counts, inspection.splits if len(inspection.splits) <= 3 else ()
    by_split = [inspection.counts_of(split) for split in splits]
    most = max(counts.values())
    rows = [
        (
            *((names[label],) if names else ()),
            label,
            count,
            f"{100 * count / len(inspection.items):.1f} %",
            *(split_counts[label] for split_counts in by_split),
            "#" * max(round(_BAR * count / most), 1),
        )
        for label, count in list(counts.items())[:_SHOWN_LABELS]
    ]
    header = (*(("in pictures",) if names else ()), "label", "tracks", "share", *splits, "")
    more = len(counts) - len(rows)
    return format_table(rows, header) + (f"\n... {more} rarer labels" if more > 0 else "")


def _lengths(inspection: Inspection) -> str:
    quantiles = length_quantiles(inspection.seconds)
    if not quantiles:
        return "lengths: no track could be read"
    return format_table([tuple(quantiles.values())], tuple(f"{name} (s)" for name in quantiles), digits=1)


def _labels_per_track(inspection: Inspection) -> str:
    counts = inspection.labels_per_track
    most = max(counts.values())
    rows = [(n, count, "#" * max(round(_BAR * count / most), 1)) for n, count in counts.items()]
    mean = sum(n * count for n, count in counts.items()) / len(inspection.items)
    return format_table(rows, ("labels a track", "tracks", "")) + f"\nmean {mean:.2f}"


def _pairs(inspection: Inspection) -> str:
    counts = inspection.counts
    rows = [
        (first, second, count, f"{100 * count / min(counts[first], counts[second]):.0f} %")
        for (first, second), count in list(inspection.pairs.items())[:_SHOWN_PAIRS]
    ]
    return format_table(rows, ("label", "stands with", "tracks", "of the rarer"))


def _faults(inspection: Inspection) -> str:
    if not inspection.faults:
        return "faults: none"
    counts = Counter(fault.kind for fault in inspection.faults)
    shown = inspection.faults[:_SHOWN_FAULTS]
    lines = [printable(f"{fault.kind} {fault.track_id}: {fault.reason}") for fault in shown]
    if len(inspection.faults) > _SHOWN_FAULTS:
        lines.append(f"... {len(inspection.faults) - _SHOWN_FAULTS} more")
    return "\n".join(["faults: " + ", ".join(f"{counts[kind]} {kind}" for kind in FAULTS if counts[kind]), *lines])
