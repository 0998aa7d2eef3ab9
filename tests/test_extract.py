"""`tfmusic extract`, and audio straight into records and predictions: the same numbers on every way."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import tfmusic
from tests import miniatures
from tests.sounds import chords, music, write
from tests.test_audio import untagged_mp3
from tfmusic.cli import main
from tfmusic.core.contract import Contract
from tfmusic.core.feature import Feature
from tfmusic.core.scale import Scale
from tfmusic.core.track import Track
from tfmusic.datasets import folder
from tfmusic.datasets.options import DataSection
from tfmusic.errors import DataError, UsageError
from tfmusic.features.read import compute
from tfmusic.inference.predict import check_inputs
from tfmusic.records.build import survey
from tfmusic.records.manifest import Manifest

NAMES = [f"{label}/{n}" for label in ("calm", "loud") for n in range(3)]
CONFIG = """
task: mood
data: {loader: folder, folds: 2, on_error: skip}
feature: {n_fft: 512, hop_length: 256, n_bins: 32}
record: {segment_frames: 64, hop_frames: 64, num_shards: 2}
input: {frames: 32, hop_frames: 32}
"""
FEATURE = Feature(n_fft=512, hop_length=256, n_bins=32)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "mood.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """Six files; one of them an .mp3 that does not say how long it is."""
    folder = music(tmp_path_factory.mktemp("sounds"), NAMES)
    (folder / "calm" / "0.wav").unlink()
    untagged_mp3(folder / "calm" / "0.mp3")
    return folder


def extract(config, data, out, *more):
    return main(["extract", str(config), "--data", str(data), "--out", str(out), "--workers", "1", *more])


def build(config, data, out, *more):
    return main(["build-records", str(config), "--data", str(data), "--out", str(out), "--workers", "1", *more])


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def without_source_bytes(folder):
    """Returns all files of a records folder; of the manifest all but how many bytes were read, and its checksum."""
    files = contents(folder)
    manifest = json.loads(files.pop("manifest.json"))
    return files, {key: value for key, value in manifest.items() if key not in ("source_bytes", "sha256")}


@pytest.fixture(scope="module")
def extracted(config, sounds, tmp_path_factory):
    out = tmp_path_factory.mktemp("extracted") / "mels"
    assert extract(config, sounds, out) == 0
    return out


def test_files_mirror_the_data(extracted, sounds):
    """A spectrogram for every sound file, at its path: float32 [1, n_bins, n_frames], linear power; and what it is."""
    assert set(contents(extracted)) == {f"{name}.npy" for name in NAMES} | {"feature.json"}
    found = np.load(extracted / "loud" / "2.npy")
    resampled = chords(3.5, seed=5)
    assert found.dtype == np.float32
    assert found.shape == (1, 32, 1 + int(np.ceil(len(resampled) * 16000 / 22050)) // 256)
    said = json.loads((extracted / "feature.json").read_text())
    assert said["feature"] == FEATURE.model_dump()
    assert set(said["made_by"]) == {"soundfile", "libsndfile", "soxr"}


def test_data_may_follow_the_config(config, sounds, tmp_path):
    """`extract CONFIG DATA --out` is understood; a further word is refused and not dropped."""
    command = ["extract", str(config), str(sounds), "--out", str(tmp_path / "out")]
    assert main([*command, "another"]) == 2
    assert not (tmp_path / "out").exists()
    assert main(command) == 0
    assert list((tmp_path / "out").rglob("*.npy"))


def test_power_is_linear(config, tmp_path):
    """Twice the amplitude is four times the value."""
    sound = chords(1.0, 16000)
    for name, gain in (("one", 1.0), ("two", 2.0)):
        write(tmp_path / "sounds" / f"{name}.wav", gain * sound, 16000, subtype="FLOAT")
    assert extract(config, tmp_path / "sounds", tmp_path / "out") == 0
    one, two = (np.load(tmp_path / "out" / f"{name}.npy") for name in ("one", "two"))
    np.testing.assert_allclose(two, 4 * one, rtol=1e-5)
    np.testing.assert_array_equal(one[0], compute(iter([sound]), FEATURE))


def test_files_in_decibels(config, sounds, extracted, tmp_path, capsys):
    """`log10_factor` writes and reads files of 20 log10(power), as MTG-Jamendo offers them: the same records but for
    rounding, the same values in Python, and -200 is silence."""
    out, option = tmp_path / "mels", "feature.log10_factor=20"
    assert extract(config, sounds, out, option) == 0
    power, found = (np.load(folder / "loud" / "2.npy") for folder in (extracted, out))
    np.testing.assert_allclose(found, 20 * np.log10(np.maximum(power, 1e-10)), rtol=1e-5)
    feature = FEATURE.model_copy(update={"log10_factor": 20.0})
    np.testing.assert_allclose(tfmusic.mel(found, feature), np.maximum(power[0], 1e-10), rtol=2e-5)
    assert build(config, extracted, tmp_path / "power") == 0
    assert build(config, out, tmp_path / "decibels", option) == 0
    one, two = (
        np.concatenate([track.codes for track in tfmusic.open_records(tmp_path / name).iterate()])
        for name in ("power", "decibels")
    )
    assert np.abs(one.astype(int) - two).max() <= 1
    assert np.mean(one != two) < 0.01
    assert build(config, out, tmp_path / "wrong") == 2  # without the option, the files hold negative power
    assert "files of 20 log10(power)), named in" in capsys.readouterr().err


@pytest.mark.slow
def test_workers_do_not_change_the_bytes(config, sounds, extracted, tmp_path):
    """One worker or three: the same files."""
    assert main(["extract", str(config), "--data", str(sounds), "--out", str(tmp_path / "out"), "--workers", "3"]) == 0
    assert contents(tmp_path / "out") == contents(extracted)


def test_what_is_finished_is_kept(config, sounds, tmp_path, capsys):
    """A second run writes what is missing or older than its sound file, and clears what was left half-written."""
    out = tmp_path / "out"
    assert extract(config, sounds, out) == 0
    before = contents(out)
    (out / "calm" / "0.npy").unlink()
    (out / "loud" / "1.npy").write_bytes(b"of an older sound file")
    os.utime(out / "loud" / "1.npy", ns=(0, 0))
    (out / "loud" / ".2.npy.partial").write_bytes(b"half")
    capsys.readouterr()
    assert extract(config, sounds, out) == 0
    assert "2 files written, 4 kept, 0 skipped" in capsys.readouterr().out
    assert contents(out) == before


@pytest.mark.slow
def test_interrupted_run_leaves_whole_files(config, tmp_path):
    """Killed in the middle: whatever bears its name is whole, and the next run ends with the same files."""
    sounds, sound = tmp_path / "sounds", np.tile(chords(2.0), 5)
    for n in range(30):
        write(sounds / f"{n:02d}.wav", np.roll(sound, n))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "tfmusic", "extract", str(config), "--data", str(sounds), "--out", str(out)]
    with subprocess.Popen([*command, "--workers", "2"], start_new_session=True) as process:
        while len(list(out.glob("[!.]*.npy"))) < 3:
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGKILL)
    kept = {path.name: np.load(path) for path in out.glob("[!.]*.npy")}  # which would fail on half a file
    assert len(kept) >= 3
    assert extract(config, sounds, out) == 0
    assert extract(config, sounds, tmp_path / "again") == 0
    assert contents(out) == contents(tmp_path / "again")


def test_faulty_files_are_skipped_and_listed(config, sounds, tmp_path, capsys):
    """`data.on_error` decides: files are skipped, counted and named, or the first ends the run; none is half."""
    data = tmp_path / "data"
    music(data, NAMES[:2], seconds=1.0)
    (data / "calm" / "broken.mp3").write_text("no music " * 99)
    write(data / "calm" / "short.wav", chords(0.01))
    assert extract(config, data, tmp_path / "out") == 0
    shown = capsys.readouterr().out
    assert "2 files written, 0 kept, 2 skipped" in shown
    assert f"skipped {data / 'calm' / 'broken.mp3'}: must be a complete audio file" in shown
    assert f"skipped {data / 'calm' / 'short.wav'}: must have at least 512 samples at 16000 Hz" in shown
    assert extract(config, data, tmp_path / "stop", "data.on_error=stop") == 2
    assert "broken.mp3: must be a complete audio file" in capsys.readouterr().err
    assert not list((tmp_path / "stop").rglob("*partial"))


def test_names_that_differ_in_their_suffix(config, tmp_path, capsys):
    """Both sounds are written, under their whole names, and records of them have the ids of records of the sounds."""
    data, mels = music(tmp_path / "data", ["a/x", "b/y", "b/z"], seconds=1.0), tmp_path / "mels"
    music(data, ["a/x"], seconds=1.5, suffix=".flac")
    (data / "a" / "notes.txt").write_text("")
    assert extract(config, data, mels) == 0
    assert "1 files are neither audio nor .npy: left out (1 .txt)" in capsys.readouterr().err
    names = sorted(path.relative_to(mels).as_posix() for path in mels.rglob("*.npy"))
    assert names == ["a/x.flac.npy", "a/x.wav.npy", "b/y.npy", "b/z.npy"]
    ids = [
        [track.track_id for track in folder.load(place, folder.Options(loader="folder"), task="t").tracks]
        for place in (data, mels)
    ]
    assert ids[0] == ids[1] == ["a-x.flac", "a-x.wav", "b-y", "b-z"]


def test_no_usable_file_is_an_error(config, tmp_path, capsys):
    """Where not one file can be read the reasons are listed, the exit code is 2, and no folder is left."""
    data = tmp_path / os.fsdecode(b"d\xe9")
    data.mkdir()
    (data / "a.wav").write_bytes(b"no music")
    assert extract(config, data, tmp_path / "out") == 2
    shown = capsys.readouterr()
    assert "0 files written, 0 kept, 1 skipped" in shown.out
    assert f"skipped {tmp_path}/d\\xe9/a.wav: " in shown.out
    assert "none of 1 sound files can be used" in shown.err
    assert not (tmp_path / "out").exists()


def test_folders_that_hold_something_else(config, sounds, extracted, tmp_path, capsys):
    """Spectrograms of another feature and foreign folders are refused; nothing is written."""
    before = contents(extracted)
    assert extract(config, sounds, extracted, "feature.n_bins=40") == 2
    assert "n_bins=32), the config says mel (" in capsys.readouterr().err
    assert contents(extracted) == before
    assert extract(config, sounds, sounds) == 2
    assert "must be empty, or a folder that extract wrote" in capsys.readouterr().err
    assert extract(config, tmp_path / "nowhere", tmp_path / "out") == 2
    assert "nowhere: no such file or folder" in capsys.readouterr().err
    assert extract(config, config, tmp_path / "out") == 2
    assert "must be a sound file, or a folder that holds some" in capsys.readouterr().err
    assert extract(config, sounds, tmp_path / "out", "--dry-run") == 0
    assert "dry run: would write 6 files" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "feature",
    [
        [],
        ["feature=fma-cqt"],
        [
            "feature={name: chroma_stft}", "record.scale=identity", "record.dtype=float16", "augment.policy=none",
        ],
    ],
)  # fmt: skip
def test_both_ways_give_the_same_records(config, sounds, tmp_path, feature):
    """Audio straight into records, or by `extract`: every shard and table has the same bytes."""
    assert extract(config, sounds, tmp_path / "mels", *feature) == 0
    assert build(config, sounds, tmp_path / "straight", *feature) == 0
    assert build(config, tmp_path / "mels", tmp_path / "around", *feature) == 0
    assert without_source_bytes(tmp_path / "straight") == without_source_bytes(tmp_path / "around")
    assert Manifest.read(tmp_path / "straight").skipped == ()


@pytest.mark.slow
def test_workers_do_not_change_the_records(config, sounds, tmp_path):
    """Lengths, scale and shards come from any number of processes to the same bytes, copies included."""
    assert build(config, sounds, tmp_path / "one", "offline_augment.copies=1") == 0
    assert build(config, sounds, tmp_path / "three", "offline_augment.copies=1", "--workers", "3") == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "three")


def test_records_of_another_feature(config, extracted, tmp_path, capsys):
    """Extracted files are compared with the config; a mismatch names both sides and the file that says so."""
    assert build(config, extracted, tmp_path / "out", "feature.hop_length=512", "data.on_error=stop") == 2
    error = capsys.readouterr().err
    assert "hop_length=512" in error
    assert "hop_length=256, n_bins=32)" in error
    assert str(extracted / "feature.json") in error


def test_faulty_sound_in_a_build(config, sounds, tmp_path, capsys):
    """Sound that cannot be decoded is skipped and listed, or stops the build with one line."""
    data = music(tmp_path / "data", NAMES, seconds=1.0)
    (data / "calm" / "broken.mp3").write_text("no music " * 99)
    assert build(config, data, tmp_path / "out") == 0
    skipped = Manifest.read(tmp_path / "out").skipped
    assert [entry["track_id"] for entry in skipped] == ["calm-broken"]
    assert skipped[0]["reason"].startswith("broken.mp3: must be a complete audio file")
    assert build(config, data, tmp_path / "stop", "data.on_error=stop") == 2
    assert "broken.mp3: must be a complete audio file" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "out"]


def test_lengths_are_counted_once(sounds, tmp_path, monkeypatch):
    """A build that goes on takes the lengths of unchanged files from its notes; a line that was cut off is no harm."""
    tracks = [Track(str(n), path) for n, path in enumerate(sorted(sounds.rglob("*.*")))]
    options = {"section": DataSection(loader="folder"), "workers": 1, "notes": tmp_path / "notes"}
    first = survey.count_all_samples(tracks, FEATURE, **options)
    counted = []
    monkeypatch.setattr(survey, "count_samples", lambda path, *_: counted.append(path) or 7)
    assert survey.count_all_samples(tracks, FEATURE, **options) == first
    assert counted == []
    os.utime(tracks[2].feature_path, ns=(7, 7))
    lines = (tmp_path / "notes").read_text().splitlines(keepends=True)
    (tmp_path / "notes").write_text("".join(lines)[:-5])
    survey.count_all_samples(tracks, FEATURE, **options)
    assert len(counted) == 2


def test_predict_and_embed_take_sound(trained, config, tmp_path, capsys):
    """A model of mels answers for audio as it does for the spectrograms of that audio; folders will do."""
    names = [f"some/{n}" for n in range(2)] + ["other/0"]
    sounds = music(tmp_path / "sounds", names, seconds=4.0)
    assert main(["extract", "q2", "--data", str(sounds), "--out", str(tmp_path / "mels"), "--workers", "1"]) == 0
    answers = [tmp_path / f"{kind}.csv" for kind in ("sounds", "mels")]
    for source, answer in zip((sounds, tmp_path / "mels"), answers, strict=True):
        assert main(["predict", str(trained), str(source), "--out", str(answer)]) == 0
    assert (
        answers[0].read_text().replace(".wav", ".npy").replace(str(sounds), str(tmp_path / "mels"))
        == answers[1].read_text()
    )
    assert [line.partition(",")[0] for line in answers[0].read_text().splitlines()[1:]] == [
        "other-0",
        "some-0",
        "some-1",
    ]
    assert main(["embed", str(trained), str(sounds / "some"), "--out", str(tmp_path / "x.npz")]) == 0
    capsys.readouterr()
    assert extract(config, sounds, tmp_path / "small") == 0
    assert main(["predict", str(trained), str(tmp_path / "small" / "some" / "0.npy")]) == 2
    error = capsys.readouterr().err
    assert "the model takes mel (sample_rate_hz=16000, n_fft=1024, hop_length=512, n_bins=128)" in error
    assert "Received: mel (sample_rate_hz=16000, n_fft=512, hop_length=256, n_bins=32)" in error


def test_sound_for_a_model_of_embeddings(tmp_path):
    """What a model of embeddings takes cannot be computed from sound here; both sides are named."""
    feature = Feature(name="embedding", source="MSD_musicnn", sample_rate_hz=16000, hop_length=8, n_bins=4)
    contract = Contract("q1", "single", ("a", "b"), feature, Scale.measure("identity", []), "float32", 1, 1)
    with pytest.raises(UsageError, match=r"x.mp3: the model takes embeddings of MSD_musicnn.* Received: sound"):
        check_inputs(contract, [tmp_path / "x.mp3"])
    with pytest.raises(DataError, match=r"x.mp3: .*embedding of MSD_musicnn.*run tfmusic embed"):
        survey.count_samples(tmp_path / "x.mp3", feature)


def test_official_lists_go_along(tmp_path):
    """GTZAN extracted keeps its splits; a table of sound files finds the spectrograms made of them."""
    miniatures.write_gtzan(tmp_path / "gtzan", genres=("jazz", "pop"), clips=4)
    small = ("record.segment_frames=64", "record.hop_frames=64", "input.frames=48", "input.hop_frames=24")
    assert main(["extract", "gtzan", "--data", str(tmp_path / "gtzan"), "--out", str(tmp_path / "mels")]) == 0
    splits = []
    for name in ("gtzan", "mels"):
        out = tmp_path / f"r-{name}"
        assert build("gtzan", tmp_path / name, out, "offline_augment.copies=0", *small) == 0
        splits.append({split: Manifest.read(out).track_ids([split]) for split in Manifest.read(out).splits})
    assert splits[0] == splits[1]
    assert set(splits[0]) == {"train", "validation", "test"}
    miniatures.write_table(tmp_path / "table")
    assert main(["extract", "folder", "--data", str(tmp_path / "table"), "--out", str(tmp_path / "table-mels")]) == 0
    small = (*small, "data.loader=table")
    assert build("folder", tmp_path / "table-mels", tmp_path / "r-table", *small) == 0


def test_tables_of_elsewhere_are_not_copied(config, tmp_path, capsys):
    """A table that is a link out of the data is named and left out; one that leads to another table there is copied."""
    data = music(tmp_path / "data", NAMES[:2])
    (tmp_path / "data.secret").mkdir()
    for place in (tmp_path / "secret.csv", tmp_path / "data.secret" / "a.csv", data / "calm" / "own.csv"):
        place.write_text("secret" if "secret" in str(place.relative_to(tmp_path)) else "own")
    for name, target in {
        "a.csv": tmp_path / "secret.csv", "calm/b.tsv": "../../secret.csv", "c.txt": "own.csv", "d.csv": "calm/own.csv",
        "own.csv": "/etc/hostname", "e.csv": "../data.secret/a.csv", "f": tmp_path / "data.secret",
    }.items():  # fmt: skip
        (data / name).symlink_to(target)
    (tmp_path / "link").symlink_to(data)
    for number, place in enumerate((data, tmp_path / "link")):
        out = tmp_path / f"out{number}"
        assert extract(config, place, out) == 0
        copied = {
            path.relative_to(out).as_posix(): path.read_text()
            for path in out.rglob("*")
            if path.suffix in (".csv", ".tsv", ".txt")
        }
        assert copied == {"calm/own.csv": "own", "d.csv": "own"}
        assert "a.csv: not copied, as the link leads out of" in capsys.readouterr().err


def test_json_tells_what_was_done(config, sounds, tmp_path, capsys):
    """One document with counts and hours."""
    assert extract(config, sounds, tmp_path / "mels", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["written"], told["kept"], told["skipped"]) == (6, 0, {})
    assert told["hours"] > 0
