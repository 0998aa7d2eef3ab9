"""Segments by number from mapped shards: what they hold, an index that does not fit, shards that change."""

import errno
import os
import shutil

import numpy as np
import pytest

from tests.test_converter import build
from tfmusic.errors import RecordsError
from tfmusic.records.manifest import Manifest
from tfmusic.records.reader import iterate
from tfmusic.records.segments import Index, Segments

SPLITS = ("fold0", "fold3")


@pytest.fixture
def manifest(records, tmp_path):
    """Records of one's own, without an index."""
    folder = shutil.copytree(records, tmp_path / "records", ignore=shutil.ignore_patterns("*.index"))
    return Manifest.read(folder)


def check(manifest, splits=SPLITS):
    """Compares all segments of some splits with what reading the shards from their beginning gives."""
    stored = [pair for split in splits for pair in iterate(manifest, split)]
    segments = Segments(manifest, splits)
    numbers = np.random.default_rng(0).permutation(len(segments))
    codes = segments.codes(numbers)
    assert codes.dtype == manifest.contract.dtype and len(codes) == len(stored)
    for number, some, target in zip(numbers, codes, segments.targets(numbers), strict=True):
        header, wanted = stored[number]
        np.testing.assert_array_equal(some, wanted)
        assert set(np.flatnonzero(target)) == set(manifest.contract.target_ids(header.label))
        assert segments.table.track[number] == header.track
    assert segments.header(int(numbers[0])) == stored[numbers[0]][0]


@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32"])
def test_segments_are_those_in_file_order(music, tmp_path, dtype):
    """Codes of every type, targets and tracks are those of the records, whatever order is asked for."""
    assert build(music, tmp_path / "q2", f"record.dtype={dtype}", "--workers", "1") == 0
    check(Manifest.read(tmp_path / "q2"))


def test_rows_of_a_segment(manifest):
    """Frames come in the order asked for: a stretch, one backwards, one that leaves out and repeats some."""
    segments = Segments(manifest, SPLITS)
    whole = segments.codes(np.arange(3))
    rows = np.array([np.arange(50, 57), np.arange(57, 50, -1), [3, 3, 9, 300, 300, 8, 312]])
    np.testing.assert_array_equal(segments.codes(np.arange(3), rows), np.take_along_axis(whole, rows[:, :, None], 1))
    assert segments.codes(np.arange(2), rows[:2, :1]).shape == (2, 1, 128)


def test_the_index_is_left_beside_the_shards(manifest, monkeypatch):
    """It is made once; the next process reads a few bytes a segment of it, and no shard."""
    check(manifest)
    paths = sorted(manifest.folder.glob("*.index"))
    assert [path.name for path in paths] == [f"{manifest.name}-{split}.index" for split in SPLITS]
    assert all(
        path.stat().st_size < 60 * manifest.split(split).segments for path, split in zip(paths, SPLITS, strict=True)
    )
    monkeypatch.setattr(Index, "_scan", None)
    check(manifest)


@pytest.mark.parametrize("how", ["flipped", "cut", "empty", "longer", "of other shards", "forged", "a folder"])
def test_an_index_that_does_not_fit_is_made_again(manifest, records, how):
    """A damaged file, one of other shards, and one that leads beyond a shard are not believed."""
    index = Index.of(manifest, "fold0")
    path = manifest.folder / f"{manifest.name}-fold0.index"
    data = bytearray(path.read_bytes())
    if how == "flipped":
        data[40] ^= 1
    elif how in ("cut", "empty"):
        del data[(len(data) // 2 if how == "cut" else 0) :]
    elif how == "longer":
        data += bytes(8)
    elif how == "of other shards":
        Index.of(manifest, "fold1")
        data = bytearray((manifest.folder / f"{manifest.name}-fold1.index").read_bytes())
    elif how == "forged":
        from tfmusic.records.segments import _digest

        index.codes_at.flags.writeable = True
        index.codes_at[0] = manifest.split("fold0").shards[0].bytes
        data = bytearray(_digest(manifest.split("fold0").shards, index._bytes()) + index._bytes())
    path.unlink()
    path.mkdir() if how == "a folder" else path.write_bytes(data)
    check(manifest)
    if how != "a folder":
        assert path.read_bytes() != bytes(data)


def test_a_read_only_folder(manifest, monkeypatch):
    """Records of others need no file beside them."""

    def refuse(path):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr("tfmusic.records.segments.replacing", refuse)
    check(manifest)
    assert not list(manifest.folder.glob("*.index"))


def test_a_shard_that_changed(manifest):
    """A flipped byte is found when the segment is first read, another size as the epoch begins; both name the shard."""
    path = manifest.shard_paths("fold0")[0]
    numbers = np.arange(manifest.split("fold0").shards[0].segments)
    Segments(manifest, ("fold0",)).codes(numbers)  # leaves the index
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[len(whole) - 1000] ^= 1  # in the codes of the last segment
    for data, message in ((damaged, "damaged between bytes"), (whole[:-1], "must be"), (b"", "must be")):
        path.unlink()
        path.write_bytes(data)
        with pytest.raises(RecordsError, match=message) as error:
            Segments(manifest, ("fold0",)).codes(numbers)
        assert path.name in str(error.value)
    path.unlink()
    with pytest.raises(RecordsError, match="no file"):
        Segments(manifest, ("fold0",)).prepare()


def test_a_replaced_shard_is_read_as_it_was(manifest):
    """A build that takes the place of the records does not disturb a training that reads them."""
    segments = Segments(manifest, ("fold0",))
    numbers = np.arange(len(segments))
    before = segments.codes(numbers)
    for path in manifest.shard_paths("fold0"):
        path.unlink()
        path.write_bytes(b"another")
    np.testing.assert_array_equal(segments.codes(numbers), before)


def test_pages_that_were_given_back_are_read_again(manifest, monkeypatch):
    """More music than memory: the process keeps a part of its pages, and reads the same."""
    monkeypatch.setattr("tfmusic.records.segments._MAPPED_BYTES", manifest.segment_bytes)
    check(manifest)
