"""What TensorFlow Serving needs: signatures with names and types, and several tracks of different lengths at once."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from tests.test_serving import small_model
from tfmusic.core.feature import POWER, Feature
from tfmusic.export.savedmodel import TrackModel, signatures
from tfmusic.export.waveform import feature_fn
from tfmusic.features.read import compute_from_samples
from tfmusic.models import build_model
from tfmusic.scoring.track_scorer import TrackScorer

LENGTHS = (7, 40, 41, 700)


def some_mels(lengths=LENGTHS, n_bins=128):
    rng = np.random.default_rng(0)
    return [(10 ** rng.uniform(-7, 3, (n_bins, n))).astype(np.float32) for n in lengths]


def padded(mels):
    """Returns the tracks side by side; what fills them up is no power at all, so that it would be refused if read."""
    most = max(mel.shape[1] for mel in mels)
    return np.stack([np.pad(mel, ((0, 0), (0, most - mel.shape[1])), constant_values=np.nan) for mel in mels])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A SavedModel of a small q2 model."""
    path = tmp_path_factory.mktemp("serving") / "q2" / "1"
    model, contract = small_model("multi")
    module = TrackModel(model, contract, TrackScorer(kind=contract.kind))
    tf.saved_model.save(module, str(path), signatures=signatures(module, contract))
    return path


@pytest.mark.slow
def test_batch_answers_as_one_by_one(saved):
    """Tracks shorter than a window, of a window, a frame more, and many windows: within 1e-5, padding unread."""
    model, mels = tf.saved_model.load(str(saved)), some_mels()
    scores = model.signatures["batch"](mel=tf.constant(padded(mels)), n_frames=tf.constant(LENGTHS))["track_scores"]
    alone = [model.signatures["serving_default"](mel=tf.constant(mel))["track_scores"] for mel in mels]
    np.testing.assert_allclose(scores, alone, atol=1e-5)


@pytest.mark.slow
def test_files_in_decibels(tmp_path):
    """Where files hold 20 log10(power), the signature `file` takes them, and the others power."""
    model, contract = small_model("multi")
    contract = replace(contract, feature=contract.feature.model_copy(update={"log10_factor": 20.0}))
    module = TrackModel(model, contract, TrackScorer(kind=contract.kind))
    tf.saved_model.save(module, str(tmp_path), signatures=signatures(module, contract))
    found, power = tf.saved_model.load(str(tmp_path)).signatures, some_mels()[2]
    by_file = found["file"](mel=tf.constant(20 * np.log10(power)[None]))["track_scores"]
    np.testing.assert_allclose(by_file, found["serving_default"](mel=tf.constant(power))["track_scores"], atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("lengths", [(0, 40), (8, 41), (8,)])
def test_batch_refuses_lengths_that_are_none(saved, lengths):
    """No frame, more frames than there are, or a length too few."""
    batch = tf.saved_model.load(str(saved)).signatures["batch"]
    with pytest.raises(tf.errors.InvalidArgumentError, match="n_frames must be 1 to the frames of mel"):
        batch(mel=tf.constant(padded(some_mels((8, 40)))), n_frames=tf.constant(lengths))


def test_batch_reads_metadata_of_each_track():
    """Tokens filled up with empty strings; each track by its own."""
    _, contract = small_model("multi")
    contract = replace(contract, metadata=("genres=?", "genres=jazz", "genres=pop"))
    model = build_model("cnn1d", frames=40, n_bins=128, n_outputs=3, width=4, n_tokens=3)
    module = TrackModel(model, contract, TrackScorer(kind=contract.kind))
    mels = some_mels((50, 60, 50))
    tokens = [["genres=jazz", "genres=pop"], ["genres=unheard of", ""], ["", ""]]
    scores = module.predict_batch(tf.constant(padded(mels)), tf.constant([50, 60, 50]), tf.constant(tokens))
    alone = [
        module(tf.constant(mel), tf.constant([token for token in some if token], tf.string))["track_scores"]
        for mel, some in zip(mels, tokens, strict=True)
    ]
    np.testing.assert_allclose(scores["track_scores"], alone, atol=1e-5)


FEATURES = {
    "airush": {"name": "mel"},
    "musicnn": "musicnn",
    "stft": {"name": "stft", "n_fft": 512, "n_bins": 257, "hop_length": 300},
    "log-mel": {"name": "log-mel"},
    "raw": {"name": "raw"},
}


@pytest.mark.parametrize("name", FEATURES)
def test_features_of_waveforms_in_the_graph(name):
    """Equal to numpy's to 1e-3 dB over 80 dB: .1 s, lengths around a block of frames, silence, full scale."""
    feature = Feature.model_validate(FEATURES[name])
    compute = tf.function(feature_fn(feature), input_signature=[tf.TensorSpec([None], tf.float32)])
    rng, rate = np.random.default_rng(0), feature.sample_rate_hz
    lengths = [rate // 10, 1024 * feature.hop_length - 1, 1024 * feature.hop_length, 40 * rate + 7]
    sounds = [rng.normal(0, 0.1, n) * np.linspace(0, 1, n) ** 4 for n in lengths]
    sounds += [np.zeros(rate), np.sign(np.sin(np.arange(rate) / 20))]
    for samples in (sound.astype(np.float32) for sound in sounds):
        ours, expected = compute(samples).numpy(), compute_from_samples(samples, rate, feature)
        assert ours.shape == expected.shape
        if feature.name in POWER:
            ours, expected = (10 * np.log10(np.maximum(x, expected.max() * 1e-8 + 1e-30)) for x in (ours, expected))
        np.testing.assert_allclose(ours, expected, atol=1e-3)


def test_features_that_are_not_in_the_graph(tmp_path):
    """A model of a CQT has no signature for waveforms."""
    assert feature_fn(Feature.model_validate("fma-cqt")) is None
    model, contract = small_model("multi")
    contract = replace(contract, feature=Feature.model_validate({"name": "cqt", "n_bins": 96}))
    model = build_model("cnn1d", frames=40, n_bins=96, n_outputs=3, width=4)
    module = TrackModel(model, contract, TrackScorer(kind=contract.kind))
    assert not any(name.startswith("waveform") for name in signatures(module, contract))


def some_sounds():
    rng = np.random.default_rng(1)
    return [(rng.normal(0, 0.2, n)).astype(np.float32) for n in (1700, 16000, 90000)]


@pytest.mark.slow
def test_waveforms_are_predicted_as_their_spectrograms(saved):
    """One track, several with their lengths, and what the input must be; too short or not finite is refused."""
    model = tf.saved_model.load(str(saved))
    feature = small_model("multi")[1].feature
    assert model.signatures["info"]()["sample_rate_hz"].numpy() == feature.sample_rate_hz
    sounds = some_sounds()
    mels = [compute_from_samples(sound, feature.sample_rate_hz, feature) for sound in sounds]
    expected = [model.signatures["serving_default"](mel=tf.constant(mel))["track_scores"] for mel in mels]
    alone = [model.signatures["waveform"](audio=tf.constant(sound))["track_scores"] for sound in sounds]
    np.testing.assert_allclose(alone, expected, atol=1e-4)
    side_by_side = np.stack([np.pad(sound, (0, 90000 - len(sound)), constant_values=np.nan) for sound in sounds])
    lengths = tf.constant([len(sound) for sound in sounds])
    batch = model.signatures["waveform_batch"](audio=tf.constant(side_by_side), n_samples=lengths)["track_scores"]
    np.testing.assert_allclose(batch, alone, atol=1e-6)
    for bad in (sounds[0][:1000], side_by_side[0]):
        with pytest.raises(
            tf.errors.InvalidArgumentError, match="audio must be finite samples at 16000 Hz, 1024 or more"
        ):
            model.signatures["waveform"](audio=tf.constant(bad))


@pytest.mark.slow
def test_a_c_program_predicts_a_waveform(saved, tmp_path):
    """TensorFlow's C API alone, without Python, gives the same scores."""
    compiler, place = shutil.which("cc"), Path(tf.sysconfig.get_lib())
    libraries = [place / f"libtensorflow_{name}.so.2" for name in ("cc", "framework")]
    if compiler is None or not all(path.is_file() for path in libraries):
        pytest.skip("no C compiler, or no libtensorflow_cc.so.2 in this TensorFlow")
    source, program = Path(__file__).with_name("waveform.c"), tmp_path / "waveform"
    command = [compiler, "-o", program, source, f"-I{tf.sysconfig.get_include()}", *libraries, f"-Wl,-rpath,{place}"]
    subprocess.run(command, check=True)
    proto = saved_model_pb2.SavedModel.FromString((saved / "saved_model.pb").read_bytes())
    signature = proto.meta_graphs[0].signature_def["waveform"]
    output, index = signature.outputs["track_scores"].name.split(":")
    sound = some_sounds()[2]
    sound.tofile(tmp_path / "sound")
    arguments = [saved, tmp_path / "sound", signature.inputs["audio"].name.split(":")[0], output, index]
    done = subprocess.run([program, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = tf.saved_model.load(str(saved)).signatures["waveform"](audio=tf.constant(sound))["track_scores"]
    np.testing.assert_allclose([float(line) for line in done.stdout.split()], expected, atol=1e-6)


@pytest.mark.slow
def test_request_messages_of_tensorflow_serving(saved):
    """A request of its client, serialised and read again, fits each signature by names and types, and is answered."""
    predict_pb2 = pytest.importorskip("tensorflow_serving.apis.predict_pb2")
    model, mels = tf.saved_model.load(str(saved)), some_mels()
    sound = some_sounds()[1]
    inputs = {
        "serving_default": {"mel": mels[1]},
        "batch": {"mel": padded(mels), "n_frames": np.array(LENGTHS, np.int32)},
        "waveform": {"audio": sound},
        "waveform_batch": {"audio": sound[None], "n_samples": np.array([len(sound)], np.int32)},
    }
    for name, values in inputs.items():
        request = predict_pb2.PredictRequest()
        request.model_spec.name, request.model_spec.signature_name = "q2", name
        for key, value in values.items():
            request.inputs[key].CopyFrom(tf.make_tensor_proto(value))
        received = predict_pb2.PredictRequest.FromString(request.SerializeToString())
        signature = model.signatures[received.model_spec.signature_name]
        wanted = signature.structured_input_signature[1]
        assert {key: proto.dtype for key, proto in received.inputs.items()} == {
            key: spec.dtype.as_datatype_enum for key, spec in wanted.items()
        }
        answer = signature(**{key: tf.constant(tf.make_ndarray(proto)) for key, proto in received.inputs.items()})
        direct = signature(**{key: tf.constant(value) for key, value in values.items()})
        np.testing.assert_array_equal(answer["track_scores"], direct["track_scores"])


def cli(*arguments):
    command = [sys.executable, "-m", "tensorflow.python.tools.saved_model_cli", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.slow
def test_saved_model_cli_shows_and_runs_it(saved, tmp_path):
    """Names, types and shapes as a client must send them, the method that the server looks for, and an answer."""
    shown = " ".join(cli("show", "--dir", saved, "--tag_set", "serve", "--signature_def", "batch").split())
    for part in (
        "inputs['mel'] tensor_info: dtype: DT_FLOAT shape: (-1, 128, -1)",
        "inputs['n_frames'] tensor_info: dtype: DT_INT32 shape: (-1)",
        "outputs['track_scores'] tensor_info: dtype: DT_FLOAT shape: (-1, 3)",
        "Method name is: tensorflow/serving/predict",
    ):
        assert part in shown
    mels = some_mels((50, 90))
    np.savez(tmp_path / "in.npz", mel=padded(mels), n_frames=np.array([50, 90], np.int32))
    inputs = f"mel={tmp_path}/in.npz[mel];n_frames={tmp_path}/in.npz[n_frames]"
    cli(
        "run",
        "--dir",
        saved,
        "--tag_set",
        "serve",
        "--signature_def",
        "batch",
        "--inputs",
        inputs,
        "--outdir",
        tmp_path,
    )
    alone = tf.saved_model.load(str(saved)).signatures["serving_default"](mel=tf.constant(mels[1]))["track_scores"]
    np.testing.assert_allclose(np.load(tmp_path / "track_scores.npy")[1], alone, atol=1e-5)
