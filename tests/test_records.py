"""The record format against TensorFlow's own reader and parser, and TFDS."""

import json
import shutil
from collections import defaultdict

import numpy as np
import pytest
import tensorflow as tf

from tfmusic.core.windows import segment_starts
from tfmusic.errors import RecordsError
from tfmusic.records.format import SegmentHeader, decode, encode_prefix, even_ranges, n_shards, order_key
from tfmusic.records.manifest import Manifest, Statistics
from tfmusic.records.reader import iterate, iterate_tracks, read_shard
from tfmusic.records.writer import ShardWriter

HEADERS = [
    SegmentHeader("42", 0, 0, 5, (1,)),
    SegmentHeader("노래 7", 129, 313, 1 << 40, (0, 5, 300), (7, 1 << 33)),
    SegmentHeader("x", 1, 2, 3, ()),
]


@pytest.mark.parametrize("header", HEADERS, ids=["plain", "wide", "empty"])
def test_example_is_what_tensorflow_parses(header):
    """TensorFlow's protocol buffers read every field back; so does our decoder, from theirs and from ours."""
    cells = bytes(range(30))
    encoded = encode_prefix(header, 30) + cells
    feature = tf.train.Example.FromString(encoded).features.feature
    assert feature["track_id"].bytes_list.value[0].decode() == header.track_id
    assert tuple(feature["label"].int64_list.value) == header.label
    assert tuple(feature["tokens"].int64_list.value) == header.tokens
    assert [feature[name].int64_list.value[0] for name in ("track", "start", "valid")] == [
        header.track, header.start, header.valid,
    ]  # fmt: skip
    assert feature["mel"].bytes_list.value[0] == cells
    reserialized = tf.train.Example.FromString(encoded).SerializeToString()
    for record in (encoded, reserialized):
        again, read = decode(record)
        assert (again, bytes(read)) == (header, cells)


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16383, 16384])
def test_lengths_around_the_steps_of_varints(size):
    """Lengths of one, two and three bytes are all right."""
    record = encode_prefix(HEADERS[0], size) + bytes(size)
    assert len(tf.train.Example.FromString(record).features.feature["mel"].bytes_list.value[0]) == size


def test_every_cut_or_flipped_prefix_is_refused_or_read(tmp_path):
    """No byte of a record, flipped or missing, makes the decoder hang or fail in another way than RecordsError."""
    record = encode_prefix(HEADERS[1], 8) + bytes(8)
    damaged = [record[:n] for n in range(len(record))]
    damaged += [
        record[:i] + bytes([record[i] ^ (1 << bit)]) + record[i + 1 :] for i in range(len(record)) for bit in range(8)
    ]
    for raw in damaged:
        try:
            decode(raw)
        except RecordsError:
            continue


def test_writer_agrees_with_tensorflow(tmp_path):
    """Records written in any order are, in file order, byte for byte TensorFlow's TFRecord file."""
    rng = np.random.default_rng(0)
    cells = {(h.track, h.start): rng.integers(0, 256, (4, 3), np.uint8) for h in HEADERS}
    with ShardWriter(tmp_path / "ours", HEADERS, 12) as writer:
        for header in reversed(HEADERS):
            writer.write(header.track, header.start, cells[header.track, header.start])
        size, digest = writer.finish()
    with tf.io.TFRecordWriter(str(tmp_path / "tensorflow")) as writer:
        for header in HEADERS:
            writer.write(encode_prefix(header, 12) + cells[header.track, header.start].tobytes())
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "tensorflow").read_bytes()
    assert size == (tmp_path / "ours").stat().st_size
    assert len(digest) == 64


def test_unfinished_shard_leaves_nothing(tmp_path):
    """An error inside, or segments missing at the end, leave no file of any name."""
    with pytest.raises(ValueError, match="0 of 3 segments written"), ShardWriter(tmp_path / "x", HEADERS, 12) as writer:
        writer.finish()
    assert list(tmp_path.iterdir()) == []


def test_reader_and_tensorflow_read_the_same(records):
    """The numpy reader yields what tf.data parses, in the same order."""
    manifest = Manifest.read(records)
    files = [str(path) for path in manifest.shard_paths("fold1")]
    spec = {"mel": tf.io.FixedLenFeature([], tf.string), "label": tf.io.RaggedFeature(tf.int64)}
    count = 0
    for record, (header, cells) in zip(tf.data.TFRecordDataset(files), iterate(manifest, "fold1"), strict=True):
        parsed = tf.io.parse_single_example(record, spec)
        assert tuple(parsed["label"].numpy()) == header.label
        np.testing.assert_array_equal(np.frombuffer(parsed["mel"].numpy(), np.uint8), cells.ravel())
        count += 1
    assert count == manifest.split("fold1").segments


def test_tfds_reads_the_folder(records):
    """`tfds.builder_from_directory` reads every split with names of labels."""
    import tensorflow_datasets as tfds

    manifest = Manifest.read(records)
    builder = tfds.builder_from_directory(str(records))
    assert {name: split.num_examples for name, split in builder.info.splits.items()} == {
        name: split.segments for name, split in manifest.splits.items()
    }
    assert tuple(builder.info.features["label"].feature.names) == manifest.contract.labels
    first = next(iter(builder.as_dataset(split="fold0")))
    _, cells = next(iterate(manifest, "fold0"))
    track_ids = {bytes(h.track_id, "utf-8"): None for h, _ in iterate(manifest, "fold0")}
    assert first["track_id"].numpy() in track_ids
    assert first["mel"].shape == cells.shape
    assert first["mel"].dtype == tf.uint8


def test_mlcroissant_reads_the_tracks(records):
    """croissant.json is valid Croissant 1.0, and its reader finds every track with its labels."""
    mlcroissant = pytest.importorskip("mlcroissant")
    dataset = mlcroissant.Dataset(jsonld=str(records / "croissant.json"))
    assert not dataset.metadata.ctx.issues.errors
    rows = {row["tracks/track_id"].decode(): json.loads(row["tracks/labels"]) for row in dataset.records("tracks")}
    table = Manifest.read(records).read_tracks()
    assert rows == {row.track_id: row.labels for row in table.itertuples()}


def test_tracks_come_back_whole(records, music):
    """Every track of every split is put together again, frame for frame, exactly once."""
    from tfmusic.core.scale import Encoder
    from tfmusic.features.npy import read_mel

    manifest = Manifest.read(records)
    encoder, seen = Encoder(manifest.contract.scale, "uint8"), []
    for split in manifest.splits:
        for track in iterate_tracks(manifest, split):
            path = music / "q2/train/train_data/mel_spectrogram" / f"{track.track_id}.npy"
            np.testing.assert_array_equal(track.codes, encoder.encode(read_mel(path, 128)))
            seen.append(track.row)
    listing = json.loads((music / "q2" / "train" / "train_label").read_text(encoding="utf-8"))
    assert sorted(seen) == list(range(len(listing["track_index"])))


def test_statistics_are_those_of_all_frames(records):
    """Mean and variance from the manifest are numpy's over every frame of the chosen splits."""
    manifest = Manifest.read(records)
    chosen = ["fold0", "fold3"]
    frames = np.concatenate([track.codes for name in chosen for track in iterate_tracks(manifest, name)])
    mean, variance = Statistics.merge([manifest.split(name).statistics for name in chosen]).mean_and_variance()
    np.testing.assert_allclose(mean, frames.mean(0), rtol=1e-12)
    np.testing.assert_allclose(variance, frames.var(0), rtol=1e-9)


def test_segments_of_the_records_follow_the_law(records):
    """Starts, lengths and the order of segments are what the format says."""
    manifest = Manifest.read(records)
    for path in manifest.shard_paths("fold2"):
        headers = [header for header, _ in read_shard(path, manifest)]
        keys = [order_key(0, header.track_id, header.start) for header in headers]
        assert keys == sorted(keys)
        starts = defaultdict(list)
        for header in headers:
            starts[header.track].append(header.start)
    for track in iterate_tracks(manifest, "fold2"):
        if track.row in starts:
            expected = segment_starts(len(track.codes), frames=313, hop_frames=313).tolist()
            assert sorted(starts[track.row]) == expected


@pytest.mark.parametrize("where", ["length", "length crc", "data", "data crc"])
def test_flipped_byte_is_named(records, tmp_path, where):
    """A byte flipped anywhere in a record is found by the reader, and by `verify`, which names the shard."""
    shutil.copytree(records, tmp_path / "copy")
    manifest = Manifest.read(tmp_path / "copy")
    path = manifest.shard_paths("fold0")[0]
    raw = bytearray(path.read_bytes())
    length = int.from_bytes(raw[:8], "little")
    raw[{"length": 1, "length crc": 9, "data": 5000, "data crc": 12 + length}[where]] ^= 16
    path.write_bytes(raw)
    with pytest.raises(RecordsError, match=f"{path.name}: damaged"):
        list(iterate(manifest, "fold0"))
    with pytest.raises(RecordsError, match=f"{path.name}: damaged: its sha256"):
        manifest.verify(["fold0"])
    manifest.verify(["fold1"])


def test_missing_and_truncated_shards_are_named(records, tmp_path):
    """A shard that is gone, or shorter than the manifest says, is named."""
    shutil.copytree(records, tmp_path / "copy")
    manifest = Manifest.read(tmp_path / "copy")
    first, second = manifest.shard_paths("fold0")[:2]
    first.write_bytes(first.read_bytes()[:-1])
    with pytest.raises(RecordsError, match=f"{first.name}: must be .* bytes"):
        manifest.verify(["fold0"])
    with pytest.raises(RecordsError, match=f"{first.name}: damaged"):
        list(iterate(manifest, "fold0"))
    first.unlink()
    with pytest.raises(RecordsError, match=f"{first.name}: .* no file"):
        manifest.verify(["fold0"])
    assert second.is_file()


def test_manifest_of_another_version_or_damaged(records, tmp_path):
    """Another format version is refused by name; a changed manifest by its checksum."""
    text = (records / "manifest.json").read_text(encoding="utf-8")
    path = tmp_path / "manifest.json"
    path.write_text(text.replace('"format_version": 1', '"format_version": 2'), encoding="utf-8")
    with pytest.raises(RecordsError, match=r"reads record format 1\. Received: 2"):
        Manifest.read(tmp_path)
    path.write_text(text.replace('"tracks": ', '"tracks": 1', 1), encoding="utf-8")
    with pytest.raises(RecordsError, match="its checksum does not match"):
        Manifest.read(tmp_path)
    path.write_text("[]", encoding="utf-8")
    with pytest.raises(RecordsError, match="must be a manifest"):
        Manifest.read(tmp_path)


def test_records_folder_is_found_from_above(records, tmp_path):
    """`--records` takes the folder, or one that holds exactly one."""
    assert Manifest.read(records.parent).folder == records
    with pytest.raises(RecordsError, match="Received: no records here"):
        Manifest.read(tmp_path)
    shutil.copytree(records, tmp_path / ".a.partial")
    with pytest.raises(RecordsError, match="no records here"):
        Manifest.read(tmp_path)
    shutil.copytree(records, tmp_path / "a")
    assert Manifest.read(tmp_path).folder == tmp_path / "a"
    shutil.copytree(records, tmp_path / "b")
    with pytest.raises(RecordsError, match="several"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize(
    ("sizes", "count"), [([1] * 10, 3), ([5, 1, 1, 1], 2), ([1, 1, 100], 3), ([3], 1), (list(range(1, 50)), 7)]
)
def test_ranges_cover_everything_once(sizes, count):
    """No range is empty, together they are all items in order; equal items differ by one at most."""
    ranges = even_ranges(sizes, count)
    assert [item for chosen in ranges for item in chosen] == list(range(len(sizes)))
    assert len(ranges) == count
    assert all(len(chosen) for chosen in ranges)
    if len(set(sizes)) == 1:
        assert max(map(len, ranges)) - min(map(len, ranges)) <= 1


def test_ranges_need_items():
    """More ranges than items cannot be."""
    with pytest.raises(ValueError, match="need 1 to 2 ranges, got 3"):
        even_ranges([1, 1], 3)


def test_number_of_shards():
    """As many as asked for, more for large data, never more than tracks."""
    assert n_shards(10, at_least=4, shard_bytes=100, n_tracks=50) == 4
    assert n_shards(1001, at_least=4, shard_bytes=100, n_tracks=50) == 11
    assert n_shards(1001, at_least=4, shard_bytes=100, n_tracks=3) == 3


def test_order_depends_on_all_its_parts():
    """Seed, track and start each change the place of a segment."""
    keys = {order_key(0, "a"), order_key(1, "a"), order_key(0, "b"), order_key(0, "a", 0), order_key(0, "a", 1)}
    assert len(keys) == 5


def test_slow_checksums_are_said_once(records, monkeypatch, capsys):
    """Without the C extension of google-crc32c one line of warning, however many shards are read."""
    from tfmusic.records import writer

    monkeypatch.setattr(writer.google_crc32c, "implementation", "python")
    writer.warn_of_slow_checksums.cache_clear()
    manifest = Manifest.read(records)
    for split in manifest.splits:
        assert list(iterate(manifest, split))
    writer.warn_of_slow_checksums.cache_clear()
    lines = [line for line in capsys.readouterr().err.splitlines() if "google-crc32c" in line]
    assert len(lines) == 1
    assert "C extension" in lines[0]
