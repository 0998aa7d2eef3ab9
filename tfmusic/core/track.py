"""A track and a dataset: what every loader returns."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tfmusic.core.contract import Head, Kind
from tfmusic.errors import DataError

# A plain name: no separator, no leading dot, nothing a shell or a file system would read as more than a name.
_PLAIN_ID = re.compile(r"[\w][\w .+-]{0,199}", re.ASCII)
MIN_SHARE = 0.98  # of the samples of a sound file must be there, unless a config says otherwise
NO_METADATA: Mapping[str, Any] = {}  # the same for all tracks without


@dataclass(frozen=True, slots=True)
class Track:
    """One row of the labels; the spectrogram or audio stays on disk until it is needed.

    `artists` and `album` are keys for grouping, empty or None where unknown. `split` is the official one, `train`,
    `validation` or `test`, or None. Where a task has one label a track, the first of `labels` is that one. Tracks
    with the same `duplicate_of` are the same music under several names. `embedded_as` is the id that a track has in an
    embedding file, where that is another.
    """

    track_id: str
    feature_path: Path
    labels: tuple[str, ...] = ()
    split: str | None = None
    artists: tuple[str, ...] = ()
    album: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=lambda: NO_METADATA)
    duplicate_of: str | None = None
    embedded_as: str | None = None


@dataclass(frozen=True)
class Dataset:
    """Tracks of one task with the names of all labels, sorted; or of several, which `heads` then lists.

    Raises:
        DataError: a track has no label, or one that the task does not have.
    """

    task: str
    kind: Kind
    labels: tuple[str, ...]
    tracks: tuple[Track, ...]
    heads: tuple[Head, ...] = ()

    def __post_init__(self) -> None:
        labels = set(self.labels)
        for track in self.tracks:
            if not track.labels or not labels.issuperset(track.labels):
                raise DataError(f"track {track.track_id}: labels must be some of the task's. Received: {track.labels}")


def check_track_id(value: object, origin: str) -> str:
    """Returns a track id as text.

    Raises:
        DataError: the id is no plain name, so that it could leave its folder.
    """
    text = str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
    if not is_plain_id(text):
        raise DataError(
            f"{origin}: a track id must be a plain name of letters, digits, '_', '-', '.', '+' or spaces,"
            f" up to 200 long. Received: {value!r}"
        )
    return text


def is_plain_id(text: str) -> bool:
    """Returns whether a text can be a track id as it stands."""
    return bool(_PLAIN_ID.fullmatch(text))


def check_unique(ids: Sequence[str], origin: str) -> None:
    """Raises DataError if a track id appears twice."""
    repeated = [repr(track_id) for track_id, count in Counter(ids).items() if count > 1]
    if repeated:
        more = f" (and {len(repeated) - 1} more)" if len(repeated) > 1 else ""
        raise DataError(f"{origin}: track id {repeated[0]} appears twice{more}; ids must be unique")
