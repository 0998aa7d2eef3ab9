"""Several tasks on the same tracks, as one dataset: `TASK:LABEL` names the label of a task."""

from collections.abc import Sequence
from dataclasses import replace

from tfmusic.contract import Head
from tfmusic.datasets.track import Dataset, Track
from tfmusic.errors import DataError


def join(datasets: Sequence[Dataset]) -> Dataset:
    """Returns the tracks that any of the datasets has, each with its labels of every task that has some for it.

    A track keeps the order of its first dataset, and stands once: the same id means the same track.

    Raises:
        DataError: two datasets give one id to different tracks, or they share no track at all.
    """
    tracks: dict[str, Track] = {}
    for dataset in datasets:
        for track in dataset.tracks:
            mine = replace(track, labels=tuple(f"{dataset.task}:{name}" for name in track.labels))
            tracks[track.track_id] = _same(tracks[track.track_id], mine) if track.track_id in tracks else mine
    if len(tracks) == sum(len(dataset.tracks) for dataset in datasets):
        raise DataError(
            f"{' and '.join(dataset.task for dataset in datasets)}: must share tracks. Received: none in common"
        )
    heads = tuple(Head(dataset.task, dataset.kind, dataset.labels) for dataset in datasets)
    labels = tuple(f"{head.task}:{name}" for head in heads for name in head.labels)
    return Dataset("_".join(head.task for head in heads), "tasks", labels, tuple(tracks.values()), heads)


def _same(first: Track, second: Track) -> Track:
    """Returns the first track with the labels of both."""
    sizes = [track.feature_path.stat().st_size for track in (first, second) if track.feature_path.is_file()]
    if len(set(sizes)) == 2 or first.artists != second.artists:
        raise DataError(
            f"track {first.track_id}: must be one track in all tasks. Received: {first.feature_path} and"
            f" {second.feature_path} of other size or artists"
        )
    return replace(first, labels=(*first.labels, *second.labels))
