"""Changed copies of training tracks: what changes, by how much, and that nothing scores them."""

import csv
import json
from collections import Counter

import numpy as np
import pytest

from tests.sounds import chords, music, write
from tfmusic.cli import main
from tfmusic.core.contract import Contract
from tfmusic.errors import RecordsError
from tfmusic.evaluation.held_out import score_splits
from tfmusic.features.offline_augment import Change, OfflineAugment, apply_change, changed_length, draw, stretch
from tfmusic.records.manifest import Manifest
from tfmusic.records.reader import iterate_tracks
from tfmusic.training.checks import choose_folds

SETTINGS = OfflineAugment(pitch_semitones=2.0)
OFFLINE_AUGMENT = ("offline_augment.copies=2", "offline_augment.pitch_semitones=2.0")
NAMES = [f"{label}/{n}" for label in ("calm", "loud") for n in range(4)]
CONFIG = """
task: mood
data: {loader: folder, folds: 2}
feature: {n_fft: 512, hop_length: 256, n_bins: 32}
record: {segment_frames: 64, hop_frames: 64, num_shards: 2}
input: {frames: 32, hop_frames: 32}
"""


def tone(hz, seconds=2.0):
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(int(22050 * seconds)) / 22050)).astype(np.float32)


def loudest_hz(sound):
    spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound)), 1 << 19))
    return spectrum.argmax() * 22050 / (1 << 19)


def test_a_copy_is_drawn_by_its_name():
    """The same whenever it is drawn; another for another track, copy or seed; all within the bounds."""
    assert draw(SETTINGS, "a", 1) == draw(SETTINGS, "a", 1)
    others = [draw(SETTINGS, "b", 1), draw(SETTINGS, "a", 2), draw(SETTINGS.model_copy(update={"seed": 1}), "a", 1)]
    assert draw(SETTINGS, "a", 1) not in others
    drawn = [draw(SETTINGS, "a", copy) for copy in range(400)]
    assert Counter(change.tempo for change in drawn).keys() == {0.8, 0.9, 1.0, 1.1}
    assert min(change.semitones for change in drawn) < -1.9 < 1.9 < max(change.semitones for change in drawn) <= 2.0
    assert 0 <= min(change.shift_samples for change in drawn) < 100 < 7900 < max(c.shift_samples for c in drawn) <= 8000
    assert {change.noise for change in drawn} == {0.0025}


@pytest.mark.parametrize("tempo", [0.5, 0.8, 0.9, 1.0, 1.1, 2.0])
@pytest.mark.parametrize("n_samples", [1, 511, 512, 30000, 44101])
def test_law_of_lengths(n_samples, tempo):
    """A copy has n / tempo samples, rounded, whatever its pitch."""
    for semitones in (0.0, 1.5, -2.0):
        change = Change(tempo, semitones, 100, 0.0, 0)
        found = apply_change(chords(3.0)[:n_samples], change)
        assert len(found) == changed_length(n_samples, change) == max(round(n_samples / tempo), 1)
        assert found.dtype == np.float32
        assert np.isfinite(found).all()


@pytest.mark.parametrize("tempo", [0.8, 1.1, 1.5])
def test_stretching_keeps_pitch(tempo):
    """A tone keeps its pitch and, away from the ends and but for the loss of phases that are not locked, its power."""
    made = stretch(tone(440.0), tempo)
    np.testing.assert_allclose(loudest_hz(made), 440.0, atol=0.5)
    middle = slice(4000, len(made) - 4000)
    np.testing.assert_allclose(np.sqrt(np.mean(made[middle] ** 2)), 0.5 / np.sqrt(2), rtol=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("tempo", [0.8, pytest.param(0.9, marks=pytest.mark.torture), 1.1])
def test_stretching_agrees_with_librosa(tempo):
    """The very sound of `librosa.effects.time_stretch`, which made the copies of the original system."""
    librosa = pytest.importorskip("librosa")
    sound = chords(3.0)
    expected = librosa.effects.time_stretch(sound, rate=tempo)
    middle = slice(4000, len(expected) - 4000)
    np.testing.assert_allclose(stretch(sound, tempo)[middle], expected[middle], atol=2e-3)


def test_stretching_moves_onsets():
    """What happens at second 1 happens at 1 / tempo."""
    sound = np.zeros(44100, np.float32)
    sound[22050:22100] = 0.9
    for tempo in (0.8, 1.1):
        assert abs(np.abs(stretch(sound, tempo)).argmax() - 22050 / tempo) < 600


@pytest.mark.parametrize("semitones", [-2.0, 0.7, 3.0])
def test_pitch_moves_alone(semitones):
    """Pitch moves by the twelfth root of two a semitone, the length stays."""
    made = apply_change(tone(440.0), Change(1.0, semitones, 0, 0.0, 0))
    np.testing.assert_allclose(loudest_hz(made), 440.0 * 2 ** (semitones / 12), atol=0.7)
    assert len(made) == 44100


def test_shift_and_noise():
    """The shift rolls to the right; noise has its standard deviation; without anything the sound stays itself."""
    sound = chords(1.0)
    np.testing.assert_array_equal(apply_change(sound, Change(1.0, 0.0, 0, 0.0, 0)), sound)
    np.testing.assert_array_equal(apply_change(sound, Change(1.0, 0.0, 3000, 0.0, 0)), np.roll(sound, 3000))
    noise = apply_change(sound, Change(1.0, 0.0, 0, 0.0025, 7)) - sound
    np.testing.assert_allclose(noise.std(), 0.0025, rtol=0.02)
    np.testing.assert_array_equal(apply_change(sound, Change(1.0, 0.0, 0, 0.0025, 7)), noise + sound)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "mood.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    return music(tmp_path_factory.mktemp("sounds"), NAMES)


def build(config, data, out, *more):
    return main(["build-records", str(config), "--data", str(data), "--out", str(out), "--workers", "1", *more])


@pytest.fixture(scope="module")
def records(config, sounds, tmp_path_factory):
    out = tmp_path_factory.mktemp("records") / "mood"
    assert build(config, sounds, out, *OFFLINE_AUGMENT) == 0
    return out


def rows_of(records):
    with (records / "tracks.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_copies_stand_apart(records, config, sounds, tmp_path):
    """Every track has its copies, in the split of their own that goes with its fold; the rest is as without them."""
    rows = rows_of(records)
    split_of = {row["track_id"]: row["split"] for row in rows}
    assert len(rows) == 3 * len(NAMES)
    for name in NAMES:
        track_id = name.replace("/", "-")
        for copy in (1, 2):
            assert split_of[f"{track_id}+copy{copy}"] == f"{split_of[track_id]}_copies"
    assert build(config, sounds, tmp_path / "plain", "record.scale=log10_1p10") == 0
    plain = {row["track_id"]: (row["split"], row["labels"], row["n_frames"]) for row in rows_of(tmp_path / "plain")}
    assert plain.items() <= {row["track_id"]: (row["split"], row["labels"], row["n_frames"]) for row in rows}.items()


def test_copies_have_the_length_of_their_tempo(records):
    """Segments are cut from what is stretched."""
    manifest = Manifest.read(records)
    settings = OfflineAugment.model_validate(manifest.settings["perturb"])
    sizes = {t.track_id: len(t.codes) for split in manifest.splits for t in iterate_tracks(manifest, split)}
    for seed, name in enumerate(NAMES):
        track_id = name.replace("/", "-")
        n_samples = int(np.ceil(len(chords(3.0 + 0.1 * seed)) * 16000 / 22050))
        assert sizes[track_id] == 1 + n_samples // 256
        for copy in (1, 2):
            tempo = draw(settings, track_id, copy).tempo
            assert sizes[f"{track_id}+copy{copy}"] == 1 + round(n_samples / tempo) // 256
    assert len(set(sizes.values())) > len(NAMES)


@pytest.mark.parametrize("fold", [0, 1])
def test_no_model_hears_what_it_is_judged_on(records, fold):
    """The copies of the validation fold neither validate nor train; those of the other fold train."""
    folds = choose_folds(Manifest.read(records), fold)
    assert folds.validation == (f"fold{fold}",)
    assert set(folds.training) == {f"fold{1 - fold}", f"fold{1 - fold}_copies"}
    assert set(choose_folds(Manifest.read(records), "none").training) == {
        "fold0", "fold1", "fold0_copies", "fold1_copies"
    }  # fmt: skip


def test_copies_are_never_scored(records):
    """Whoever asks for them to be scored is refused."""
    manifest = Manifest.read(records)
    with pytest.raises(RecordsError, match="fold0_copies: augmented copies"):
        score_splits(manifest, ["fold1", "fold0_copies"], lambda codes: codes, manifest.contract, batch_size=2)


@pytest.mark.slow
def test_training_and_evaluation(config, records, tmp_path, capsys):
    """A model trains on tracks and copies, and scores the tracks of its fold alone; other records are refused."""
    small = ("model.name=cnn1d", "model.width=4", "training.epochs=1", "training.batch_size=4", "augment.policy=none")
    fit = ["fit", str(config), "--records", str(records), *small]
    assert main([*fit, "--out", str(tmp_path / "plain")]) == 2
    assert "offline_augment must be None as the config says. Received: {'copies': 2" in capsys.readouterr().err
    assert main([*fit, "--out", str(tmp_path / "run"), *OFFLINE_AUGMENT]) == 0
    used = json.loads((tmp_path / "run" / "records.json").read_text())
    trained_on = used["training_tracks"]
    assert "fold1_copies" in used["training"]
    assert "fold0_copies" not in used["training"]
    assert not any("+copy" in name for name in trained_on)  # a copy is no track of its own
    fold = {row["track_id"] for row in rows_of(records) if row["split"] == "fold0"}
    assert not any(name.partition("+")[0] in fold for name in trained_on)
    assert main(["evaluate", str(tmp_path / "run")]) == 0
    predictions = (tmp_path / "run" / "evaluation" / "predictions.csv").read_text().splitlines()[1:]
    assert {line.partition(",")[0] for line in predictions} == fold
    assert main(["evaluate", str(tmp_path / "run"), "--split", "fold1_copies"]) == 2
    assert "never scored" in capsys.readouterr().err
    assert Contract.load(tmp_path / "run" / "contract.json").feature.name == "mel"


def test_official_splits(config, tmp_path):
    """Of official splits `train` alone gets copies."""
    names = [f"{split}/{name}" for split in ("train", "valid", "test") for name in NAMES]
    music(tmp_path / "data", names, seconds=1.0)
    assert build(config, tmp_path / "data", tmp_path / "out", "offline_augment.copies=1") == 0
    splits = Counter(row["split"] for row in rows_of(tmp_path / "out"))
    assert splits == {"train": 8, "train_copies": 8, "validation": 8, "test": 8}
    folds = choose_folds(Manifest.read(tmp_path / "out"), "official")
    assert (set(folds.training), folds.validation) == ({"train", "train_copies"}, ("validation",))


def test_copies_need_sound(config, tmp_path, capsys):
    """Copies of spectrograms, and copies that would be called like another track, are refused."""
    for number, name in enumerate(NAMES):
        (tmp_path / "npy" / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / "npy" / f"{name}.npy", np.full((1, 32, 99), number + 1, np.float32))
    assert build(config, tmp_path / "npy", tmp_path / "out", "offline_augment.copies=1") == 2
    assert "offline_augment.copies are made of sound files" in capsys.readouterr().err
    music(tmp_path / "sounds", NAMES, seconds=1.0)
    write(tmp_path / "sounds" / "calm" / "0+copy1.wav", chords(1.0))
    assert build(config, tmp_path / "sounds", tmp_path / "out", "offline_augment.copies=1") == 2
    assert "track id 'calm-0+copy1' appears twice" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
