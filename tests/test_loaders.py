"""All loaders under one contract, and what is particular to each."""

import csv
import json
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests import miniatures
from tests.conftest import fit_small
from tfmusic.cli import main
from tfmusic.config.loading import config_from_text, find_config, load_config
from tfmusic.core.track import Track, check_track_id
from tfmusic.datasets import LOADER_SECTIONS, LOADERS, synthetic
from tfmusic.datasets import load as load_dataset
from tfmusic.datasets.files import SUFFIXES, FeatureFiles, below, plain_ids, read_table
from tfmusic.datasets.splits import OFFICIAL, choose_splits, group_tracks, leaking
from tfmusic.errors import ConfigError, DataError
from tfmusic.features import audio
from tfmusic.records.manifest import Manifest

OPTIONS = {"airush": {"question": "q2"}}
BASE = """
task: mini
record: {segment_frames: 64, hop_frames: 64, num_shards: 2}
input: {frames: 64, hop_frames: 64}
"""


def write(loader, place, suffix=".npy"):
    if loader == "airush":
        synthetic.write(place, n_tracks=30, seed=7, on_track=lambda: None)
    else:
        miniatures.WRITERS[loader](place, suffix=suffix)
    return place


def load(loader, place, **options):
    section = LOADER_SECTIONS[loader](loader=loader, **OPTIONS.get(loader, {}) | options)
    return LOADERS[loader].load(place, section, task="mini")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Folder of the miniature of a loader."""
    places = {}

    def place(loader):
        if loader not in places:
            places[loader] = write(loader, tmp_path_factory.mktemp(loader) / "data")
        return places[loader]

    return place


@pytest.fixture
def copied(written, tmp_path):
    """Copy of the miniature of a loader that a test may damage."""

    def copy(loader):
        shutil.copytree(written(loader), tmp_path / "data")
        return tmp_path / "data"

    return copy


def config_of(loader, tmp_path, **keys):
    path = tmp_path / "mini.yaml"
    lines = "".join(f", {key}: {value}" for key, value in (OPTIONS.get(loader, {}) | keys).items())
    path.write_text(f"{BASE}data: {{loader: {loader}, folds: 2{lines}}}\n")
    return str(path)


def build(loader, data, tmp_path, *more, **keys):
    out = tmp_path / "records"
    arguments = [config_of(loader, tmp_path, **keys), "--data", str(data), "--out", str(out), "--workers", "1"]
    return main(["build-records", *arguments, *more]), out


# --- The contract ----------------------------------------------------------------------------------------------


def test_every_loader_has_a_section_and_a_miniature():
    """The tables of loaders, config sections and miniatures name the same loaders."""
    assert set(LOADERS) == set(LOADER_SECTIONS) == {"airush", *miniatures.WRITERS}


@pytest.mark.parametrize("loader", LOADERS)
def test_contract(written, loader):
    """Ids are plain and unique, labels sorted and all in use, files there, splits official ones, twice the same."""
    dataset = load(loader, written(loader))
    ids = [track.track_id for track in dataset.tracks]
    assert [check_track_id(track_id, "") for track_id in ids] == ids
    assert len(set(ids)) == len(ids) > 0
    assert list(dataset.labels) == sorted({label for track in dataset.tracks for label in track.labels})
    assert all(track.feature_path.is_file() for track in dataset.tracks)
    assert all(track.feature_path.is_relative_to(written(loader)) for track in dataset.tracks)
    assert {track.split for track in dataset.tracks} == ({None} if loader == "airush" else set(OFFICIAL))
    assert dataset.kind in ("single", "multi")
    assert load(loader, written(loader)) == dataset


@pytest.mark.parametrize("loader", LOADERS)
def test_sections_are_in_the_same_order(loader):
    """Who has read one loader finds the way in the next: layout, what it is, loading, parts."""
    import importlib

    module = importlib.import_module(f"tfmusic.datasets.{loader}")
    text = Path(module.__file__).read_text(encoding="utf-8")
    order = [
        text.index(part) for part in ("Layout of the folder", "What the data set is", "# --- Loading", "# --- Parts")
    ]
    assert order == sorted(order)
    assert text.index("def load(") > order[2]


@pytest.mark.parametrize("loader", LOADERS)
def test_missing_folder_is_one_line(loader, tmp_path, capsys):
    """A folder that is not there, or is empty, ends with exit code 2 and a line that names it."""
    (tmp_path / "empty").mkdir()
    for name in ("nowhere", "empty"):
        code, out = build(loader, tmp_path / name, tmp_path)
        err = capsys.readouterr().err
        assert (code, out.exists()) == (2, False)
        assert str(tmp_path / name) in err
        assert err.count("\n") == 1


@pytest.mark.parametrize("loader", LOADERS)
def test_faulty_files_are_counted_and_listed(copied, loader, tmp_path, capsys):
    """A file that is gone, one that is corrupt and one too short: the first stops a build, or all are listed."""
    data = copied(loader)
    if loader == "airush":
        files = sorted((data / "q2/train/train_data/mel_spectrogram").glob("*.npy"))
    else:
        files = miniatures.audio_files(data)
    gone, corrupt, short = files[0], files[1], files[-1]
    names_files = loader != "folder"  # a folder cannot know what is missing
    if names_files:
        gone.unlink()
    corrupt.write_bytes(b"no music")
    np.save(short, np.ones((1, 128, 3), np.float32))
    assert build(loader, data, tmp_path)[0] == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert (gone.stem if names_files else corrupt.stem) in message
    code, out = build(loader, data, tmp_path, on_error="skip", min_s=0.2)
    assert code == 0
    printed = capsys.readouterr().out
    skipped = {Path(one["reason"].split(":")[0]).stem: one["reason"] for one in Manifest.read(out).skipped}
    assert set(skipped) == {gone.stem, corrupt.stem, short.stem} - (set() if names_files else {gone.stem})
    assert "no such file" in skipped.get(gone.stem, "no such file")
    assert "must last at least 0.2 s" in skipped[short.stem]
    assert f"{len(skipped)} tracks skipped" in printed
    assert all(f"skipped {entry['track_id']}" in printed for entry in Manifest.read(out).skipped)


@pytest.mark.parametrize("loader", [name for name in LOADERS if name != "airush"])
def test_official_splits_become_the_records_splits(written, loader, tmp_path, capsys):
    """Every track is stored in its official split; with data.splits=folds in folds; leaks are said or impossible."""
    code, out = build(loader, written(loader), tmp_path)
    assert code == 0
    manifest, dataset = Manifest.read(out), load(loader, written(loader))
    assert list(manifest.splits) == list(OFFICIAL)
    assert manifest.has_official_splits
    for split in OFFICIAL:
        wanted = [track.track_id for track in dataset.tracks if track.split == split]
        assert manifest.track_ids([split]) == wanted
    err = capsys.readouterr().err
    knows_artists = any(track.artists for track in dataset.tracks)
    assert ("tracks of one artist may stand in several splits" in err) == (not knows_artists)
    assert ("whose artist is scored as well: 1;" in err) == (loader == "fma")
    assert build(loader, written(loader), tmp_path, "--overwrite", splits="folds")[0] == 0
    assert set(Manifest.read(out).splits) == {"fold0", "fold1"}


# --- Splits ----------------------------------------------------------------------------------------------------


def track(n, split=None, artist=None, label="a"):
    return Track(str(n), None, (label,), split, (artist,) if artist else ())


def test_leaks_are_found_and_dropped(written, tmp_path, capsys):
    """An artist of the test split trains nothing once data.artist_leaks=drop; the test split stays whole."""
    before = load("fma", written("fma"))
    assert [before.tracks[row].track_id for row in leaking(before.tracks)] == ["000002"]
    code, out = build("fma", written("fma"), tmp_path, artist_leaks="drop")
    assert code == 0
    assert "whose artist is scored as well: 1; left out" in capsys.readouterr().out
    manifest = Manifest.read(out)
    assert "000002" not in manifest.track_ids(["train"])
    assert manifest.splits["test"].tracks == sum(track.split == "test" for track in before.tracks)


def test_names_of_one_file_are_said_and_counted(copied, tmp_path, capsys):
    """Training files under names of other splits: build-records names them, fit says so, evaluate counts them."""
    data = copied("folder")
    for part in ("valid", "test"):
        shutil.copy(data / "train/rock/train0.npy", data / f"{part}/rock/{part}9.npy")
    code, out = build("folder", data, tmp_path)
    assert code == 0
    said = capsys.readouterr().err
    assert all(str(data / f"{part}/rock/{part}9.npy") in said for part in ("valid", "test"))
    manifest = Manifest.read(out)
    assert [set(group) for group in manifest.settings["duplicates"]] == [{"rock-train0", "rock-valid9", "rock-test9"}]
    config = config_of("folder", tmp_path)
    assert fit_small(config, out, tmp_path / "run", "training.fold=official", "training.epochs=1") == 0
    assert "note: 1 of the validation tracks are the same music as training tracks" in capsys.readouterr().out
    assert main(["evaluate", str(tmp_path / "run"), "--split", "test"]) == 0
    assert "same music as 1 of these tracks under other names" in capsys.readouterr().out
    (report,) = (tmp_path / "run" / "evaluation").rglob("report.json")
    checked = json.loads(report.read_text(encoding="utf-8"))["audit"]
    assert (checked["duplicates"], checked["trained_on"], checked["scored"]) == (1, 0, 5)


def test_leaks_go_towards_what_is_scored_last():
    """Training leaks by validation or test, validation by test; test never leaks."""
    tracks = [
        track(0, "train", "a"), track(1, "validation", "a"), track(2, "validation", "b"), track(3, "test", "b"),
        track(4, "train", "b"), track(5, "train", "c"), track(6, "test", None), track(7, "train", None),
    ]  # fmt: skip
    assert leaking(tracks) == [0, 2, 4]


def test_validation_is_dealt_where_it_is_missing():
    """One fold of the training tracks validates, no artist on both sides; test stays as it is."""
    tracks = [track(n, "train", f"artist {n // 2}", "ab"[n % 2]) for n in range(20)]
    tracks += [track(n, "test", None, "a") for n in range(20, 24)]
    splits = choose_splits(tracks, ("a", "b"), n_folds=5, seed=0)
    assert Counter(splits) == {"train": 16, "validation": 4, "test": 4}
    assert splits[20:] == ["test"] * 4
    assert all(splits[n] == splits[n + 1] for n in range(0, 20, 2))


@pytest.mark.parametrize(
    ("tracks", "message"),
    [
        ([track(0, "train"), track(1)], "1 tracks without one, such as 1"),
        ([track(0, "test"), track(1, "validation")], "and some train"),
        ([track(0, "train"), track(1, "late")], "such as 1"),
    ],
)
def test_half_splits_are_refused(tracks, message):
    """Some tracks without a split, no training tracks, or a split of another name."""
    with pytest.raises(DataError, match=message):
        choose_splits(tracks, ("a",), n_folds=2, seed=0)


# --- GTZAN -----------------------------------------------------------------------------------------------------


def test_gtzan_lists_decide(written):
    """Clips are in the split of their list; ten genres or eight, ids in alphabetical order."""
    dataset = load("gtzan", written("gtzan"))
    by_id = {one.track_id: one for one in dataset.tracks}
    assert by_id["rock.00003"].split == "test"
    assert by_id["blues.00002"].split == "validation"
    assert dataset.labels == miniatures.GTZAN_GENRES
    eight = load("gtzan", written("gtzan"), n_classes=8)
    assert eight.labels == ("classical", "country", "disco", "hiphop", "jazz", "metal", "pop", "reggae")
    assert len(eight.tracks) == 32


def test_gtzan_deals_validation_clips(tmp_path):
    """Without a validation list some training clips of every genre validate, the same for the same seed."""
    miniatures.write_gtzan(tmp_path, ".npy", clips=9, lists=("train", "test"), genres=("jazz", "pop"))
    dataset = load("gtzan", tmp_path)
    counts = Counter((one.labels[0], one.split) for one in dataset.tracks)
    assert counts == {(g, s): n for g in ("jazz", "pop") for s, n in (("train", 3), ("validation", 5), ("test", 1))}
    assert load("gtzan", tmp_path) == dataset
    assert load("gtzan", tmp_path, seed=1) != dataset
    with pytest.raises(DataError, match=r"must list more than 8 clips of jazz. Received: 8"):
        load("gtzan", tmp_path, validation_per_class=8)


def test_gtzan_without_lists_has_no_splits(written, tmp_path):
    """All clips of the folder, to be assigned to folds."""
    dataset = load("gtzan", written("gtzan"), lists="none")
    assert {one.split for one in dataset.tracks} == {None}
    assert len(dataset.tracks) == 40
    with pytest.raises(DataError, match=r"typo: no such folder; data.lists must name a folder of lists, or none"):
        load("gtzan", written("gtzan"), lists="typo")


def test_gtzan_filtered_lists_leave_out(written, tmp_path, capsys):
    """Lists of the user's own, in another folder and other spellings; clips in none are left out and counted."""
    lists = tmp_path / "filtered"
    lists.mkdir()
    (lists / "train_filtered.txt").write_text("blues/blues.00000.wav\n\njazz.00000.au\n")
    (lists / "valid_filtered.txt").write_text("blues.00001\nsomewhere/jazz/jazz.00001.wav\n")
    (lists / "test_filtered.txt").write_text("blues/blues.00002\njazz/jazz.00099.wav\n")
    dataset = load("gtzan", written("gtzan"), lists=str(lists))
    assert {one.track_id: one.split for one in dataset.tracks} == {
        "blues.00000": "train", "blues.00001": "validation", "blues.00002": "test",
        "jazz.00000": "train", "jazz.00001": "validation", "jazz.00099": "test",
    }  # fmt: skip
    assert "35 of 40 clips are in none of the lists: left out" in capsys.readouterr().err
    missing = next(one for one in dataset.tracks if one.track_id == "jazz.00099")
    assert missing.feature_path == written("gtzan") / "wav/jazz/jazz.00099.wav"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("train.txt", "../../etc/passwd\n", "line 1 must name a clip"),
        ("train.txt", "polka/polka.00000.wav\n", "must name a clip"),
        ("test.txt", "blues/blues.00000.wav\n", "the clip blues.00000 appears twice"),
        ("test.txt", "", "must hold train.txt and test.txt, neither empty"),
        (
            "validation.txt",
            "blues.00001",
            "must hold one list of validation clips. Received: valid.txt, validation.txt",
        ),
        ("train.txt", "\xff", "must name a clip"),
    ],
)
def test_gtzan_bad_lists(copied, name, text, message):
    """A line that is no clip, a clip in two lists, an empty or second list."""
    data = copied("gtzan")
    (data / "split" / name).write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        load("gtzan", data)


def test_gtzan_two_files_of_one_clip(copied):
    """A clip as wav and as npy: which one is meant is not guessed."""
    data = copied("gtzan")
    shutil.copy(data / "wav/pop/pop.00000.npy", data / "wav/pop/pop.00000.wav")
    with pytest.raises(DataError, match=r"must be one file a track. Received: pop.00000.npy, pop.00000.wav"):
        load("gtzan", data)


# --- FMA -------------------------------------------------------------------------------------------------------


def test_fma_genres(written):
    """The top genre alone; all genres with their parents; the top genre first for a soft target."""
    tops, firsts, every = (load("fma", written("fma"), genres=name) for name in ("top", "top_first", "all"))
    assert [dataset.kind for dataset in (tops, firsts, every)] == ["single", "single", "multi"]
    third = "000562"  # track 8: Rock, with the children Punk and Hardcore, which is below Punk
    labels = [next(one.labels for one in d.tracks if one.track_id == third) for d in (tops, firsts, every)]
    assert labels == [("Rock",), ("Rock", "Hardcore", "Punk"), ("Hardcore", "Punk", "Rock")]
    assert tops.labels == ("Blues", "Folk", "Jazz", "Rock")
    assert every.labels == ("Blues", "Bop", "Folk", "Hardcore", "Jazz", "Punk", "Rock")
    assert tops.tracks[0].artists == ("7",)
    assert tops.tracks[0].metadata == {"artists": ["Artist 7"], "title": "Song 0", "album": "Album 0"}


def test_fma_closes_over_parents(copied):
    """A track of Hardcore alone is of Punk and Rock as well: the tree says so."""
    data = copied("fma")
    rewrite_fma(data, lambda row: row.__setitem__(10, "[31]"))
    assert {one.labels for one in load("fma", data, genres="all").tracks} == {("Hardcore", "Punk", "Rock")}


def test_fma_genres_of_one_title(copied):
    """Two genres of one title stay two classes: the later one bears its id."""
    data = copied("fma")
    path = data / "fma_metadata" / "genres.csv"
    path.write_text(path.read_text().replace("Hardcore", "Punk"))
    assert {"Punk", "Punk (31)"} <= set(load("fma", data, genres="all").labels)


def rewrite_fma(data, change):
    path = data / "fma_metadata" / "tracks.csv"
    with path.open(newline="", encoding="utf-8") as file:
        lines = list(csv.reader(file))
    for row in lines[3:]:
        change(row)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(lines)


def test_fma_merges_genres(written):
    """`merge` makes one class of several; a name that is no genre is refused."""
    dataset = load("fma", written("fma"), merge={"Roots": ["Folk", "Blues"]})
    assert dataset.labels == ("Jazz", "Rock", "Roots")
    with pytest.raises(DataError, match=r"data.merge must name genres of .*genres.csv. Received: Polka"):
        load("fma", written("fma"), merge={"Roots": ["Polka"]})


def test_fma_tracks_without_top_genre_are_left_out(copied, capsys):
    """fma_large has many: they are counted; a soft target takes the first of genres_all that is a top genre."""
    data = copied("fma")
    rewrite_fma(data, lambda row: row.__setitem__(8, "" if row[0] == "2" else row[8]))
    assert len(load("fma", data).tracks) == 23
    assert "1 of 24 tracks have no top genre: left out" in capsys.readouterr().err
    assert len(load("fma", data, genres="all").tracks) == 24
    rewrite_fma(data, lambda row: row.__setitem__(10, "[25, 17, 12]" if row[0] == "2" else row[10]))
    first = load("fma", data, genres="top_first").tracks[0]
    assert (first.track_id, first.labels) == ("000002", ("Folk", "Punk", "Rock"))


def test_fma_subsets_hold_smaller_ones(copied):
    """fma_medium has the tracks of small and medium, from its own folder."""
    data = copied("fma")
    rewrite_fma(data, lambda row: row.__setitem__(7, "medium" if row[0] == "2" else "small"))
    assert len(load("fma", data).tracks) == 23
    (data / "fma_small").rename(data / "fma_medium")
    assert len(load("fma", data, subset="medium").tracks) == 24
    small = load("fma", data)  # of the larger download
    assert len(small.tracks) == 23
    assert small.tracks[0].feature_path.is_relative_to(data / "fma_medium")
    with pytest.raises(DataError, match=r"fma_large: no such folder"):
        load("fma", data, subset="large")


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (0, "../2", "track_id: must be a whole number. Received: '../2'"),
        (6, "later", "track 000002: a split must be train, validation or test. Received: 'later'"),
        (8, "Polka", "track 000002: genre_top must be a genre of genres.csv. Received: 'Polka'"),
        (10, "[99]", "track 000002: genres_all must be ids of genres.csv. Received: 99"),
        (10, "__import__('os')", "genres_all must be a list of ids"),
    ],
)
def test_fma_bad_cells(copied, column, value, message):
    """A cell that is not what the format says names file, track and value."""
    data = copied("fma")
    rewrite_fma(data, lambda row: row.__setitem__(column, value) if row[0] == "2" else None)
    with pytest.raises(DataError, match=message):
        load("fma", data, genres="top_first")


# --- MTG-Jamendo -----------------------------------------------------------------------------------------------


def test_jamendo_tags_of_any_number(written):
    """Every cell from the sixth on is a tag; one category goes without its name."""
    dataset = load("jamendo", written("jamendo"))
    assert dataset.labels == ("dark", "epic", "film", "happy")
    assert {len(one.labels) for one in dataset.tracks} == {1, 2, 3}
    assert dataset.tracks[0].track_id == "track_0000900"


@pytest.mark.parametrize(
    ("config", "table", "prefix"),
    [("genre", "genre", "genre---"), ("instrument", "instrument", "instrument---"), ("top50", "top50tags", "genre---")],
)
def test_jamendo_subsets(copied, config, table, prefix):
    """The shipped config of each set of tags reads its lists; tags keep their category where there are several."""
    data = copied("jamendo")
    for path in (data / "data" / "splits").rglob("autotagging_moodtheme-*.tsv"):
        other = path.with_name(path.name.replace("moodtheme", table))
        other.write_text(path.read_text().replace("mood/theme---", prefix))
        path.unlink()
    dataset = load_dataset(data, load_config(find_config(f"jamendo_{config}")).tasks)
    kept = prefix if config == "top50" else ""
    assert dataset.labels == tuple(kept + name for name in ("dark", "epic", "film", "happy"))
    assert {one.split for one in dataset.tracks} == {"train", "validation", "test"}


def test_jamendo_splits(written):
    """Each of the five official splits deals the same tracks otherwise, no artist in two parts."""
    deals = [{one.track_id: one.split for one in load("jamendo", written("jamendo"), split=k).tracks} for k in range(5)]
    assert len({json.dumps(deal, sort_keys=True) for deal in deals}) == 5
    assert {frozenset(deal) for deal in deals} == {frozenset(deals[0])}
    assert leaking(load("jamendo", written("jamendo")).tracks) == []


def test_jamendo_without_split_lists(copied):
    """The table of all tracks, to be assigned to folds; half a split is refused."""
    data = copied("jamendo")
    (data / "data/splits/split-0/autotagging_moodtheme-test.tsv").unlink()
    with pytest.raises(DataError, match="must hold the lists of train, validation and test"):
        load("jamendo", data)
    shutil.rmtree(data / "data/splits")
    assert {one.split for one in load("jamendo", data).tracks} == {None}


def test_jamendo_durations(copied):
    """DURATION is known without decoding, so that inspect can name files of another length; it must be a number."""
    data = copied("jamendo")
    assert {one.metadata["duration_s"] for one in load("jamendo", data).tracks} == {3.0}
    path = data / "data/splits/split-0/autotagging_moodtheme-train.tsv"
    path.write_text(path.read_text().replace("900.mp3\t3.0", "900.mp3\tlong"))
    with pytest.raises(DataError, match=r"track track_0000900: DURATION must be a number of seconds. Received: 'long'"):
        load("jamendo", data)


def test_jamendo_low_quality_audio(copied):
    """948.low.mp3 stands for 948.mp3."""
    data = copied("jamendo")
    for path in miniatures.audio_files(data):
        path.rename(path.with_name(f"{path.stem}.low.npy"))
    assert load("jamendo", data).tracks[0].feature_path.name.endswith(".low.npy")


def test_jamendo_paths_stay_inside(copied):
    """A PATH that climbs out of the audio folder is refused."""
    data = copied("jamendo")
    path = data / "data/splits/split-0/autotagging_moodtheme-train.tsv"
    path.write_text(path.read_text().replace("00/900.mp3", "../../900.mp3"))
    with pytest.raises(
        DataError, match=r"track track_0000900: a path must stay below .*audio. Received: '../../900.mp3'"
    ):
        load("jamendo", data)


# --- Folder and table ------------------------------------------------------------------------------------------


def test_folder_ids_and_classes(written):
    """A class name that is no plain id gives ids with a hash; classes keep their names."""
    dataset = load("folder", written("folder"))
    assert dataset.labels == ("rock", "재즈 & 소울")
    ids = {one.track_id for one in dataset.tracks}
    assert "rock-train0" in ids
    assert Counter(one.split for one in dataset.tracks) == {"train": 8, "validation": 4, "test": 4}


def test_folder_without_splits(tmp_path, capsys):
    """Class folders alone give no splits; other files, hidden ones apart, are counted."""
    miniatures.write_folder(tmp_path, ".npy", splits=())
    (tmp_path / "rock" / "cover.jpg").write_bytes(b"")
    (tmp_path / "rock" / ".DS_Store").write_bytes(b"")
    dataset = load("folder", tmp_path)
    assert {one.split for one in dataset.tracks} == {None}
    assert [one.track_id for one in dataset.tracks][:2] == ["rock-all0", "rock-all1"]
    assert "1 files are neither audio nor .npy: left out" in capsys.readouterr().err


def test_folder_with_one_name_twice(tmp_path, capsys):
    """Sounds that differ in their suffix are two tracks of one fold; beside a spectrogram a sound is left out."""
    for n, name in enumerate(("a/x.wav", "a/x.FLAC", "a/y.ogg", "b/x.wav", "b/z.npy", "b/z.mp3")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"sound" * (n + 1))
    (tmp_path / "b" / "z.npy").rename(tmp_path / "b" / "z.NPY")
    dataset = load("folder", tmp_path)
    found = {one.track_id: one.feature_path.name for one in dataset.tracks}
    assert found == {"a-x.FLAC": "x.FLAC", "a-x.wav": "x.wav", "a-y": "y.ogg", "b-x": "x.wav", "b-z": "z.NPY"}
    assert sorted(map(len, group_tracks(dataset.tracks))) == [1, 1, 1, 2]
    assert "1 audio files have a .npy file of the same name" in capsys.readouterr().err


def test_table_with_one_name_twice(tmp_path):
    """Rows whose paths differ in their suffix alone are two tracks."""
    (tmp_path / "tracks.csv").write_text("path,labels\na.wav,x\na.flac,y\nb.wav,x\n")
    assert [one.track_id for one in load("table", tmp_path).tracks] == ["a.wav", "a.flac", "b"]


def test_names_in_any_script_or_none(tmp_path, capsys):
    """tracks.csv has the paths of Hangul names and of bytes that are no UTF-8; a class of such a name is an escape."""
    data = tmp_path / "data"
    for n, name in enumerate(("재즈/곡 1.npy", "재즈/2.npy", "caf\udce9/1.npy", "caf\udce9/=b\udcff.npy")):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(data / name, np.random.default_rng(n).random((1, 128, 80), np.float32))
    (data / "재즈" / "\udcff.npy").write_bytes(b"nothing")
    code, out = build("folder", data, tmp_path, on_error="skip", splits="folds")
    assert code == 0
    table = Manifest.read(out).read_tracks().set_index("path")
    assert set(table.index) == {
        "재즈/곡 1.npy", "재즈/2.npy", "caf\\xe9/1.npy", "caf\\xe9/=b\\xff.npy", "재즈/\\xff.npy",
    }  # fmt: skip
    assert table.loc["caf\\xe9/1.npy", "labels"] == ["caf\\xe9"]
    assert table.loc["재즈/\\xff.npy", "skipped"].startswith("\\xff.npy: ")
    assert "\\xff.npy: " in capsys.readouterr().out


def test_ids_that_name_files_need_no_paths(written, tmp_path):
    """tracks.csv keeps its columns, and so its bytes, where every id is the name of its file."""
    assert build("gtzan", written("gtzan"), tmp_path)[0] == 0
    assert "path" not in Manifest.read(tmp_path / "records").read_tracks()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: (d / "rock").rename(d / "train"), "must hold splits alone or classes alone. Received: 재즈 & 소울"),
        (lambda d: shutil.copy(d / "rock/all0.npy", d / "loose.npy"), "must hold a folder a class.*Received: loose"),
    ],
)
def test_folder_of_another_shape(tmp_path, change, message):
    """Splits beside classes, files beside folders."""
    miniatures.write_folder(tmp_path, ".npy", splits=())
    change(tmp_path)
    with pytest.raises(DataError, match=message):
        load("folder", tmp_path)


def test_folder_follows_links_once(tmp_path):
    """A class folder may be a link; a link back to the top does not go round for ever."""
    miniatures.write_folder(tmp_path / "real", ".npy", splits=())
    data = tmp_path / "data"
    data.mkdir()
    (data / "rock").symlink_to(tmp_path / "real" / "rock")
    (data / "rock" / "up").symlink_to(data)
    assert len(load("folder", data).tracks) == 4


def test_table_columns(written):
    """Labels and artists are divided by |; the first label is the one where a track has one."""
    single, multi = (load("table", written("table"), kind=kind) for kind in ("single", "multi"))
    assert (single.kind, multi.kind) == ("single", "multi")
    assert single.tracks[0].labels == ("a", "b")
    assert single.tracks[0].artists == ("artist 0", "guest 0")
    assert single.tracks[0].album == "album 0"
    assert single.tracks[0].track_id == "music-a-0"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("../x.wav,a,train,,", "a path must stay below .* Received: '../x.wav'"),
        ("/etc/passwd,a,train,,", "a path must stay below"),
        ("music/../../x.wav,a,train,,", "a path must stay below"),
        ("x.wav,,train,,", "labels must be printable names, at least one"),
        ("x.wav,a,later,,", "a split must be train, validation or test. Received: 'later'"),
        ("x.wav,a,,,", "either every row must have a split or none"),
        ("x.wav,a", "row 14 must have 5 cells. Received: 2"),
        ('x.wav,"a', "must be a table in UTF-8"),
        ("music/./a/0.npy,a,train,,", "the path music/a/0.npy appears twice"),
    ],
)
def test_table_bad_rows(copied, row, message):
    """A path that leaves the folder, no label, another split, too few cells, a track twice."""
    data = copied("table")
    with (data / "tracks.csv").open("a", encoding="utf-8") as file:
        file.write(row + "\n")
    with pytest.raises(DataError, match=message):
        load("table", data)


def test_table_needs_its_columns(tmp_path):
    """The header must name path and labels; a table of tabs ends in .tsv and may give ids."""
    (tmp_path / "tracks.csv").write_text("file,label\na.wav,x\n")
    with pytest.raises(
        DataError, match=r"must be a table with the columns path, labels, each once. Received: file, label"
    ):
        load("table", tmp_path)
    (tmp_path / "t.tsv").write_text("\ufeffid\tpath\tlabels\n7\ta, b.wav\tx|y\n", encoding="utf-8")
    (only,) = load("table", tmp_path, table="t.tsv").tracks
    assert (only.track_id, only.feature_path, only.labels) == ("7", tmp_path / "a, b.wav", ("x", "y"))


def test_plain_ids():
    """What is plain stays; what is not, or would be repeated, gets a hash of its whole name."""
    names = ["a/b", "a-b", "c/d", "가/1", "나/1", os.fsdecode(b"\xff1"), os.fsdecode(b"\xfe1")]
    ids = plain_ids(names)
    assert ids[2] == "c-d"
    assert len(set(ids)) == len(names)
    assert all(check_track_id(one, "") for one in ids)


def test_below_and_links(tmp_path):
    """Only names that stay below the folder are paths."""
    assert below(tmp_path, "a/b.wav", "x") == tmp_path / "a/b.wav"
    for name in ("", "/a", "..", "a/../../b", "a\\b", "a\0b"):
        with pytest.raises(DataError, match="a path must stay below"):
            below(tmp_path, name, "x")
    with pytest.raises(DataError, match="no such folder"):
        FeatureFiles.below(tmp_path / "nowhere")


def test_loaders_find_what_can_be_decoded():
    """The suffixes that loaders look for are those of spectrograms and of every sound file that is read."""
    assert sorted(SUFFIXES) == sorted((".npy", *audio.SUFFIXES, *audio.AV_SUFFIXES))


def test_long_cells_are_read(tmp_path):
    """A biography of half a million signs is a cell like any other."""
    (tmp_path / "t.csv").write_text("a,b\n" + "x" * 500_000 + ",1\n")
    assert read_table(tmp_path / "t.csv", ("b",))[0]["b"] == "1"


# --- Config ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            "{loader: gtsan}",
            r"x.yaml:2: data.loader must be one of airush, gtzan.*Received: 'gtsan'. Did you mean 'gtzan'",
        ),
        ("{loader: gtzan, n_classes: 9}", r"x.yaml:2: data.n_classes: .*8 or 10. Received: 9"),
        ("{loader: gtzan, question: q1}", "unknown key 'data.question'. It is for data.loader=airush"),
        ("{loader: gtzan, n_clases: 8}", "unknown key 'data.n_clases'. Did you mean 'data.n_classes'"),
        ("{loader: fma, merge: {A: [Rock], B: [Rock]}}", "data.merge names Rock twice"),
        ("{loader: fma, merge: {A: []}}", "data.merge: .*at least 1"),
        ("{loader: jamendo, split: 5}", "data.split: .*less than or equal to 4. Received: 5"),
        ("{loader: [1]}", "data.loader must be one of"),
        ("{}", "key 'data.question' is missing"),
        ("3", "data: .*valid dictionary"),
    ],
)
def test_config_errors_name_the_loader_and_key(data, message):
    """The keys of a loader are checked like all others; those of another loader are said to be so."""
    with pytest.raises(ConfigError, match=message) as caught:
        config_from_text(f"task: mini\ndata: {data}\n", "x.yaml")
    assert "\n" not in str(caught.value)


def test_several_tasks_are_for_airush():
    """A list of tasks needs a question for each, which other data does not have."""
    with pytest.raises(ConfigError, match=r"several tasks are for data.loader=airush. Received: folder"):
        config_from_text("task: [a, b]\ndata: {loader: folder}\n", "x.yaml")


def test_number_of_outputs_of_the_models_table(tmp_path, capsys):
    """`tfmusic models` takes the number of labels that the data set is known for."""
    for loader, keys, count in (
        ("gtzan", {"n_classes": 8}, 8),
        ("jamendo", {"subset": "genre"}, 87),
        ("folder", {}, 10),
    ):
        text = config_of(loader, tmp_path, **keys)
        assert main(["models", text, "model.name=mlp", "model.width=4"]) == 0
        assert f"and {count} outputs" in capsys.readouterr().out


# --- Labels ----------------------------------------------------------------------------------------------------


def some(folder, classes, n=3):
    """Writes small spectrograms of classes; every file has its own bytes."""
    rng = np.random.default_rng(len(str(folder)))
    for name in classes:
        for i in range(n):
            (folder / name).mkdir(parents=True, exist_ok=True)
            np.save(folder / name / f"{i}.npy", rng.gamma(0.5, 1.0, (1, 128, 40)).astype(np.float32))
    return folder


def built(data, tmp_path, capsys, *keys):
    """Returns the exit code and the messages of a build."""
    capsys.readouterr()
    command = ["build-records", "folder", "--data", str(data), "--out", str(tmp_path / "out"), "--overwrite", *keys]
    return main(command), capsys.readouterr().err


def test_one_label_is_refused(tmp_path, capsys):
    """Nothing can be learned of it; folders below that look like classes are named, and so is the label of a table."""
    some(tmp_path / "high" / "music", ("jazz", "rock"))
    code, errors = built(tmp_path / "high", tmp_path, capsys)
    assert code == 2 and "music" in errors and f"--data {tmp_path / 'high' / 'music'}" in errors
    some(tmp_path / "table", ("x",))
    (tmp_path / "table" / "tracks.csv").write_text("path,labels\nx/0.npy,rock\nx/1.npy,rock\n")
    code, errors = built(tmp_path / "table", tmp_path, capsys, "data.loader=table")
    assert code == 2 and "'rock'" in errors
    assert not (tmp_path / "out").exists()


def test_labels_that_look_alike_are_named(tmp_path, capsys):
    """Case, encoding of accents, width and dashes tell labels apart that nobody sees apart."""
    some(tmp_path / "data", ("rock", "ROCK", "caf\u00e9", "cafe\u0301", "hip-hop", "hip hop", "jazz"))
    code, errors = built(tmp_path / "data", tmp_path, capsys, "data.folds=2")
    assert code == 0
    assert "'ROCK', 'rock'" in errors and "'hip hop', 'hip-hop'" in errors and "other Unicode characters" in errors
    assert "jazz" not in errors


def test_labels_without_training_tracks_are_named(tmp_path, capsys):
    """A class of test alone, one of broken files, and a folder without usable files."""
    some(tmp_path / "a" / "train", ("jazz", "rock")), some(tmp_path / "a" / "test", ("rock", "polka"))
    code, errors = built(tmp_path / "a", tmp_path, capsys)
    assert code == 0 and "not learned: polka (3 tracks)" in errors
    some(tmp_path / "b", ("jazz", "rock"), n=5)
    for name in ("folk/1.npy", "ska/readme.txt"):
        (tmp_path / "b" / name).parent.mkdir()
        (tmp_path / "b" / name).write_text("nothing")
    code, errors = built(tmp_path / "b", tmp_path, capsys, "data.folds=2")
    assert code == 0 and "not learned: folk (1 tracks)" in errors and "no classes: ska" in errors
    assert errors.count("not learned") == 1


def test_labels_that_need_no_word(tmp_path, capsys):
    """A slash, a comma or an ampersand in the name of a folder says nothing of several labels."""
    some(tmp_path / "data", ("Old-Time, Historic", "R&B", "jazz"))
    code, errors = built(tmp_path / "data", tmp_path, capsys, "data.folds=2")
    assert code == 0 and "labels" not in errors


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (("jazz|blues", "rock"), "data.kind=multi"),
        (("jazz, blues", "rock, blues"), "| divides them: 'jazz, blues', 'rock, blues'"),
        (("jazz;blues", "rock"), "| divides them: 'jazz;blues'"),
    ],
)
def test_several_labels_in_a_table_of_one(tmp_path, capsys, cells, message):
    """The first of several counts, and a comma divides nothing: both are said."""
    some(tmp_path / "data", ("x",), n=6)
    rows = [f'x/{i}.npy,"{cells[i % len(cells)]}"\n' for i in range(6)]
    (tmp_path / "data" / "tracks.csv").write_text("path,labels\n" + "".join(rows))
    code, errors = built(tmp_path / "data", tmp_path, capsys, "data.loader=table", "data.folds=2")
    assert code == 0 and message in errors


@pytest.mark.parametrize(
    ("head", "cell", "message"),
    [
        ("path,labels", "{folder}/x/0.npy,a", "write x/0.npy"),
        ("path,labels", "x\\0.npy,a", "write / in place of"),
        ("Path,Labels", "x/0.npy,a", "lower case"),
        ("path;labels", "x/0.npy;a", "commas must divide"),
    ],
)
def test_tables_as_spreadsheets_write_them(tmp_path, capsys, head, cell, message):
    """What is wrong is said with the way out."""
    some(tmp_path, ("x",))
    (tmp_path / "tracks.csv").write_text(f"{head}\n{cell.format(folder=tmp_path)}\n")
    code, errors = built(tmp_path, tmp_path, capsys, "data.loader=table")
    assert code == 2 and message in errors and str(tmp_path / "tracks.csv") in errors


def test_tables_with_empty_rows_and_names_of_a_mac(tmp_path):
    """Rows of nothing but commas are none, and a name is found in either form of Unicode."""
    for name in ("Mot\u00f6r", "Bjo\u0308rk"):
        some(tmp_path, (name,), n=1)
    rows = ["path,labels", "Moto\u0308r/0.npy,a", ",", "Bj\u00f6rk/0.npy,b", ","]
    (tmp_path / "tracks.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    assert all(track.feature_path.is_file() for track in load("table", tmp_path).tracks)


def test_a_split_without_usable_tracks_says_why(tmp_path, capsys):
    """The first reason stands in the one line."""
    for path in some(tmp_path / "data", ("a", "b")).rglob("*.npy"):
        np.save(path, -np.load(path))
    code, errors = built(tmp_path / "data", tmp_path, capsys, "data.on_error=skip", "data.folds=2")
    assert code == 2 and "such as a-0: 0.npy: power must be finite and at least 0" in errors


@pytest.mark.parametrize("layout", ["beside", "above", "kaggle"])
@pytest.mark.parametrize("kind", ["filtered", "stratified"])
def test_gtzan_lists_that_lie_elsewhere(tmp_path, capsys, layout, kind):
    """Beside the genres, or one folder above them, also below Kaggle's Data/; they are named, and can be left out."""
    root = {"beside": "", "above": "genres_original", "kaggle": "Data/genres_original"}[layout]
    miniatures.write_gtzan(tmp_path / "made", ".npy", genres=("blues", "rock"))
    shutil.copytree(tmp_path / "made" / "wav", tmp_path / "data" / root)
    for part in ("train", "valid", "test"):
        place = tmp_path / "data" / root if layout == "beside" else (tmp_path / "data" / root).parent
        shutil.copy(tmp_path / "made" / "split" / f"{part}.txt", place / f"{part}_{kind}.txt")
    dataset = load("gtzan", tmp_path / "data")
    assert Counter(track.split for track in dataset.tracks) == {"train": 4, "validation": 2, "test": 2}
    assert str(tmp_path / "data") in capsys.readouterr().out
    assert {track.split for track in load("gtzan", tmp_path / "data", lists="none").tracks} == {None}
