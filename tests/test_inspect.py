"""`tfmusic inspect`: what it counts, the faults it finds, the pictures it draws."""

import json
import shutil

import matplotlib.image
import numpy as np
import pytest
import soundfile

from tests import miniatures
from tfmusic.cli import main
from tfmusic.core.feature import Feature
from tfmusic.core.track import Dataset, Track
from tfmusic.datasets.options import DataSection
from tfmusic.reports.inspection import Fault, Inspection, Item, format_inspection, inspect_data, length_quantiles
from tfmusic.reports.pictures import choose_fonts, picture_names

FEATURE = Feature()


def inspection(*labels, splits=None, seconds=10.0):
    items = [Item(str(n), tuple(some.split()), splits[n] if splits else None, seconds) for n, some in enumerate(labels)]
    return Inspection("t", "multi", tuple(items), ())


def look(*arguments, out=None):
    return main(["inspect", *map(str, arguments), "--workers", "1", *(["--out", str(out)] if out else [])])


def pictures(folder):
    return {path.stem: matplotlib.image.imread(path) for path in folder.glob("*.png")}


# --- Numbers ---------------------------------------------------------------------------------------------------


def test_counts_by_hand():
    """Tracks of a label, labels a track, pairs, and the share of one label's tracks that have another."""
    found = inspection("a b", "a b c", "a", "c", splits=["train", "train", "test", "validation"])
    assert list(found.counts.items()) == [("a", 3), ("b", 2), ("c", 2)]
    assert found.labels_per_track == {1: 2, 2: 1, 3: 1}
    assert found.pairs == {("a", "b"): 2, ("a", "c"): 1, ("b", "c"): 1}
    np.testing.assert_allclose(found.together(["a", "b", "c"]), [[1, 2 / 3, 1 / 3], [1, 1, 0.5], [0.5, 0.5, 1]])
    assert found.splits == ("train", "validation", "test")
    assert dict(found.counts_of("train")) == {"a": 2, "b": 2, "c": 1}


def test_lengths():
    """Shortest, quantiles, longest; nothing where no length is known."""
    assert length_quantiles(np.array([4.0, 2.0, 3.0]))["median"] == 3.0
    assert length_quantiles(np.array([])) == {}
    text = format_inspection(inspection("a", "b", seconds=None), {})
    assert "no track could be read" in text


def test_tables():
    """Labels with bars and splits, labels a track, pairs by how much of the rarer label they are."""
    text = format_inspection(inspection("a b", "a b c", "a", "c", splits=["train", "train", "test", "train"]), {})
    lines = [line.split() for line in text.splitlines()]
    assert ["a", "3", "75.0", "%", "2", "1", "#" * 30] in lines
    assert ["a", "b", "2", "100", "%"] in lines
    assert ["1", "2", "#" * 30] in lines
    assert "mean 1.75" in text
    assert "faults: none" in text


def test_a_single_label_needs_no_pairs():
    """Where every track has one label, the tables of several are left out."""
    assert "stands with" not in format_inspection(inspection("a", "b"), {})


# --- Faults ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_every_kind_of_fault_is_found(tmp_path, workers):
    """Missing, corrupt, too short, silent twice over, and the same bytes under another name and label."""
    rng = np.random.default_rng(0)
    tracks = []
    for n in range(18):
        path = tmp_path / f"{n}.npy"
        miniatures.write_sound(path, n % 3, rng)
        tracks.append(Track(str(n), path, ("abc"[n % 3],), split=("train", "test")[n % 2]))
    (tmp_path / "0.npy").unlink()
    (tmp_path / "1.npy").write_bytes(b"\x93NUMPY")
    np.save(tmp_path / "2.npy", np.ones((1, 128, 4), np.float32) * rng.random((1, 128, 1), np.float32))
    np.save(tmp_path / "3.npy", np.zeros((1, 128, 60), np.float32))
    np.save(tmp_path / "4.npy", np.load(tmp_path / "5.npy") * np.float32(1e-12))
    shutil.copy(tmp_path / "6.npy", tmp_path / "7.npy")
    seen = []
    dataset = Dataset("t", "single", ("a", "b", "c"), tuple(tracks))
    found = inspect_data(
        dataset, FEATURE, DataSection(loader="folder", min_s=1.0), workers=workers, on_track=lambda: seen.append(1)
    )
    assert [(fault.kind, fault.track_id) for fault in found.faults] == [
        ("missing", "0"), ("corrupt", "1"), ("too short", "2"), ("silent", "3"), ("silent", "4"), ("duplicate", "7"),
    ]  # fmt: skip
    reasons = [fault.reason for fault in found.faults]
    assert reasons[0] == "0.npy: no such file"
    assert str(tmp_path) not in " ".join(reasons)
    assert reasons[-1] == "the bytes of 6, labels a there, in train and test"
    assert (len(seen), len(found.seconds)) == (18, 16)
    text = format_inspection(found, {})
    assert "faults: 1 missing, 1 corrupt, 1 too short, 2 silent, 1 duplicate" in text


def test_many_faults_are_cut_in_the_table():
    """The terminal shows forty, the file has all."""
    faults = tuple(Fault("missing", str(n), "gone") for n in range(45))
    text = format_inspection(Inspection("t", "single", inspection("a").items, faults), {})
    assert "... 5 more" in text
    assert len(Inspection("t", "single", (), faults).to_dict()["faults"]) == 45


# --- The command -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_audio_with_names_of_any_script(tmp_path, capsys):
    """Class folders of wav files need no config; pictures are drawn without a warning, and are not empty."""
    miniatures.write_folder(tmp_path / "data", ".wav")
    assert look("--data", tmp_path / "data", out=tmp_path / "look") == 0
    printed = capsys.readouterr()
    assert "data: 16 tracks, 2 labels" in printed.out
    assert "splits: train 8, validation 4, test 4" in printed.out
    drawn = pictures(tmp_path / "look")
    assert set(drawn) == {"labels", "lengths", "examples-01", "examples-02"}
    assert all(image[..., :3].std() > 0.05 for image in drawn.values())
    saved = json.loads((tmp_path / "look" / "inspection.json").read_text(encoding="utf-8"))
    assert saved["labels"] == {"rock": 8, "재즈 & 소울": 8}
    assert saved["pages"] == ["rock", "재즈 & 소울"]
    assert look("--data", tmp_path / "data", out=tmp_path / "look") == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.slow
def test_several_tags_and_records_of_them(tmp_path, capsys):
    """MTG-Jamendo raw and as records: the same counts; two more pictures; skipped tracks are the records' faults."""
    miniatures.write_jamendo(tmp_path / "data", ".npy", splits=(0,))
    miniatures.audio_files(tmp_path / "data")[0].write_bytes(b"no music")
    assert (
        look("jamendo_mood", "data.min_s=1.0", "--data", tmp_path / "data", "--pages", "2", out=tmp_path / "raw") == 0
    )
    raw = json.loads((tmp_path / "raw" / "inspection.json").read_text(encoding="utf-8"))
    records = tmp_path / "records"
    build = ["--data", str(tmp_path / "data"), "--out", str(records), "--workers", "1", "data.min_s=1.0"]
    assert main(["build-records", "jamendo_mood", *build]) == 0
    assert look("--records", records, out=tmp_path / "stored") == 0
    stored = json.loads((tmp_path / "stored" / "inspection.json").read_text(encoding="utf-8"))
    for key in ("tracks", "labels", "splits", "pairs", "labels_per_track", "kind", "seconds", "task"):
        assert raw[key] == stored[key], key
    assert [fault["kind"] for fault in raw["faults"]] == ["corrupt"]
    assert [fault["kind"] for fault in stored["faults"]] == ["skipped"]
    assert set(pictures(tmp_path / "raw")) == {
        "labels", "lengths", "labels_per_track", "together", "examples-01", "examples-02",
    }  # fmt: skip
    assert set(pictures(tmp_path / "stored")) >= {"examples-04"}
    capsys.readouterr()


def test_without_out_nothing_is_written(tmp_path, capsys):
    """The tables alone."""
    miniatures.write_folder(tmp_path / "data", ".npy", splits=())
    before = sorted(tmp_path.rglob("*"))
    assert look("--data", tmp_path / "data") == 0
    assert "labels" in capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before


def test_every_file_faulty(tmp_path, capsys):
    """A data set of which nothing can be read is still counted, and drawn as far as it can be."""
    miniatures.write_folder(tmp_path / "data", ".npy", splits=())
    for path in miniatures.audio_files(tmp_path / "data"):
        path.write_bytes(b"")
    assert look("--data", tmp_path / "data", out=tmp_path / "look") == 0
    assert "faults: 8 corrupt" in capsys.readouterr().out
    assert set(pictures(tmp_path / "look")) == {"labels"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["x.y=1", "--data", "{data}"], "overrides need the config that they change"),
        (["q2", "--records", "{records}"], "--records needs no CONFIG and no --data. Received: q2"),
        (["q2", "--data", "{data}"], "must hold the train part of q2"),
        (["--data", "{data}", "--out", "{data}", "--overwrite"], "--overwrite replaces only inspections"),
        ([], "tfmusic inspect CONFIG --data DATA"),
        (["{records}", "x.y=1"], "holds records"),
        (["{data}", "folder", "another"], "another"),
    ],
)
def test_wrong_arguments(records, tmp_path, capsys, words, message):
    """One line, exit code 2, and nothing is touched."""
    miniatures.write_folder(tmp_path / "data", ".npy", splits=())
    places = {"data": tmp_path / "data", "records": records}
    assert main(["inspect", *(word.format(**places) for word in words)]) == 2
    err = capsys.readouterr().err
    assert message.format(**places) in err
    assert err.count("\n") == 1
    assert len(miniatures.audio_files(tmp_path / "data")) == 8


def test_a_folder_alone_is_data_or_records(records, tmp_path, capsys):
    """`inspect DATA CONFIG` and `inspect RECORDS` are understood."""
    miniatures.write_folder(tmp_path / "data", ".npy", splits=())
    for words, given in (
        ([tmp_path / "data", "folder", "data.min_s=0.1"], ["folder", "data.min_s=0.1", "--data", tmp_path / "data"]),
        ([records], ["--records", records]),
    ):
        outputs = []
        for arguments in (words, given):
            assert main(["inspect", *map(str, arguments)]) == 0
            outputs.append(capsys.readouterr().out)
        assert outputs[0] == outputs[1]


# --- Fonts -----------------------------------------------------------------------------------------------------


def test_fonts_of_latin_text():
    """The usual font is enough, and is the first of those for other scripts."""
    assert choose_fonts(["R&B", "Old-Time / Historic"]) == (["DejaVu Sans"], set())
    assert choose_fonts(["가요곡"])[0][0] == "DejaVu Sans"


def test_signs_that_no_font_has():
    """A private sign has no font, not even one of boxes: the label's number stands on the pictures, the rest stay."""
    fonts, missing = choose_fonts(["jazz", "\ue1f3"])
    assert "Last Resort" not in " ".join(fonts)
    names = picture_names(["jazz", "no\ue1f3"], missing | {"\ue1f3"})
    assert names == {"jazz": "jazz", "no\ue1f3": "no. 2"}


def test_korean_is_shown_or_numbered(tmp_path, capsys, monkeypatch):
    """With a font, as it is; without one, the numbers stand in the table as well, and a line says so."""

    miniatures.write_folder(tmp_path / "data", ".npy", splits=())
    monkeypatch.setattr("tfmusic.reports.pictures._candidates", list)
    assert look("--data", tmp_path / "data", out=tmp_path / "look") == 0
    printed = capsys.readouterr()
    assert "no font for some labels" in printed.err
    assert "no. 2        재즈 & 소울" in printed.out


def test_metadata_and_lengths_that_differ_from_it(tmp_path):
    """Fields, how many tracks have them and frequent values; a length that the metadata denies is a fault."""
    tracks = []
    for n, stated in enumerate((3, 60, None)):
        miniatures.write_sound(tmp_path / f"{n}.npy", n, np.random.default_rng(n))
        metadata = {"genres": ["Pop", "R&B"] if n else ["Pop"]} | ({"duration_s": stated} if stated else {})
        tracks.append(Track(str(n), tmp_path / f"{n}.npy", ("a",), metadata=metadata))
    found = inspect_data(
        Dataset("t", "single", ("a",), tuple(tracks)),
        FEATURE,
        DataSection(loader="folder"),
        workers=1,
        on_track=lambda: None,
    )
    (fault,) = [fault for fault in found.faults if fault.kind == "other length"]
    assert (fault.track_id, "60 s" in fault.reason) == ("1", True)
    shown = found.to_dict()["metadata"]
    assert shown["genres"] == {"tracks": 3, "most_frequent": {"Pop": 3, "R&B": 2}}
    assert shown["duration_s"]["tracks"] == 2
    lines = [line.split() for line in format_inspection(found, {}).splitlines()]
    assert ["genres", "3", "100.0", "%", "2", "Pop", "3;", "R&B", "2"] in lines


def test_one_example_a_label_can_be_heard(tmp_path):
    """Audio gets a page that plays the ten seconds of a picture, one a label; names are escaped."""
    for n, label in enumerate(("rock", "a<b>")):
        miniatures.write_sound(tmp_path / "data" / label / "x.wav", n, np.random.default_rng(n), seconds=12.0)
    assert look("folder", "--data", tmp_path / "data", out=tmp_path / "out") == 0
    page = (tmp_path / "out" / "examples.html").read_text(encoding="utf-8")
    assert "a&lt;b&gt;" in page
    assert "<b>" not in page
    assert str(tmp_path) not in page
    for name in ("examples-01", "examples-02"):
        assert f'src="{name}.wav"' in page
        assert f'src="{name}.png"' in page
        assert soundfile.info(tmp_path / "out" / f"{name}.wav").duration == pytest.approx(10.0, abs=0.01)
