"""How often every stored segment comes in an epoch, so that rare classes are not drowned.

Of several tags a track has, the rarest counts: it is the class of the track here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tfmusic.console import format_table
from tfmusic.dataconfig import BalanceSection
from tfmusic.errors import RecordsError
from tfmusic.records.manifest import Manifest
from tfmusic.records.reader import read_shard

_SHOWN_LABELS = 20


@dataclass(frozen=True)
class Balance:
    """The segments of some splits in the order of their files, and the rules for an epoch.

    Attributes:
        options: the rules.
        labels: names of the labels.
        files: shards, and after them the total: shard i has the segments bounds[i] to bounds[i + 1].
        bounds: int [n_files + 1].
        track: row of the track of every segment, int [n_segments].
        label: class of every segment, int [n_segments].
        seed: with the epoch, decides which segments come.
    """

    options: BalanceSection
    labels: tuple[str, ...]
    files: tuple[str, ...]
    bounds: np.ndarray
    track: np.ndarray
    label: np.ndarray
    seed: int

    @classmethod
    def of(cls, manifest: Manifest, splits: Sequence[str], options: BalanceSection, seed: int) -> "Balance | None":
        """Returns the balance of some splits, or None where every segment comes once; raises RecordsError for none."""
        if not options.is_on:
            return None
        files = [path for split in splits for path in manifest.shard_paths(split)]
        headers = [[header for header, _ in read_shard(path, manifest)] for path in files]
        every = [header for some in headers for header in some]
        if not every:
            raise RecordsError(f"{manifest.folder}: {', '.join(splits)} must hold segments. Received: none")
        is_single = manifest.contract.kind == "single"
        names = {header.track: header.label[:1] if is_single else header.label for header in every}
        counts = np.zeros(len(manifest.contract.labels), np.int64)
        for some in names.values():
            counts[list(some)] += 1
        rarest = {row: min(some, key=lambda label: (counts[label], label)) for row, some in names.items()}
        return cls(
            options,
            manifest.contract.labels,
            tuple(str(path) for path in files),
            np.cumsum([0, *map(len, headers)]),
            np.array([header.track for header in every]),
            np.array([rarest[header.track] for header in every]),
            seed,
        )

    @cached_property
    def n_tracks(self) -> np.ndarray:
        """How many tracks every class has, int [n_labels]."""
        _, first = np.unique(self.track, return_index=True)
        return np.bincount(self.label[first], minlength=len(self.labels))

    @cached_property
    def is_rare(self) -> np.ndarray:
        """Which classes are rare, bool [n_labels]; one without tracks is not."""
        mean = self.n_tracks.sum() / np.count_nonzero(self.n_tracks)
        return np.asarray((self.n_tracks > 0) & (self.n_tracks < self.options.rare_share * mean))

    def times(self, epoch: int) -> np.ndarray:
        """Returns how often every segment comes in an epoch, int64 [n_segments]; their sum is that of every epoch."""
        rng = np.random.default_rng([self.seed, epoch, len(self.track)])
        draw = rng.random(len(self.track))
        times = self._drawn(draw).astype(np.int64)
        if not self.options.oversample:
            return times
        counts = np.bincount(self.label, times, minlength=len(self.labels)).astype(np.int64)
        wanted = np.ceil(self.options.oversample * counts.max()).astype(np.int64)
        for label in np.flatnonzero((counts > 0) & (counts < wanted)):
            mine = np.flatnonzero((self.label == label) & (times > 0))
            mine = mine[np.argsort(draw[mine], kind="stable")]
            times[mine] = wanted // len(mine)
            times[mine[: wanted % len(mine)]] += 1
        return times

    @cached_property
    def n_segments(self) -> int:
        """How many segments come in an epoch."""
        return int(self.times(0).sum())

    @cached_property
    def label_counts(self) -> np.ndarray:
        """How many segments of every class come in an epoch, int64 [n_labels]."""
        return np.bincount(self.label, self.times(0), minlength=len(self.labels)).astype(np.int64)

    def describe(self) -> str:
        """Returns a table of what there is of every class, and what comes in an epoch."""
        stored = np.bincount(self.label, minlength=len(self.labels))
        order = np.argsort(-stored, kind="stable")[: int(np.count_nonzero(stored))]
        rows = [
            (self.labels[i], int(self.n_tracks[i]), int(stored[i]), int(self.label_counts[i]), _word(self.is_rare[i]))
            for i in order
        ]
        shown = rows if len(rows) <= _SHOWN_LABELS else [*rows[: _SHOWN_LABELS // 2], *rows[-_SHOWN_LABELS // 2 :]]
        more = f"\n({len(rows) - len(shown)} classes in between are not shown)" if len(shown) < len(rows) else ""
        header = ("class", "training tracks", "segments stored", "in an epoch", "")
        total = f"balance: {self.n_segments:,} segments an epoch of {len(self.track):,} stored"
        return f"{total}\n{format_table(shown, header)}{more}"

    def _drawn(self, draw: np.ndarray) -> np.ndarray:
        """Returns which segments come at all, bool [n_segments]: of every track as many as its class may have."""
        order = np.lexsort((draw, self.track))
        track = self.track[order]
        begins = np.flatnonzero(np.r_[True, track[1:] != track[:-1]])
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order)) - np.repeat(begins, np.diff(np.r_[begins, len(order)]))
        most = [len(order) if n == "all" else n for n in (self.options.common_segments, self.options.rare_segments)]
        return np.asarray(rank < np.where(self.is_rare[self.label], most[1], most[0]))


def _word(is_rare: bool) -> str:
    return "rare" if is_rare else ""
