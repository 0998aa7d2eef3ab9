"""Embeddings: the file, the frontend between spectrograms, and an MLP on what musicnn or a run has made."""

import io
import json
import zipfile

import keras
import numpy as np
import pytest

from tests.conftest import fit_small
from tests.test_pretrained import as_wheel, checkpoint  # noqa: F401 - a fixture
from tfmusic.cli import main
from tfmusic.core.contract import Contract
from tfmusic.core.feature import Feature
from tfmusic.core.rundir import RunDir
from tfmusic.core.scale import Encoder
from tfmusic.core.windows import slice_windows
from tfmusic.errors import DataError, RunError
from tfmusic.features.embeddings import EmbeddingIndex, EmbeddingsWriter, read_embedding, read_index
from tfmusic.features.filterbanks import filterbank_map, map_filterbank, mel_filterbank
from tfmusic.features.npy import read_mel
from tfmusic.inference.inputs import find_tracks
from tfmusic.models.musicnn import FEATURE as MUSICNN
from tfmusic.records.manifest import Manifest
from tfmusic.records.reader import iterate_tracks
from tfmusic.training.trainer import load_state

FEATURE = Feature(name="embedding", source="somebody", n_bins=5, sample_rate_hz=16000, hop_length=48000)
AIRUSH = Feature(name="mel")


def write(path, **tracks):
    with EmbeddingsWriter(path, FEATURE, ("7", "1")) as writer:
        for name, segments in tracks.items():
            writer.add(name, segments, 3.0 * np.arange(len(segments)))
        writer.finish()


# --- The file ---------------------------------------------------------------------------------------------------


def test_file_reads_back(tmp_path):
    """Tracks, segments and their times, by name, also with numpy alone; the same input gives the same bytes."""
    rng = np.random.default_rng(0)
    tracks = {"7": rng.normal(size=(3, 5)), "a b": rng.normal(size=(1, 5))}
    write(tmp_path / "e.npz", **tracks)
    write(tmp_path / "again.npz", **tracks)
    assert (tmp_path / "e.npz").read_bytes() == (tmp_path / "again.npz").read_bytes()
    assert read_index(tmp_path / "e.npz") == EmbeddingIndex(FEATURE, ("7", "a b"), ("1", "7"))
    np.testing.assert_allclose(read_embedding(tmp_path / "e.npz", "7", 5), tracks["7"].T, rtol=1e-6)
    with np.load(tmp_path / "e.npz", allow_pickle=False) as file:
        np.testing.assert_allclose(file["tracks"][0], tracks["7"].mean(0), rtol=1e-5)
        np.testing.assert_array_equal(np.split(file["start_s"], np.cumsum(file["n_segments"]))[0], [0, 3, 6])
        assert len(file.files) == 6 + 2  # one for each track


def test_file_appears_when_complete(tmp_path):
    """An error while tracks are embedded leaves nothing, and an older file as it was."""
    write(tmp_path / "e.npz", a=np.ones((1, 5)))
    before = (tmp_path / "e.npz").read_bytes()
    with pytest.raises(RuntimeError, match="in between"), EmbeddingsWriter(tmp_path / "e.npz", FEATURE) as writer:
        writer.add("b", np.ones((1, 5)), np.zeros(1))
        raise RuntimeError("in between")
    assert [path.name for path in tmp_path.iterdir()] == ["e.npz"]
    assert (tmp_path / "e.npz").read_bytes() == before


def test_what_is_no_embedding_is_refused(tmp_path):
    """No archive, another archive, a pickle, damaged members, wrong shapes, NaN, a track that is not there."""
    (tmp_path / "no.npz").write_bytes(b"nothing")
    np.save(tmp_path / "one.npz", np.ones(3))
    (tmp_path / "one.npz.npy").rename(tmp_path / "one.npz")
    np.savez(tmp_path / "other.npz", x=np.ones(3))
    np.savez(tmp_path / "object.npz", feature=np.array([{"a": 1}], object), track_ids=np.array(["a"]))
    np.savez(tmp_path / "json.npz", feature=np.array("[" * 10**5), track_ids=np.array(["a"]))
    for name in ("no", "one", "other", "object", "json", "gone"):
        with pytest.raises(DataError, match=rf"{name}\.npz: (must be a file of tfmusic embed|no such file)"):
            read_index(tmp_path / f"{name}.npz")
    write(tmp_path / "e.npz", a=np.ones((2, 5)), nan=np.full((1, 5), np.nan))
    with pytest.raises(DataError, match=r"must contain track b\. Received: no embedding of it"):
        read_embedding(tmp_path / "e.npz", "b", 5)
    with pytest.raises(DataError, match=r"track a: must be floats \[n_segments, 6\]\. Received: \[2, 5\]"):
        read_embedding(tmp_path / "e.npz", "a", 6)
    with pytest.raises(DataError, match="track nan: embeddings must be finite"):
        read_embedding(tmp_path / "e.npz", "nan", 5)
    raw = bytearray((tmp_path / "e.npz").read_bytes())
    raw[raw.index(b"segments/a.npy") + 200] ^= 1
    (tmp_path / "bad.npz").write_bytes(raw)
    with pytest.raises(DataError, match="track a: damaged"):
        read_embedding(tmp_path / "bad.npz", "a", 5)


def test_names_that_numpy_would_confuse(tmp_path):
    """`a` and `a.npy` are two tracks."""
    write(tmp_path / "e.npz", **{"a": np.zeros((1, 5)), "a.npy": np.ones((1, 5))})
    assert read_embedding(tmp_path / "e.npz", "a", 5).max() == 0
    assert read_embedding(tmp_path / "e.npz", "a.npy", 5).min() == 1


@pytest.mark.parametrize(
    "changed", [{"source": None}, {"hop_length": 0}, {"n_bins": "5"}, {"sample_rate_hz": None}, {"more": 1}]
)
def test_a_feature_that_is_not_whole_is_refused(tmp_path, changed):
    """Every field must be there and of its kind, before anything is built on the file."""
    fields = {key: value for key, value in (FEATURE.model_dump() | changed).items() if value is not None}
    np.savez(tmp_path / "e.npz", feature=np.array(json.dumps(fields)), track_ids=["a"], trained_on=np.array([], str))
    with pytest.raises(DataError, match=r"e\.npz: must be a file of tfmusic embed"):
        read_index(tmp_path / "e.npz")


def with_member(path, name, raw, **options):
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"segments/{name}.npy", raw, **options)


def test_damage_of_every_kind_has_a_name(tmp_path):
    """A header that claims 10^13 rows, a header of garbage, a member that is no array: one line each."""
    path = tmp_path / "e.npz"
    write(path, a=np.ones((1, 5)))
    array = io.BytesIO()
    np.lib.format.write_array_header_1_0(array, {"descr": "<f4", "fortran_order": False, "shape": (10**13, 5)})
    with_member(path, "huge", array.getvalue())
    with_member(path, "garbage", b"\x93NUMPY\x01\x00\x10\x00{'descr': ((((((")
    with_member(path, "unmarked", b"no array of numpy")
    for name in ("huge", "garbage", "unmarked"):
        with pytest.raises(DataError, match=f"track {name}: (damaged|must be floats)"):
            read_embedding(path, name, 5)


def test_a_small_file_takes_little_memory(tmp_path):
    """Compressed arrays, and texts of no width, could be gigabytes of a few bytes: both are refused unread."""
    path = tmp_path / "e.npz"
    write(path, a=np.ones((1, 5)))
    members = dict(np.load(path))
    np.savez_compressed(tmp_path / "packed.npz", **members | {"segments/a": np.zeros((1 << 20, 5))})
    for read in (read_index, lambda path: read_embedding(path, "a", 5)):
        with pytest.raises(DataError, match=r"packed\.npz: .*compressed"):
            read(tmp_path / "packed.npz")
    np.savez_compressed(tmp_path / "state.npz", progress=np.frombuffer(b"{}", np.uint8), variable_0=np.zeros(1 << 20))
    with pytest.raises(RunError, match=r"state\.npz: .*compressed"):
        load_state(tmp_path / "state.npz")
    for key in ("feature", "track_ids", "trained_on"):
        with zipfile.ZipFile(path, "w") as archive:
            for name, value in members.items():
                with archive.open(f"{name}.npy", "w") as member:
                    if name == key:
                        header = {"descr": "<U0", "fortran_order": False, "shape": (10**7,)}
                        np.lib.format.write_array_header_1_0(member, header)
                    else:
                        np.lib.format.write_array(member, value)
        with pytest.raises(DataError, match="not text"):
            read_index(path)


@pytest.mark.parametrize("key", ["feature", "track_ids", "trained_on"])
def test_text_of_numbers_that_are_no_sign(tmp_path, key):
    """Arrays of text may hold any numbers, of which numpy makes texts that break Python; a line names the file."""
    path = tmp_path / "e.npz"
    write(path, a=np.ones((1, 5)))
    members = dict(np.load(path))
    members[key] = np.array([0x7FFFFFFF, 65], np.uint32).view("<U2")
    np.savez(path, **members)
    with pytest.raises(DataError, match=r"e\.npz: must be a file of tfmusic embed"):
        read_index(path)


def test_a_member_is_never_unpickled(tmp_path):
    """A track whose array is a pickle is refused."""
    write(tmp_path / "e.npz", a=np.ones((1, 5)))
    pickled = io.BytesIO()
    np.save(pickled, np.array([print], object), allow_pickle=True)
    with zipfile.ZipFile(tmp_path / "e.npz", "a") as archive:
        archive.writestr("segments/evil.npy", pickled.getvalue())
    with pytest.raises(DataError, match="track evil: damaged: Object arrays cannot be loaded"):
        read_embedding(tmp_path / "e.npz", "evil", 5)


# --- The frontend -------------------------------------------------------------------------------------------------


def test_filterbank_has_librosas_numbers():
    """Some entries of librosa 0.11's filters.mel(sr=16000, n_fft=1024 and 512, n_mels=128 and 96)."""
    fine, coarse = (mel_filterbank(n, sample_rate_hz=16000, n_fft=fft) for n, fft in ((128, 1024), (96, 512)))
    assert (fine.shape, coarse.shape) == ((128, 513), (96, 257))
    np.testing.assert_allclose(
        [fine[0, 1], fine[40, 61], fine[127, 505], coarse[50, 58], coarse[95, 250]], LIBROSA, rtol=1e-6
    )
    np.testing.assert_allclose(fine.sum() * 16000 / 1024, 128, rtol=2e-2)  # each of area 1 Hz


LIBROSA = [0.028577779716932577, 0.0325825145731999, 0.003046859918465899, 0.01190757562227633, 0.0029884199781223713]


def power_spectrogram(audio, n_fft, hop):
    padded = np.pad(audio, n_fft // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, n_fft)[::hop]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
    return np.abs(np.fft.rfft(frames * window)).T ** 2


def mel_of(audio, feature):
    filters = mel_filterbank(feature.n_bins, sample_rate_hz=16000, n_fft=feature.n_fft)
    return filters @ power_spectrogram(audio, feature.n_fft, feature.hop_length)


@pytest.mark.parametrize("kind", ["noise", "tones"])
def test_frontend_comes_near_the_wanted_spectrogram(kind):
    """Of steady sound the mapped spectrogram has the energy of the one made from audio, band by band."""
    rng, t = np.random.default_rng(0), np.arange(8 * 16000) / 16000
    audio = rng.normal(size=t.size)
    if kind == "tones":
        audio = sum(np.sin(2 * np.pi * f * t) for f in rng.uniform(300, 7000, 40))
    wanted, mapped = mel_of(audio, MUSICNN), map_filterbank(mel_of(audio, AIRUSH), AIRUSH, MUSICNN)
    assert abs(wanted.shape[1] - mapped.shape[1]) <= 1
    middle = slice(10, -10)
    energy = [power[:, middle].mean(1) for power in (wanted, mapped)]
    np.testing.assert_allclose(energy[1].sum(), energy[0].sum(), rtol=0.05)
    sounding = energy[0] > 1e-3 * energy[0].max()  # elsewhere is what leaks through either window
    level_db = 10 * np.log10(np.stack(energy)[:, sounding])
    assert np.median(np.abs(level_db[0] - level_db[1])) < 1.0


def test_frontend_matrix_is_near_and_never_negative():
    """Non-negative, and within .18 of the wanted filters, as the docstring says."""
    matrix = filterbank_map(AIRUSH, MUSICNN)
    assert matrix.shape == (96, 128)
    assert (matrix >= 0).all()
    at_hand, wanted = (mel_filterbank(n, sample_rate_hz=16000, n_fft=1024) for n in (128, 96))
    error = np.linalg.norm(matrix @ at_hand - 0.25 * wanted) / np.linalg.norm(0.25 * wanted)
    assert 0.17 < error < 0.185


def test_frontend_interpolates_frames():
    """Frames at hand stay, those between lie in the middle; the same feature is left alone; others are refused."""
    mel = np.random.default_rng(0).uniform(size=(128, 5)).astype(np.float32)
    at_hand = filterbank_map(AIRUSH, MUSICNN) @ mel
    between = map_filterbank(mel, AIRUSH, MUSICNN)
    np.testing.assert_allclose(between[:, ::2], at_hand, rtol=1e-6)
    np.testing.assert_allclose(between[:, 1::2], (at_hand[:, :-1] + at_hand[:, 1:]) / 2, rtol=1e-5)
    assert map_filterbank(mel, AIRUSH, AIRUSH) is mel
    assert map_filterbank(mel[:, :1], AIRUSH, MUSICNN).shape == (96, 1)
    for changed in ({"sample_rate_hz": 22050}, {"hop_length": 400}):
        with pytest.raises(DataError, match="feature must have sample_rate_hz=16000 and a hop_length that is a mult"):
            map_filterbank(mel, AIRUSH.model_copy(update=changed), MUSICNN)


# --- The command ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_embeddings_of_a_run_are_what_its_head_sees(trained, music, tmp_path):
    """Embeddings times the last layer are the model's logits, window by window; times in seconds; in data_idx order."""
    out = tmp_path / "e.npz"
    assert main(["embed", str(trained), str(music / "q2" / "test"), "--out", str(out)]) == 0
    ids = read_index(out).track_ids
    mels = music / "q2" / "test" / "test_data" / "mel_spectrogram"
    assert sorted(ids) == sorted(path.stem for path in mels.glob("*.npy"))
    contract = Contract.load(RunDir(trained).contract)
    model = keras.saving.load_model(RunDir(trained).checkpoint("best"), compile=False)
    kernel, bias = model.get_layer("logits").get_weights()
    encoder = Encoder(contract.scale, contract.dtype)
    with np.load(out) as file:
        assert file["track_ids"].tolist() == list(ids)
        starts_s = np.split(file["start_s"], np.cumsum(file["n_segments"])[:-1])
        for name, start_s in zip(ids, starts_s, strict=True):
            cells = encoder.encode(read_mel(mels / f"{name}.npy", 128))
            windows, starts = slice_windows(cells, frames=contract.frames, hop_frames=contract.hop_frames)
            logits = np.asarray(model(windows, training=False))
            np.testing.assert_allclose(file[f"segments/{name}"] @ kernel + bias, logits, rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(start_s, starts * 0.032, rtol=1e-6)


@pytest.fixture(scope="module")
def embedded(checkpoint, music, tmp_path_factory):  # noqa: F811
    """Folder with train.npz and test.npz of the q1 music, from a musicnn wheel."""
    folder = tmp_path_factory.mktemp("embedded")
    wheel = as_wheel(checkpoint[0], folder / "musicnn-0.1.0-py3-none-any.whl")
    for part in ("train", "test"):
        source = str(music / "q1" / part)
        assert main(["embed", "musicnn", source, "--out", str(folder / f"{part}.npz"), "--weights", str(wheel)]) == 0
    return folder


@pytest.mark.slow
def test_mlp_on_musicnn_embeddings_end_to_end(embedded, music, tmp_path, capsys):
    """embed, build-records --embeddings, fit model.name=mlp, evaluate, predict, score, export: the same answers."""
    records, run = tmp_path / "records", tmp_path / "run"
    build = ["build-records", "q1", "--data", str(music), "--embeddings", str(embedded / "train.npz")]
    assert main([*build, "--out", str(records), "--workers", "2"]) == 0
    assert main([*build, "--out", str(tmp_path / "again"), "--workers", "1"]) == 0
    for path in records.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()
    contract = Manifest.read(records).contract
    assert (contract.n_bins, contract.dtype, contract.frames) == (1506, "float32", 1)
    assert contract.feature.source == "MSD_musicnn"
    mlp = ["fit", "q1", "--records", str(records), "--out", str(run), "model.name=mlp", "training.epochs=2"]
    assert main([*mlp, "training.batch_size=8", "training.fold=0", "metadata.fields=[]"]) == 0
    assert "embeddings of MSD_musicnn, 1,506 dimensions for 3.0 s" in capsys.readouterr().out
    assert main(["evaluate", str(run)]) == 0
    assert main(["export", str(run)]) == 0
    answers = [tmp_path / "run.json", tmp_path / "export.json"]
    for model, out in zip((run, run / "export"), answers, strict=True):
        assert main(["predict", str(model), str(embedded / "test.npz"), "--out", str(out)]) == 0
    assert answers[0].read_bytes() == answers[1].read_bytes()
    assert main(["score", "q1", str(answers[0]), str(music / "answers" / "q1.json")]) == 0
    capsys.readouterr()
    assert main(["predict", str(run), str(music / "q1" / "test")]) == 2
    assert "the model takes embeddings of MSD_musicnn, a file of tfmusic embed" in capsys.readouterr().err
    assert main(["fit", "q1", "--records", str(records), "--out", str(tmp_path / "x")]) == 2
    assert "model.name must be mlp" in capsys.readouterr().err


def test_spectrogram_models_refuse_embeddings(trained, embedded, tmp_path, capsys):
    """A model of spectrograms says so when it is given an embedding file."""
    assert main(["predict", str(trained), str(embedded / "test.npz")]) == 2
    assert "test.npz: the model takes mel (sample_rate_hz=16000" in capsys.readouterr().err


def test_a_track_without_embedding(embedded, music, tmp_path, capsys):
    """Labelled tracks that the file lacks stop the build, or are skipped and listed."""
    build = ["build-records", "q1", "--data", str(music), "--embeddings", str(embedded / "test.npz")]
    assert main([*build, "--out", str(tmp_path / "records")]) == 2
    assert "Received: no embedding of it; run tfmusic embed on it" in capsys.readouterr().err
    assert not (tmp_path / "records").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["musicnn", "--out", "e.npy"], "--out must end in .npz. Received: e.npy"),
        (["musicnn", "--out", "e.npz"], "no such folder. `tfmusic weights musicnn` stores"),
        (["musicnn", "--out", "e.npz", "--network", "x"], "--network must be one of MSD_musicnn, MTT_musicnn"),
        (["nowhere", "--out", "e.npz"], "nowhere: no such folder; it must be a run folder"),
    ],
)
def test_embed_errors(music, tmp_path, monkeypatch, capsys, arguments, message):
    """Wrong arguments give one line and write nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFMUSIC_WEIGHTS", str(tmp_path / "weights"))
    source, *options = arguments
    assert main(["embed", source, str(music / "q1" / "test"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_other_embeddings_are_refused_everywhere(embedded, trained, music, tmp_path, capsys):
    """--contract of a model on other embeddings or on spectrograms, embed of embeddings, an id twice."""
    train = str(embedded / "train.npz")
    build = ["build-records", "q1", "--data", str(music), "--out", str(tmp_path / "records")]
    assert main([*build, "--embeddings", train]) == 0
    with np.load(train) as file:
        changed = {name: file[name] for name in file.files}
    changed["feature"] = np.array(str(changed["feature"]).replace("MSD_musicnn", "MTT_musicnn"))
    np.savez(tmp_path / "other.npz", **changed)
    again = [*build[:-1], str(tmp_path / "again"), "--contract", str(tmp_path / "records")]
    for extra in (["--embeddings", str(tmp_path / "other.npz")], []):
        assert main([*again, *extra]) == 2
        assert "--embeddings must be of what the model of --contract takes" in capsys.readouterr().err
    assert main(["embed", str(trained), train, "--out", str(tmp_path / "e.npz")]) == 2
    assert "train.npz: the model takes mel (sample_rate_hz=16000" in capsys.readouterr().err
    changed["track_ids"] = np.array([changed["track_ids"][0]] * 2)
    np.savez(tmp_path / "twice.npz", **changed)
    assert main(["predict", str(trained), str(tmp_path / "twice.npz")]) == 2
    assert "ids must be unique" in capsys.readouterr().err


@pytest.mark.slow
def test_tracks_that_trained_the_embeddings_are_known(trained, music, tmp_path, capsys):
    """An MLP on a run's embeddings says which of its validation tracks trained that run, in fit and in evaluate."""
    assert main(["embed", str(trained), str(music / "q1" / "train"), "--out", str(tmp_path / "e.npz")]) == 0
    records = tmp_path / "records"
    build = ["build-records", "q1", "--data", str(music), "--embeddings", str(tmp_path / "e.npz")]
    assert main([*build, "--out", str(records)]) == 0
    used = json.loads(RunDir(trained).records.read_text())["training_tracks"]
    assert Manifest.read(records).backbone_tracks == set(used)
    mlp = ("model.name=mlp", "model.width=8", "training.epochs=1", "training.fold=1")
    assert fit_small("q1", records, tmp_path / "run", *mlp) == 0
    seen = len(set(used) & set(Manifest.read(records).track_ids(["fold1"])))
    assert seen
    assert f"{seen} of the validation tracks have trained these embeddings" in capsys.readouterr().out
    assert main(["evaluate", str(tmp_path / "run")]) == 0
    assert f"{seen} of these tracks have the ids of tracks that trained" in capsys.readouterr().out


def test_embed_refuses_a_track_twice_and_other_spectrograms(music, checkpoint, tmp_path, capsys):  # noqa: F811
    """Two inputs with one id, and a spectrogram of a height that musicnn cannot take."""
    test, weights = str(music / "q1" / "test"), ("--weights", str(checkpoint[0]), "--out", str(tmp_path / "e.npz"))
    assert main(["embed", "musicnn", test, test, *weights]) == 2
    assert "ids must be unique" in capsys.readouterr().err
    np.save(tmp_path / "80.npy", np.ones((1, 80, 400), np.float32))
    assert main(["embed", "musicnn", str(tmp_path / "80.npy"), *weights]) == 2
    assert "80.npy: shape must be [1, 96 or 128, n_frames]. Received: [1, 80, 400]" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.npz*"))
    assert not list(tmp_path.glob(".*"))


def test_a_track_that_cannot_be_read_does_not_cost_the_others(checkpoint, tmp_path, capsys):  # noqa: F811
    """The first, one in the middle and the last are skipped, listed, and the exit code is 2; the others are written."""
    folder, out = tmp_path / "mels", tmp_path / "e.npz"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in range(1, 6):
        np.save(folder / f"{name}.npy", rng.gamma(0.3, 1.0, (1, 96, 200)).astype(np.float32))
    for name in (1, 3, 5):
        (folder / f"{name}.npy").write_bytes(b"no array")
    command = ["embed", "musicnn", str(folder), "--weights", str(checkpoint[0]), "--out", str(out)]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert all(f"warning: skipped {name}: " in error for name in (1, 3, 5))
    assert "3 of 5 tracks cannot be read and have no embedding; the others have" in error
    assert read_index(out).track_ids == ("2", "4")
    with np.load(out) as file:
        assert [len(file[f"segments/{name}"]) for name in (2, 4)] == [2, 2]
    for name in (2, 4):
        (folder / f"{name}.npy").write_bytes(b"no array")
    assert main([*command, "--overwrite"]) == 2
    assert "1.npy: " in (error := capsys.readouterr().err) and "(and 4 more)" in error
    assert read_index(out).track_ids == ("2", "4")


def test_embeddings_of_any_printable_name(trained, music, tmp_path):
    """Names in any script, with signs and bytes that are no UTF-8: each is an id of the file."""
    mel = sorted((music / "q2/train/train_data/mel_spectrogram").iterdir())[0]
    names = ("노래 1 (live)", "a & b", "#1!", "caf\udce9", "=1+1")
    for name in names:
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{name}.npy").write_bytes(mel.read_bytes())
    assert main(["embed", str(trained), str(tmp_path / "in"), "--out", str(tmp_path / "e.npz")]) == 0
    index = read_index(tmp_path / "e.npz")
    assert set(index.track_ids) == {*names} - {"caf\udce9"} | {"caf\\xe9"}
    vectors = {read_embedding(tmp_path / "e.npz", name, index.feature.n_bins).tobytes() for name in index.track_ids}
    assert len(vectors) == 1
    assert [track.track_id for track in find_tracks([tmp_path / "e.npz"])] == list(index.track_ids)


def test_embeddings_of_a_folder_meet_its_labels(trained, music, tmp_path):
    """Tracks of class folders, whose ids are without split and signs, find what embed wrote of the whole folder."""
    mels = sorted((music / "q2/train/train_data/mel_spectrogram").iterdir())[:6]
    for n, mel in enumerate(mels):
        folder = tmp_path / "data" / ("train", "test")[n >= 4] / ("노래", "b")[n % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"곡 {n}.npy").write_bytes(mel.read_bytes())
    file, out = tmp_path / "e.npz", tmp_path / "records"
    assert main(["embed", str(trained), str(tmp_path / "data"), "--out", str(file)]) == 0
    build = ["build-records", "folder", "--data", str(tmp_path / "data"), "--embeddings", str(file), "--out", str(out)]
    assert main([*build, "data.folds=2", "model.name=mlp"]) == 0
    manifest, index = Manifest.read(out), read_index(file)
    stored = {track.track_id: track.codes for split in manifest.splits for track in iterate_tracks(manifest, split)}
    for track_id, path in zip(*(manifest.read_tracks()[name] for name in ("track_id", "path")), strict=True):
        name = path.removesuffix(".npy").replace("/", "-")
        np.testing.assert_array_equal(stored[track_id].T, read_embedding(file, name, index.feature.n_bins))


@pytest.mark.slow
def test_own_96_bin_mels_need_no_frontend(checkpoint, tmp_path):  # noqa: F811
    """A spectrogram as the authors made it goes to the network unchanged."""
    mel = np.random.default_rng(0).gamma(0.3, 1.0, (1, 96, 500)).astype(np.float32)
    np.save(tmp_path / "t.npy", mel)
    out = tmp_path / "e.npz"
    assert main(["embed", "musicnn", str(tmp_path / "t.npy"), "--weights", str(checkpoint[0]), "--out", str(out)]) == 0
    from tests.test_pretrained import musicnn_weights, transplant
    from tfmusic.models import build_model

    model = build_model("musicnn", frames=187, n_bins=96, n_outputs=50, dtype="float32")
    transplant(model, musicnn_weights(checkpoint[0]), with_head=True)
    pool = keras.Model(model.input, model.get_layer("pool").output)
    windows, _ = slice_windows(np.log10(1 + 1e4 * mel[0].T), frames=187, hop_frames=187)
    with np.load(out) as file:
        np.testing.assert_allclose(file["segments/t"], np.asarray(pool(windows, training=False)), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_embeddings_of_one_run_train_another(trained, music, tmp_path):
    """A run's own embeddings make records as musicnn's do."""
    assert main(["embed", str(trained), str(music / "q1" / "train"), "--out", str(tmp_path / "e.npz")]) == 0
    records = tmp_path / "records"
    build = ["build-records", "q1", "--data", str(music), "--embeddings", str(tmp_path / "e.npz")]
    assert main([*build, "--out", str(records)]) == 0
    mlp = ("model.name=mlp", "model.width=8", "training.epochs=1")
    assert fit_small("q1", records, tmp_path / "run", *mlp) == 0
    report = json.loads(RunDir(tmp_path / "run").metrics.read_text())
    assert 0 <= report["validation"] <= 1


def test_embeddings_of_ones_own_end_to_end(tmp_path, capsys):
    """Files [n_dims, n_frames] of a network that the config names are built, trained on, evaluated and exported."""
    rng, music = np.random.default_rng(0), tmp_path / "music"
    for i in range(12):
        path = music / ("high", "low")[i % 2] / f"{i}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, (rng.normal(i % 2 * 3, 1, (8, 20 + i)) / 2).astype(np.float32))
    given = ["feature.source=mert", "feature.n_bins=8", "feature.frame_s=0.4", "data.folds=2"]
    records, run = str(tmp_path / "records"), str(tmp_path / "run")
    assert main(["build-records", "embeddings", "--data", str(music), "--out", records, *given]) == 0
    fit = ["fit", "embeddings", "--records", records, "--out", run, *given, "training.fold=0", "training.epochs=20"]
    assert main([*fit, "training.batch_size=8"]) == 0
    contract = Contract.load(RunDir(tmp_path / "run").contract)
    assert str(contract.feature).startswith("embedding of mert") and contract.frames_per_s == 2.5
    assert main(["export", run]) == 0
    capsys.readouterr()
    for model in (run, f"{run}/export"):
        assert main(["predict", model, str(music / "low" / "1.npy"), str(music / "high" / "0.npy")]) == 0
        assert json.loads(capsys.readouterr().out) == ["low", "high"]
    np.save(tmp_path / "turned.npy", np.zeros((20, 8), np.float32))
    assert main(["predict", run, str(tmp_path / "turned.npy")]) == 2
    assert "[1, 8, n_frames]" in (error := capsys.readouterr().err) and "transpose" in error
    assert main([*fit[:-2], "--overwrite", "feature.source=clap"]) == 2
    assert "mert" in (error := capsys.readouterr().err) and "clap" in error
