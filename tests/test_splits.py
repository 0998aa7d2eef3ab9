"""Folds: no artist, album or track in two of them, labels even."""

import random

import pytest

from tfmusic.core.track import Dataset, Track
from tfmusic.datasets import airush
from tfmusic.datasets.splits import assign_folds, group_tracks
from tfmusic.errors import DataError


def make_tracks(n, *, labels, artists_of, album_of=lambda i: None):
    return [
        Track(str(i), None, labels=labels(i), artists=artists_of(i), album=album_of(i)) for i in range(n)
    ]  # fmt: skip


def assert_no_leak(tracks, folds):
    seen = {}
    for track, fold in zip(tracks, folds, strict=True):
        for key in [("artist", a) for a in track.artists] + ([("album", track.album)] if track.album else []):
            assert seen.setdefault(key, fold) == fold, f"{key} stands in two folds"


def share(folds, tracks, label, fold):
    rows = [label in track.labels for track, f in zip(tracks, folds, strict=True) if f == fold]
    return sum(rows) / len(rows)


def test_no_artist_or_album_in_two_folds(music):
    """The folds of every question keep artists and albums whole."""
    for question in ("q1", "q2", "q3"):
        data = airush.load(music, airush.Options(question=question), task=question)
        assert_no_leak(data.tracks, assign_folds(data.tracks, data.labels, n_folds=5, seed=0))


def test_groups_are_connected_components():
    """Two tracks that share no artist are one group where a third has both."""
    tracks = [Track("0", None, artists=("a",)), Track("1", None, artists=("b",)), Track("2", None, artists=("a", "b"))]
    assert sorted(map(sorted, group_tracks(tracks))) == [[0, 1, 2]]
    tracks.append(Track("3", None, album="x"))
    tracks.append(Track("4", None, artists=("c",), album="x"))
    assert sorted(map(sorted, group_tracks(tracks))) == [[0, 1, 2], [3, 4]]


def test_class_sorted_labels_come_out_balanced():
    """q3's labels are sorted by class; every fold still has every class in its share, and a fifth of the tracks."""
    classes = ("J-ROCK", "R&B", "가요곡/엔카", "레게")
    tracks = make_tracks(
        4000, labels=lambda i: (classes[i // 1000],), artists_of=lambda i: (f"artist {i // 4}",),
        album_of=lambda i: f"album {i // 2}",
    )  # fmt: skip
    folds = assign_folds(tracks, classes, n_folds=5, seed=0)
    assert_no_leak(tracks, folds)
    for fold in set(folds):
        assert abs(folds.count(fold) - 800) <= 8
        assert all(abs(share(folds, tracks, name, fold) - 0.25) < 0.01 for name in classes)


def test_several_tags_are_spread():
    """With tags from common to rare, no fold is far from its share of any common tag."""
    rng, tags = random.Random(0), [f"tag {i}" for i in range(20)]
    weights = [1 / (i + 1) for i in range(20)]
    tracks = make_tracks(
        1000, labels=lambda i: tuple(set(rng.choices(tags, weights, k=3))), artists_of=lambda i: (str(i // 3),)
    )
    folds = assign_folds(tracks, tags, n_folds=5, seed=0)
    for tag in tags[:10]:
        overall = sum(tag in track.labels for track in tracks) / len(tracks)
        assert all(abs(share(folds, tracks, tag, f"fold{k}") - overall) < 0.1 * overall + 0.005 for k in range(5))


def test_order_of_tracks_plays_no_part():
    """The same tracks in another order get the same folds; another seed other ones."""
    tracks = make_tracks(200, labels=lambda i: (str(i % 4),), artists_of=lambda i: (str(i // 2),))
    labels = ("0", "1", "2", "3")
    folds = dict(zip([t.track_id for t in tracks], assign_folds(tracks, labels, n_folds=5, seed=0), strict=True))
    shuffled = random.Random(1).sample(tracks, len(tracks))
    again = dict(zip([t.track_id for t in shuffled], assign_folds(shuffled, labels, n_folds=5, seed=0), strict=True))
    assert folds == again
    assert folds != dict(zip(folds, assign_folds(tracks, labels, n_folds=5, seed=1), strict=True))


def test_too_few_groups():
    """One artist cannot be dealt into five folds."""
    tracks = make_tracks(50, labels=lambda i: ("x",), artists_of=lambda i: ("the same",))
    with pytest.raises(DataError, match=r"data.folds=5 needs .* Received: 1 groups of 50 tracks"):
        assign_folds(tracks, ("x",), n_folds=5, seed=0)


@pytest.mark.parametrize("labels", [("?",), (), ("x", "?")])
def test_unknown_or_no_label_is_named(labels):
    """A loader that gives a track no label, or one the task does not have, is stopped with the track named."""
    with pytest.raises(DataError, match=r"track 7: labels must be some of the task's"):
        Dataset("q", "multi", ("x",), (Track("7", None, labels=labels),))
