"""Which segments of a track are stored."""

import numpy as np

from tfmusic.features.segments import segment_starts
from tfmusic.records.shards import order_key

ALL = "all"


def stored_starts(
    n_frames: int, track_id: str, *, frames: int, hop_frames: int, choice: str, count: int, seed: int
) -> list[int]:
    """Returns the first frames of the segments of a track that are stored, ascending.

    Args:
        n_frames: length of the track.
        track_id: its name, on which a random choice depends.
        frames: length of a segment.
        hop_frames: distance of the segments that there are to choose from.
        choice: `all`, or `count` of them: the `first`, some at `random`, or `even`ly spaced ones, of which one alone is
            the middle.
        count: how many; all where a track has no more.
        seed: of the random choice.
    """
    starts: list[int] = segment_starts(n_frames, frames=frames, hop_frames=hop_frames).tolist()
    if choice == ALL or len(starts) <= count:
        return starts
    if choice == "first":
        return starts[:count]
    if choice == "random":
        return sorted(sorted(starts, key=lambda start: order_key(seed, track_id, start))[:count])
    last = len(starts) - 1
    places = np.round(np.linspace(0, last, count)) if count > 1 else [last // 2]
    return [starts[int(place)] for place in places]
