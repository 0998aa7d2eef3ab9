"""Folds: no artist, album or track in two of them, labels even."""

import random
from dataclasses import replace

import pytest

from tfmusic.core.track import Dataset, Track
from tfmusic.datasets import airush, splits
from tfmusic.datasets.folder import Options
from tfmusic.datasets.splits import assign_folds, duplicates, group_tracks, keep_official
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


def write_tracks(folder, contents, labels="ab"):
    """Writes files of these contents and returns a track for each; None is a file that is not there."""
    tracks = []
    for row, content in enumerate(contents):
        path = folder / f"{row}.wav"
        if content is not None:
            path.write_bytes(content)
        tracks.append(Track(f"t{row}", path, labels=(labels[row % len(labels)],)))
    return tracks


def test_equal_files_are_one_group_and_named(tmp_path, capsys):
    """Three names of the same bytes go to one fold; the same size, the same middle or a missing file mean nothing."""
    a, b = b"x" * 50_000, b"y" * 10_000 + b"x" * 30_000 + b"y" * 10_000
    tracks = write_tracks(tmp_path, [a, b, a, None, b"", b"", b"short", a])
    dataset = keep_official(Dataset("t", "single", ("a", "b"), tuple(tracks)), Options(loader="folder"))
    assert duplicates(dataset.tracks) == [["t0", "t2", "t7"]]
    assert sorted(map(len, group_tracks(dataset.tracks))) == [1, 1, 1, 1, 1, 3]
    folds = assign_folds(dataset.tracks, ("a", "b"), n_folds=3, seed=0)
    assert len({folds[0], folds[2], folds[7]}) == 1
    said = capsys.readouterr().err
    assert f"2 files have the bytes of another, and go to one split or fold with it: {tmp_path / '2.wav'} = " in said
    assert "1 files have the bytes of one with other labels" in said
    assert f"{tmp_path / '7.wav'} = {tmp_path / '0.wav'} (b and a)" in said


def test_only_files_of_one_size_are_opened(tmp_path, monkeypatch):
    """A thousand files of different sizes are not read at all, those of one size in part, equal ones as a whole."""
    opened = []
    monkeypatch.setattr(splits, "_sample", lambda path: opened.append(path) or path.read_bytes()[:1])
    monkeypatch.setattr(splits, "file_sha256", lambda path: opened.append(path) or path.read_bytes())
    tracks = write_tracks(tmp_path, [bytes(n) for n in range(1, 300)] + [b"a12", b"b34", b"a12"])
    found = keep_official(Dataset("t", "single", ("a", "b"), tuple(tracks)), Options(loader="folder"))
    assert duplicates(found.tracks) == [["t299", "t301"]]
    assert sorted(path.name for path in opened) == ["2.wav", "299.wav", "299.wav", "300.wav", "301.wav", "301.wav"]


def test_equal_files_in_two_official_splits(tmp_path, capsys):
    """They are named with both splits; data.artist_leaks=drop leaves the one that trains out."""
    first, second, third = write_tracks(tmp_path, [b"same", b"other", b"same"], labels="a")
    tracks = (replace(first, split="train"), replace(second, split="train"), replace(third, split="test"))
    dataset = Dataset("t", "single", ("a",), tracks)
    kept = keep_official(dataset, Options(loader="folder"))
    assert len(kept.tracks) == 3
    said = capsys.readouterr().err
    assert f"{tmp_path / '2.wav'} = {tmp_path / '0.wav'} (test and train)" in said
    assert "artist or file is scored as well: 1; scores will be too high" in said
    kept = keep_official(dataset, Options(loader="folder", artist_leaks="drop"))
    assert [track.track_id for track in kept.tracks] == ["t1", "t2"]
