"""The AI Rush loader on exact, damaged and real files."""

import json
import shutil
from collections import Counter

import numpy as np
import pytest

from tfmusic.config.loading import find_config, load_config
from tfmusic.datasets import airush, metadata, synthetic
from tfmusic.datasets.splits import assign_folds
from tfmusic.errors import DataError
from tfmusic.models import build_model


@pytest.fixture
def q2(music, tmp_path):
    """A copy of the q2 folder that a test may damage."""
    shutil.copytree(music / "q2", tmp_path / "q2")
    return tmp_path / "q2"


def rewrite_labels(folder, change):
    path = folder / "train" / "train_label"
    table = json.loads(path.read_text(encoding="utf-8"))
    change(table)
    path.write_text(json.dumps(table), encoding="utf-8")


@pytest.mark.parametrize(("question", "kind"), [("q1", "single"), ("q2", "multi"), ("q3", "single")])
def test_load(music, question, kind):
    """Every question loads with its labels, artists and metadata, from its folder and from the one above."""
    dataset = airush.load(music / question, airush.Options(question=question), task=question)
    assert dataset.kind == kind
    assert list(dataset.labels) == sorted(dataset.labels)
    assert all(track.feature_path.is_file() for track in dataset.tracks)
    assert all(track.artists and track.album for track in dataset.tracks)
    assert "title" in dataset.tracks[0].metadata
    assert airush.load(music, airush.Options(question=question), task=question) == dataset


def test_load_test_keeps_data_idx_order(music):
    """Test tracks come in the order of the list, with no labels."""
    tracks = airush.load_test(music / "q2" / "test", question="q2")
    listing = json.loads((music / "q2/test/test_data/meta/q2_test.json").read_text())
    assert [track.track_id for track in tracks] == [str(value) for value in listing["track_index"].values()]
    assert airush.find_test(music / "q2" / "test") == "q2"
    assert airush.find_test(music) is None


def test_row_keys_are_ordered_as_numbers(tmp_path):
    """Row "10" comes after row "9", whatever the order in the file."""
    path = tmp_path / "table"
    path.write_text(json.dumps({"a": {str(i): i for i in (10, 9, 2, 0)}}))
    assert [row["a"] for row in metadata.read_columns(path)] == [0, 2, 9, 10]


def test_meta_folder_may_be_missing(q2):
    """Without metadata a track still loads, and is its own group."""
    shutil.rmtree(q2 / "train" / "train_data" / "meta")
    dataset = airush.load(q2, airush.Options(question="q2"), task="q2")
    assert all(track.artists == () and track.album is None and track.metadata == {} for track in dataset.tracks)


@pytest.mark.parametrize("text", ["{}", "[]", "not json", '{"track_index": {"0": ID}, "lyric": {"0": "la la"}}'])
def test_lyrics_are_tolerated(q2, text):
    """The schema of lyric_meta is not known: text is taken where it is found, anything else is left alone."""
    first = airush.load(q2, airush.Options(question="q2"), task="q2").tracks[0]
    assert "lyric" not in first.metadata
    (q2 / "train/train_data/meta/lyric_meta.json").write_text(text.replace("ID", first.track_id))
    first, *others = airush.load(q2, airush.Options(question="q2"), task="q2").tracks
    assert first.metadata.get("lyric") == ("la la" if "la la" in text else None)
    assert not any("lyric" in track.metadata for track in others)


@pytest.mark.parametrize(
    "text",
    [
        '[{"track_id": "ID", "title": "song", "lyrics": "la la"}]',
        '[{"id": ID, "words": "la la"}, 7]',
        '{"ID": "la la"}',
        '{"track": {"0": ID}, "Lyric": {"0": "la la"}, "singer": {"0": "x"}}',
    ],
)
def test_lyrics_of_other_schemas(q2, text):
    """Rows in place of columns, texts by track, other names of columns."""
    track_id = airush.load(q2, airush.Options(question="q2"), task="q2").tracks[0].track_id
    (q2 / "train/train_data/meta/lyric_meta.json").write_text(text.replace("ID", track_id))
    assert airush.load(q2, airush.Options(question="q2"), task="q2").tracks[0].metadata["lyric"] == "la la"


@pytest.mark.parametrize(
    ("text", "named"),
    [("not json", "must be JSON"), ('[{"song": 1, "words": "la"}]', "Received: song, words"), ("[[1]]", "list")],
)
def test_lyrics_that_cannot_be_read_are_warned_of(q2, text, named, capsys):
    """Lyrics never get lost without a word."""
    (q2 / "train/train_data/meta/lyric_meta.json").write_text(text)
    assert not any("lyric" in one.metadata for one in airush.load(q2, airush.Options(question="q2"), task="q2").tracks)
    said = capsys.readouterr().err
    assert all(part in said for part in ("lyric_meta.json", named, "left out"))


def test_indices_written_as_floats_still_group(q2):
    """A tool that meets nulls writes 7 as 7.0: artists, albums and metadata are found all the same."""
    before = airush.load(q2, airush.Options(question="q2"), task="q2")
    for name in ("track", "album", "artist"):
        path = q2 / f"train/train_data/meta/{name}_meta.json"
        table = json.loads(path.read_text(encoding="utf-8"))
        for column in (f"{name}_index", "album_index"):
            table[column] = {key: float(value) for key, value in table.get(column, {}).items()}
        if name == "track":
            table["artist_index_list"] = {k: [float(i) for i in v] for k, v in table["artist_index_list"].items()}
        path.write_text(json.dumps(table), encoding="utf-8")
    assert airush.load(q2, airush.Options(question="q2"), task="q2") == before


@pytest.mark.parametrize("value", [7, "x", [[1]], [None], {"a": 1}, float("inf")])
def test_odd_metadata_cells_are_left_out(q2, value):
    """A cell of another shape than the format's is missing metadata, not an error."""
    path = q2 / "train/train_data/meta/track_meta.json"
    table = json.loads(path.read_text(encoding="utf-8"))
    for column in ("artist_index_list", "album_index", "play_time", "genre", "is_oversea", "has_lyric", "track_title"):
        table[column] = dict.fromkeys(table[column], value)
    path.write_text(json.dumps(table), encoding="utf-8")
    assert len(airush.load(q2, airush.Options(question="q2"), task="q2").tracks) == 24


def test_metadata_of_other_tracks_is_warned_of(q2, capsys):
    """A track_meta that knows none of the tracks would silently let artists leak between folds."""
    path = q2 / "train/train_data/meta/track_meta.json"
    table = json.loads(path.read_text(encoding="utf-8"))
    table["track_index"] = {key: value + 100000 for key, value in table["track_index"].items()}
    path.write_text(json.dumps(table), encoding="utf-8")
    airush.load(q2, airush.Options(question="q2"), task="q2")
    assert "track_meta.json has none of the labelled tracks" in capsys.readouterr().err


def test_various_artists_is_no_group(q2):
    """Tracks of 'Various Artists' are not tied together by that name."""
    row = {"artist_index_list": [1, 7], "artist_name_list": ["Various Artists", "가수"]}
    assert metadata.artist_keys(row) == ("#7",)
    assert metadata.artist_keys({"artist_name_list": ["Various Artists", ""]}) == ()


@pytest.mark.parametrize(
    ("function", "value", "expected"),
    [
        (metadata.decode_play_time, 1591331700000, 275),
        (metadata.decode_play_time, None, None),
        (metadata.decode_play_time, float("nan"), None),
        (metadata.decode_year, "1998-05-26", 1998),
        (metadata.decode_year, "19981101", 1998),
        (metadata.decode_year, "2019-05", 2019),
        (metadata.decode_year, "2019", 2019),
        (metadata.decode_year, None, None),
        (metadata.decode_year, "soon", None),
        (metadata.decode_genres, "발라드,  R&B/소울", ("발라드", "R&B/소울")),
        (metadata.decode_genres, "한, 둘", ("한, 둘",)),
        (metadata.decode_genres, "", ()),
        (metadata.decode_genres, None, ()),
        (metadata.decode_text, "-", None),
        (metadata.decode_flag, "Y", True),
        (metadata.decode_flag, 0.0, False),
        (metadata.decode_flag, None, None),
    ],
)
def test_decoders(function, value, expected):
    """Metadata cells decode as the files have them, missing values to None."""
    assert function(value) == expected


def test_play_time_of_synthetic_data_decodes():
    """What `synth` writes is what the loader reads."""
    assert metadata.decode_play_time(synthetic._encode_play_time(275)) == 275
    assert synthetic._encode_play_time(275) == 1591331700000


def drop_column(table):
    del table["mood_tag"]


def empty_label(table):
    table["mood_tag"]["1"] = []


def blank_label(table):
    table["mood_tag"]["1"] = ["", "x"]


def broken_line(table):
    table["mood_tag"]["1"] = ["two\nlines"]


def null_label(table):
    table["mood_tag"]["1"] = None


def duplicate(table):
    table["track_index"]["1"] = table["track_index"]["0"]


def climbing_id(table):
    table["track_index"]["1"] = "../../etc/passwd"


def dotted_id(table):
    table["track_index"]["1"] = ".."


def no_rows(table):
    for column in table.values():
        column.clear()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop_column, "train_label: must have the column 'mood_tag'"),
        (empty_label, r"train_label: track \d+: mood_tag must be a list of printable names.*Received: \[\]"),
        (blank_label, r"mood_tag must be a list of printable names, not empty"),
        (broken_line, "mood_tag must be a list of printable names"),
        (null_label, r"mood_tag must be .*Received: None"),
        (duplicate, r"track id '\d+' appears twice; ids must be unique"),
        (climbing_id, r"a track id must be a plain name .*\.\./\.\./etc/passwd"),
        (dotted_id, r"a track id must be a plain name .*'\.\.'"),
        (no_rows, "must list at least one track"),
    ],
)
def test_bad_labels(q2, change, message):
    """A wrong label file names file, track and what must hold."""
    rewrite_labels(q2, change)
    with pytest.raises(DataError, match=message):
        airush.load(q2, airush.Options(question="q2"), task="q2")


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", '{"track_index": [1]}', '{"a": {"x": 1}}', "\xff", "[" * 100000])
def test_label_file_that_is_no_table(q2, text):
    """Text that is no column table is refused in one line."""
    (q2 / "train" / "train_label").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match="train_label"):
        airush.load(q2, airush.Options(question="q2"), task="q2")


def test_missing_folders(music, tmp_path):
    """A missing folder is named, with where it was looked for."""
    with pytest.raises(DataError, match="no such folder"):
        airush.load(tmp_path / "nowhere", airush.Options(question="q2"), task="q2")
    with pytest.raises(DataError, match=r"must hold the train part of q2\. Looked for"):
        airush.load(tmp_path, airush.Options(question="q2"), task="q2")


@pytest.mark.parametrize("question", ["q1", "q3"])
def test_real_metadata(shared_data, tmp_path, question):
    """The real metadata files of the competition load, with artists and albums for grouping."""
    rows = json.loads((shared_data / "airush-meta" / question / "track_meta.json").read_text(encoding="utf-8"))
    train = tmp_path / question / "train"
    (train / "train_data" / "mel_spectrogram").mkdir(parents=True)
    if question == "q1":
        shutil.copytree(shared_data / "airush-meta" / "q1", train / "train_data" / "meta")
        stations = {key: synthetic.STATIONS[int(key) % 4] for key in rows["track_index"]}
        (train / "train_label").write_text(json.dumps({"track_index": rows["track_index"], "station_name": stations}))
    else:
        (train / "train_label").write_text(json.dumps(rows))
    dataset = airush.load(tmp_path, airush.Options(question=question), task=question)
    assert len(dataset.tracks) == {"q1": 6456, "q3": 3945}[question]
    albums = set(rows["album_index" if question == "q1" else "album_name"].values()) - {None}
    assert len({track.album for track in dataset.tracks if track.album}) == len(albums)
    durations = [track.metadata["duration_s"] for track in dataset.tracks if "duration_s" in track.metadata]
    assert len(durations) == {"q1": 6456 - 692, "q3": 0}[question]
    assert all("genres" not in track.metadata for track in dataset.tracks if question == "q3")
    folds = assign_folds(dataset.tracks, dataset.labels, n_folds=5, seed=0)
    fold_of = {}
    for track, fold in zip(dataset.tracks, folds, strict=True):
        for key in [*track.artists, f"album {track.album}"] if track.album else track.artists:
            assert fold_of.setdefault(key, fold) == fold
    pairs = Counter(zip(folds, (track.labels[0] for track in dataset.tracks), strict=True))
    n_each = len(dataset.tracks) / 5 / len(dataset.labels)
    # One singer of q3 has 187 tracks, in a group of 231 that no fold can share.
    assert all(abs(count - n_each) < 0.2 * n_each for count in pairs.values()), pairs


@pytest.mark.parametrize("question", ["q1", "q2", "q3"])
def test_baseline_is_the_original(question):
    """The configs of the baseline have the original's input, network, optimizer and schedule."""
    config = load_config(find_config(f"{question}-baseline"))
    assert (config.task, config.record.scale, config.record.segments) == (question, "log10_1p10", "first")
    assert (config.record.segment_frames, config.input.frames, config.record.segments_per_track) == (1200, 1200, 1)
    assert (config.record.dtype, config.input.normalize, config.augment.policy) == ("float32", "none", "none")
    training = config.training
    assert (training.optimizer, training.learning_rate, training.momentum) == ("sgd", 0.01, 0.9)
    assert (training.weight_decay, training.batch_size) == (1e-6, 16)
    assert (training.schedule, training.plateau_factor, training.plateau_epochs) == ("plateau", 0.2, 5)
    model = build_model(config.model.name, frames=1200, n_bins=128, n_outputs=4, **config.model.builder_options)
    assert sum(int(np.prod(weight.shape)) for weight in model.trainable_weights) == 6_536_836
