"""Tracks read one after the other; one that cannot be read does not cost the others their answers."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from tfmusic.datasets.track import Track
from tfmusic.errors import DataError


@dataclass
class TrackReader:
    """Reads tracks, and keeps by row in `skipped` why some cannot be read; `on_track` is called after each."""

    tracks: tuple[Track, ...]
    on_track: Callable[[], None]
    skipped: dict[int, str] = field(default_factory=dict)

    def read(self, read_fn: Callable[[Track], np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
        """Yields row and what `read_fn` returns of the tracks that can be read."""
        for row, track in enumerate(self.tracks):
            try:
                values = read_fn(track)
            except DataError as error:
                self.skipped[row] = str(error)
            except OSError as error:
                self.skipped[row] = f"{track.feature_path}: {error.strerror or error}"
            else:
                yield row, values
            self.on_track()

    def check_any(self, n_read: int) -> None:
        """Raises DataError where no track could be read, with the reason of the first."""
        if not n_read:
            others = f" (and {len(self.skipped) - 1} more)" if len(self.skipped) > 1 else ""
            raise DataError(f"{self.skipped[0]}{others}")
