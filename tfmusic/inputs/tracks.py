"""Whole tracks of a split through a model."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfmusic.core.contract import Contract
from tfmusic.errors import RecordsError
from tfmusic.inputs.metadata import metadata_table
from tfmusic.inputs.pipeline import for_evaluation
from tfmusic.records.format import holds_copies
from tfmusic.records.manifest import Manifest
from tfmusic.records.reader import StoredTrack, iterate_tracks
from tfmusic.scoring.aggregate import collect_logits


@dataclass(frozen=True)
class TrackLogits:
    """What a model says of labelled tracks, in the order of their rows.

    Attributes:
        rows: rows of tracks.csv.
        track_ids: names of the tracks.
        logits: [n_segments, n_labels] of every track.
        targets: bool [n_tracks, n_labels].
    """

    rows: tuple[int, ...]
    track_ids: tuple[str, ...]
    logits: tuple[np.ndarray, ...]
    targets: np.ndarray

    def part(self, columns: slice, *, has_own_logits: bool = False) -> "TrackLogits":
        """Returns one task of several: its columns, and the tracks that have a label there.

        `has_own_logits` says that the logits are of that task alone already.
        """
        targets = self.targets[:, columns]
        kept = np.flatnonzero(targets.any(1)).tolist()
        return TrackLogits(
            tuple(self.rows[i] for i in kept),
            tuple(self.track_ids[i] for i in kept),
            tuple(self.logits[i] if has_own_logits else self.logits[i][:, columns] for i in kept),
            targets[kept],
        )


def score_splits(
    manifest: Manifest,
    splits: Sequence[str],
    predict_fn: Callable[[Any], Any],
    contract: Contract,
    *,
    batch_size: int,
    with_metadata: bool = True,
    on_track: Callable[[], None] = lambda: None,
    takes_copies: bool = False,
) -> TrackLogits:
    """Returns the logits of every track of some splits; each track comes once, with all of its frames.

    Args:
        manifest: the records.
        splits: which of them.
        predict_fn: the model, from the inputs of a batch to logits.
        contract: what its input must be.
        batch_size: windows at a time.
        with_metadata: whether a model that knows metadata is given that of the tracks, or none.
        on_track: called after every track that was read.
        takes_copies: whether changed copies are wanted, which are for training and never for a score.

    Raises:
        RecordsError: a split holds changed copies of tracks.
    """
    copies = [split for split in splits if holds_copies(split)]
    if copies and not takes_copies:
        raise RecordsError(f"{manifest.folder}: {', '.join(copies)}: copies are for training, and are never scored")
    seen: dict[int, StoredTrack] = {}

    def tracks() -> Iterator[StoredTrack]:
        for split in splits:
            for track in iterate_tracks(manifest, split):
                if track.row not in seen:
                    on_track()
                seen[track.row] = StoredTrack(track.row, track.track_id, track.label, track.cells[:0])
                yield track

    metadata = metadata_table(manifest, contract)
    if metadata is not None and not with_metadata:
        metadata = np.zeros_like(metadata)
    batches = for_evaluation(
        tracks(),
        frames=contract.frames,
        hop_frames=contract.hop_frames,
        batch_size=batch_size,
        metadata=metadata,
    )
    logits = collect_logits(batches, predict_fn)
    rows = tuple(sorted(logits))
    targets = np.zeros((len(rows), len(manifest.contract.labels)), bool)
    for place, row in enumerate(rows):
        targets[place, list(manifest.contract.answers(seen[row].label))] = True
    return TrackLogits(rows, tuple(seen[row].track_id for row in rows), tuple(logits[row] for row in rows), targets)
