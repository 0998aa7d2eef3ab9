"""How often every stored segment comes in an epoch, so that rare classes are not drowned.

Of several tags a track has, the one that the fewest tracks have decides.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tfmusic.config.sections import BalanceSection
from tfmusic.console import console, format_table
from tfmusic.records.manifest import Manifest
from tfmusic.records.segments import Segments

_SHOWN_LABELS = 20


@dataclass(frozen=True)
class Balance:
    """The segments of some splits in the order of their files, and the rules for an epoch.

    Attributes:
        options: the rules.
        labels: names of the labels.
        track: number of the track of every segment, from 0, int [n_segments].
        has: labels of every track, bool [n_tracks, n_labels].
        seed: with the epoch, decides which segments come.
    """

    options: BalanceSection
    labels: tuple[str, ...]
    track: np.ndarray
    has: np.ndarray
    seed: int

    @classmethod
    def of(cls, manifest: Manifest, splits: Sequence[str], options: BalanceSection, seed: int) -> "Balance | None":
        """Returns the balance of some splits, or None where every segment comes once."""
        if not options.is_on:
            return None
        unknown = [name for name in options.common if name not in manifest.contract.labels]
        if unknown:
            console.warn(f"balance.common: the records {manifest.folder} have no label {', '.join(unknown)}")
        segments = Segments(manifest, splits)
        return cls(options, manifest.contract.labels, segments.track, segments.track_targets() > 0, seed)

    @cached_property
    def n_tracks(self) -> np.ndarray:
        """How many tracks have every label, int [n_labels]."""
        return np.asarray(self.has.sum(0))

    @cached_property
    def is_rare(self) -> np.ndarray:
        """Which labels are rare, bool [n_labels]; one without tracks is not."""
        if self.options.common:
            return np.array([name not in self.options.common for name in self.labels]) & (self.n_tracks > 0)
        known = self.n_tracks[self.n_tracks > 0]
        return np.asarray((self.n_tracks > 0) & (self.n_tracks < self.options.rare_share * known.mean()))

    @cached_property
    def label(self) -> np.ndarray:
        """The label that decides for every segment, the rarest of its track, int [n_segments]."""
        rarity = np.where(self.has, self.n_tracks, np.iinfo(np.int64).max)
        return np.asarray(rarity.argmin(1)[self.track])

    def times(self, epoch: int) -> np.ndarray:
        """Returns how often every segment comes in an epoch, int64 [n_segments]; their sum is that of every epoch."""
        draw = np.random.default_rng([self.seed, epoch, len(self.track)]).random(len(self.track))
        times = self._drawn(draw).astype(np.int64)
        counts = self._count(times)
        wanted = self.options.oversample * counts.max()
        for label in np.flatnonzero((counts > 0) & (counts < wanted)):
            mine = np.flatnonzero((self.label == label) & (times > 0))
            if not len(mine):  # every track of this label has a rarer one
                continue
            mine = mine[np.argsort(draw[mine], kind="stable")]
            total = int(np.ceil(len(mine) * wanted / counts[label]))
            times[mine] = total // len(mine)
            times[mine[: total % len(mine)]] += 1
        return times

    def _count(self, times: np.ndarray) -> np.ndarray:
        """Returns how many of the segments that come have every label, int64 [n_labels]."""
        per_track = np.bincount(self.track, times, minlength=len(self.has))
        return np.asarray(np.rint(per_track @ self.has), np.int64)

    @cached_property
    def n_segments(self) -> int:
        """How many segments come in an epoch."""
        return int(self.times(0).sum())

    @cached_property
    def label_counts(self) -> np.ndarray:
        """How many segments with every label come in an epoch, int64 [n_labels]; nearly so, of several tags."""
        return self._count(self.times(0))

    def describe(self) -> str:
        """Returns a table of what there is of every label, and what comes in an epoch."""
        stored = self._count(np.ones_like(self.track))
        order = np.argsort(-stored, kind="stable")[: int(np.count_nonzero(stored))]
        rows = [
            (self.labels[i], int(self.n_tracks[i]), int(stored[i]), int(self.label_counts[i]), _word(self.is_rare[i]))
            for i in order
        ]
        shown = rows if len(rows) <= _SHOWN_LABELS else [*rows[: _SHOWN_LABELS // 2], *rows[-_SHOWN_LABELS // 2 :]]
        more = f"\n({len(rows) - len(shown)} labels in between are not shown)" if len(shown) < len(rows) else ""
        header = ("label", "training tracks", "segments stored", "in an epoch", "")
        total = f"balance: {self.n_segments:,} segments an epoch of {len(self.track):,} stored"
        return f"{total}\n{format_table(shown, header)}{more}"

    def _drawn(self, draw: np.ndarray) -> np.ndarray:
        """Returns which segments come at all, bool [n_segments]: of every track as many as its label may have."""
        order = np.lexsort((draw, self.track))
        track = self.track[order]
        begins = np.flatnonzero(np.r_[True, track[1:] != track[:-1]])
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order)) - np.repeat(begins, np.diff(np.r_[begins, len(order)]))
        most = [len(order) if n == "all" else n for n in (self.options.common_segments, self.options.rare_segments)]
        return np.asarray(rank < np.where(self.is_rare[self.label], most[1], most[0]))


def _word(is_rare: bool) -> str:
    return "rare" if is_rare else ""


def class_weights(manifest: Manifest, splits: Sequence[str], balance: Balance | None) -> np.ndarray:
    """Returns the weight of every class: total / (classes x count in an epoch), so that the mean weight is 1."""
    counts = balance.label_counts if balance else count_labels(manifest, splits)
    return np.asarray(counts.sum() / (np.count_nonzero(counts) * np.maximum(counts, 1)))


def count_labels(manifest: Manifest, splits: Sequence[str]) -> np.ndarray:
    """Returns how many stored segments have each label, int64 [n_labels]."""
    segments = Segments(manifest, splits)
    has = segments.track_targets() > 0
    return np.asarray(np.bincount(segments.track, minlength=len(has)) @ has.astype(np.int64))
