"""Changed copies of training tracks: which tracks get some, what they are called, and where they stand.

The copies of fold0 are a split of their own, fold0_copies. They train whenever fold0 does, and nothing scores them;
where fold0 validates, they are left out, so that no model is judged on what it has heard in disguise. Of official
splits `train` alone has copies.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tfmusic.datasets.track import Track, check_track_id, check_unique
from tfmusic.errors import DataError
from tfmusic.features.audio import is_audio
from tfmusic.features.perturb import Change, draw
from tfmusic.records.shards import copies_of


def add_copies(
    tracks: Sequence[Track], splits: Sequence[str], unreadable: Mapping[int, str], settings: Mapping[str, Any] | None
) -> Iterator[tuple[Track, str, Change]]:
    """Yields the track, the split and the change of every copy, source by source.

    Args:
        tracks: all tracks.
        splits: that of each.
        unreadable: rows that get no copies.
        settings: the section `perturb` of a config; None makes no copies.

    Raises:
        DataError: a track is no sound file, or a copy would have the name of another track.
    """
    if settings is None:
        return
    chosen = [row for row, split in enumerate(splits) if row not in unreadable and _trains(split)]
    names = [f"{tracks[row].track_id}+copy{copy}" for row in chosen for copy in range(1, settings["copies"] + 1)]
    check_unique([*(track.track_id for track in tracks), *names], "perturb.copies")
    for row in chosen:
        track = tracks[row]
        if not is_audio(track.feature_path):
            raise DataError(
                f"{track.feature_path}: perturb.copies are made of sound files. Received: another file; set copies=0"
            )
        for copy in range(1, settings["copies"] + 1):
            name = check_track_id(f"{track.track_id}+copy{copy}", "perturb.copies")
            yield replace(track, track_id=name), copies_of(splits[row]), draw(settings, track.track_id, copy)


def _trains(split: str) -> bool:
    return split == "train" or split.startswith("fold")
