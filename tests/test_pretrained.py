"""Weights from elsewhere: ImageNet files, musicnn checkpoints, other runs."""

import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
import soundfile
import tensorflow as tf

import tfmusic
from tfmusic.cli import main
from tfmusic.config.sections import ModelSection
from tfmusic.errors import ConfigError, RunError
from tfmusic.models import build_model
from tfmusic.pretrained import applications
from tfmusic.pretrained.applications import PIXEL_SPREAD, imagenet_weights
from tfmusic.pretrained.musicnn import HOW_TO_GET, download_musicnn, musicnn_weights
from tfmusic.pretrained.sources import find_weights
from tfmusic.pretrained.torchvision import check_torchvision, torchvision_weights
from tfmusic.pretrained.transplant import archive_weights, keras_file_weights, layer_weights, transplant

FRAMES, BINS = 64, 48


def applications_network(name):
    """Returns the network of Keras Applications with weights, statistics included, that are not those it began with."""
    keras.utils.set_random_seed(5)
    model = getattr(keras.applications, applications.ARCHITECTURES[name])(include_top=False, weights=None)
    rng = np.random.default_rng(5)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([rng.uniform(0.5, 1.0, weight.shape) for weight in layer.weights])
    return model


def write_legacy_h5(model, path):
    """Writes the layout of the files that Keras Applications publishes: a group a layer, names in attributes."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [layer.name.encode() for layer in model.layers]
        for layer in model.layers:
            group = file.create_group(layer.name)
            names = [f"{layer.name}/{i}:0" for i in range(len(layer.weights))]
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name, value in zip(names, layer.get_weights(), strict=True):
                group[name] = value


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    """Returns a function from a network's name to a weights file as Keras Applications publishes them."""
    folder, made = tmp_path_factory.mktemp("weights"), {}

    def file_of(name):
        if name not in made:
            model, path = applications_network(name), folder / f"{name}.h5"
            write_legacy_h5(model, path)
            made[name] = (path, model)
        return made[name]

    return file_of


@pytest.mark.parametrize("name", ["vgg16", "resnet50"])
def test_imagenet_weights_give_the_same_features(name, weights_file):
    """On a grey picture of the spread they were trained on, our backbone gives what Keras Applications' gives."""
    path, original = weights_file(name)
    model = build_model(name, frames=FRAMES, n_bins=BINS, n_outputs=4, dtype="float32")
    result = transplant(model, imagenet_weights(name, path))
    assert result.skipped == {"logits": "a new head"}
    assert len(result.loaded) == sum(bool(layer.weights) for layer in original.layers)
    x = np.random.default_rng(0).normal(size=(2, FRAMES, BINS)).astype(np.float32)
    expected = np.asarray(original(np.repeat(PIXEL_SPREAD * x[..., None], 3, axis=-1), training=False))
    features = keras.Model(model.input, model.get_layer("positions").input)(x, training=False)
    np.testing.assert_allclose(np.asarray(features), expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


@pytest.mark.slow
def test_weights_of_keras_3_and_with_top(tmp_path):
    """A .weights.h5 of Keras 3, of a network with its top, is read as well."""
    model = keras.applications.ResNet50(weights=None)
    model.save_weights(tmp_path / "full.weights.h5")
    weights = imagenet_weights("resnet50", tmp_path / "full.weights.h5")
    kernel = model.get_layer("conv1_conv").get_weights()[0]
    np.testing.assert_allclose(weights["conv1_conv"][0][:, :, 0], PIXEL_SPREAD * kernel.sum(2), rtol=1e-5)


def test_errors_of_imagenet_weights(tmp_path, weights_file, monkeypatch):
    """No such network, no such file, another network's file, no HDF5 at all, no network connection: one line each."""
    with pytest.raises(ConfigError, match=r"exist for vgg16, vgg19, resnet50, resnet101\. Received: model\.name=crnn"):
        imagenet_weights("crnn")
    with pytest.raises(RunError, match=r"none\.h5: no such file; model.weights must be a weights file of VGG16"):
        imagenet_weights("vgg16", tmp_path / "none.h5")
    with pytest.raises(RunError, match=r"vgg16\.h5: must be a weights file of Keras Applications' VGG19"):
        imagenet_weights("vgg19", weights_file("vgg16")[0])
    (tmp_path / "bad.h5").write_bytes(b"no hdf5")
    with pytest.raises(RunError, match=r"bad\.h5: must be a weights file of Keras Applications"):
        imagenet_weights("vgg16", tmp_path / "bad.h5")

    def no_connection(**options):
        raise Exception("URL fetch failure on some://where: None -- Name or service not known")

    monkeypatch.setattr(keras.applications, "VGG16", no_connection)
    with pytest.raises(RunError, match=r"vgg16_weights_tf_dim_ordering_tf_kernels_notop\.h5 .* put it into ~/\.keras"):
        imagenet_weights("vgg16")


def test_imagenet_weights_come_from_the_cache(weights_file, monkeypatch):
    """`imagenet` without a path asks Keras Applications for its ImageNet weights, and takes what comes."""
    path, original = weights_file("vgg16")
    calls = []

    def from_cache(**options):
        calls.append(options)
        return original

    monkeypatch.setattr(keras.applications, "VGG16", from_cache)
    weights = imagenet_weights("vgg16")
    assert calls == [{"include_top": False, "weights": "imagenet"}]
    np.testing.assert_array_equal(weights["block5_conv3"][0], imagenet_weights_read(path)["block5_conv3"][0])


def imagenet_weights_read(path):
    with h5py.File(path) as file:
        return {name: [np.array(file[name][key]) for key in file[name].attrs["weight_names"]] for name in file}


def test_transplant_is_by_name_and_shape():
    """Layers of the same name and shapes are set, others keep what they have, and each says why."""
    keras.utils.set_random_seed(0)
    target = build_model("resnet18", frames=40, n_bins=32, n_outputs=3, width=4)
    source = dict(layer_weights(build_model("resnet18", frames=80, n_bins=32, n_outputs=9, width=4)))
    source["stem_conv"] = [np.zeros((7, 7, 1, 8))]
    del source["stem_bn"]
    before = dict(layer_weights(target))
    result = transplant(target, source)
    assert result.skipped == {
        "stem_conv": "another shape in the source",
        "stem_bn": "no layer of that name in the source",
        "logits": "a new head",
    }
    after = layer_weights(target)
    for name, weights in after.items():
        expected = source if name in result.loaded else before
        for actual, original in zip(weights, expected[name], strict=True):
            np.testing.assert_array_equal(actual, original)
    assert result.describe().splitlines()[0] == f"{len(result.loaded)} layers loaded, 3 not"


def test_keras_file_with_code_is_refused(tmp_path):
    """A .keras file that would run code of its own is refused, as is one that is none."""
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Lambda(lambda x: x * 2)(inputs))
    model.save(tmp_path / "code.keras")
    (tmp_path / "none.keras").write_bytes(b"PK\x03\x04nothing")
    for name in ("code", "none"):
        with pytest.raises(RunError, match=rf"{name}\.keras: must be a Keras model"):
            keras_file_weights(tmp_path / f"{name}.keras")
    with pytest.raises(RunError, match=r"gone\.keras: no such file"):
        keras_file_weights(tmp_path / "gone.keras")


# --- musicnn ----------------------------------------------------------------------------------------------------

N_PER_LAYER = [("timbral", 7, 38), ("timbral", 7, 67), ("temporal", 128, 1), ("temporal", 64, 1), ("temporal", 32, 1)]


def original_musicnn(x):
    """Returns the 50 logits of the paper's network in TensorFlow 1 operations, named as in its checkpoints."""
    v1 = tf.compat.v1
    used = {}

    def variable(layer, name, shape):
        return v1.get_variable(f"{layer}/{name}", initializer=rng.normal(0, 0.1, shape).astype(np.float32))

    def next_name(layer):
        used[layer] = used.get(layer, -1) + 1
        return f"{layer}_{used[layer]}" if used[layer] else layer

    def batch_norm(x):
        layer, n = next_name("batch_normalization"), int(x.shape[-1])
        gamma, beta = variable(layer, "gamma", [n]), variable(layer, "beta", [n])
        mean = variable(layer, "moving_mean", [n])
        variance = v1.get_variable(f"{layer}/moving_variance", initializer=rng.uniform(0.5, 2, n).astype(np.float32))
        return tf.nn.batch_normalization(x, mean, variance, beta, gamma, 1e-3)

    def conv(x, channels, kernel, padding):
        layer = next_name("conv2d")
        shape = [*kernel, int(x.shape[-1]), channels]
        kernel, bias = variable(layer, "kernel", shape), variable(layer, "bias", [channels])
        return batch_norm(tf.nn.relu(tf.nn.conv2d(x, kernel, 1, padding) + bias))

    def dense(x, n):
        layer = next_name("dense")
        return x @ variable(layer, "kernel", [int(x.shape[-1]), n]) + variable(layer, "bias", [n])

    rng = np.random.default_rng(3)
    x = batch_norm(x[..., None])
    fronts = []
    for kind, length, height in N_PER_LAYER:
        if kind == "timbral":
            y = conv(tf.pad(x, [[0, 0], [3, 3], [0, 0], [0, 0]]), 204, [length, height], "VALID")
        else:
            y = conv(x, 51, [length, height], "SAME")
        fronts.append(tf.reduce_max(y, axis=2))
    steps = [tf.concat(fronts, 2)[..., None]]
    for i in range(3):
        below = steps[-1]
        y = conv(tf.pad(below, [[0, 0], [3, 3], [0, 0], [0, 0]]), 64, [7, int(below.shape[2])], "VALID")
        y = tf.transpose(y, [0, 1, 3, 2])
        steps.append(y + below if i else y)
    features = tf.concat(steps, 2)
    pooled = tf.concat([tf.reduce_max(features, 1), tf.reduce_mean(features, 1)], 2)
    pooled = batch_norm(tf.reshape(pooled, [-1, 2 * int(features.shape[2])]))
    return dense(batch_norm(tf.nn.relu(dense(pooled, 200))), 50)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Returns the folder of a checkpoint as the package musicnn ships them, an input, and the logits for it."""
    folder = tmp_path_factory.mktemp("musicnn") / "MSD_musicnn"
    folder.mkdir()
    x = np.log10(1 + 1e4 * np.random.default_rng(0).gamma(0.3, 1.0, (2, 187, 96))).astype(np.float32)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        logits = original_musicnn(tf.constant(x))
        session.run(tf.compat.v1.global_variables_initializer())
        saver = tf.compat.v1.train.Saver()
        saver.save(session, str(folder / "model"), write_meta_graph=False, write_state=False)
        expected = session.run(logits)
    for path in folder.glob("model.*"):
        path.rename(folder / path.name.removeprefix("model"))
    # The author's state file, whose absolute path exists nowhere else.
    (folder / "checkpoint").write_text('model_checkpoint_path: "/home/author/somewhere/"\n')
    return folder, x, expected


def logits_of(weights, x):
    model = build_model("musicnn", frames=187, n_bins=96, n_outputs=50, dtype="float32")
    result = transplant(model, weights, with_head=True)
    assert not result.skipped
    return np.asarray(model(x, training=False))


def as_wheel(folder, path):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, f"musicnn/MSD_musicnn/{file.name}")
    return path


def test_musicnn_checkpoint_gives_its_logits(checkpoint, tmp_path):
    """Our network with the weights of a checkpoint computes what its graph computes; from folders and the wheel."""
    folder, x, expected = checkpoint
    for place in (folder, folder.parent, as_wheel(folder, tmp_path / "musicnn-0.1.0-py3-none-any.whl")):
        np.testing.assert_allclose(logits_of(musicnn_weights(place), x), expected, rtol=1e-3, atol=1e-4)


@pytest.fixture
def tagger(checkpoint, tmp_path, monkeypatch):
    """The store of weights with a checkpoint for both of musicnn's networks."""
    monkeypatch.setenv("TFMUSIC_WEIGHTS", str(tmp_path / "weights"))
    for network in ("MSD_musicnn", "MTT_musicnn"):
        shutil.copytree(checkpoint[0], tmp_path / "weights" / "musicnn-0.1.0" / network)
    return checkpoint


def test_musicnn_is_a_model(tagger, tmp_path, capsys):
    """Its taggram is what the original graph computes; sound, its own mels and AI Rush's are predicted and exported."""
    _, x, expected = tagger
    model = tfmusic.load("musicnn")
    power = np.concatenate((10.0**x - 1) / 1e4).T.astype(np.float32)  # two windows, one after the other
    prediction = model._predictor.predict(power)
    np.testing.assert_allclose(prediction.window_scores, 1 / (1 + np.exp(-expected)), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(prediction.scores, prediction.window_scores.mean(0), rtol=1e-6)
    assert prediction.chosen.sum() == 3 and model.labels[:2] == ("rock", "pop")
    soundfile.write(tmp_path / "song.wav", np.random.default_rng(0).normal(0, 0.1, 80000), 16000)
    airush = tfmusic.mel(tmp_path / "song.wav", "airush")
    np.save(tmp_path / "airush.npy", airush[None])
    np.save(tmp_path / "own.npy", tfmusic.mel(tmp_path / "song.wav", "musicnn"))
    scores = [model.predict(tmp_path / name).scores for name in ("song.wav", "own.npy", "airush.npy")]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-5)
    np.testing.assert_allclose(scores[2], model.predict(airush).scores, atol=1e-6)
    assert model.embed(tmp_path / "song.wav").mean.shape == (1506,)
    assert main(["predict", "musicnn-mtt", str(tmp_path), "--out", str(tmp_path / "p.csv")]) == 0
    assert main(["verify", "musicnn"]) == 0
    assert main(["export", "musicnn", "--out", str(tmp_path / "export")]) == 0
    exported = tfmusic.load(tmp_path / "export").predict(tmp_path / "own.npy")
    np.testing.assert_allclose(exported.scores, scores[1], atol=1e-5)


def test_musicnn_without_its_weights(tmp_path, monkeypatch, capsys):
    """One line says how to get them."""
    monkeypatch.setenv("TFMUSIC_WEIGHTS", str(tmp_path))
    np.save(tmp_path / "a.npy", np.ones((96, 187), np.float32))
    assert main(["predict", "musicnn", str(tmp_path / "a.npy")]) == 2
    assert "tfmusic weights musicnn" in capsys.readouterr().err


def test_musicnn_errors(checkpoint, tmp_path):
    """Nothing there, no wheel, a wheel of something else, a damaged checkpoint: one line, and how to get it."""
    folder, _, _ = checkpoint
    (tmp_path / "no.whl").write_bytes(b"nothing")
    with zipfile.ZipFile(tmp_path / "other.whl", "w") as archive:
        archive.writestr("other/__init__.py", "")
    for path in (tmp_path / "gone.whl", tmp_path / "no.whl", tmp_path / "other.whl"):
        with pytest.raises(RunError, match=r"pip download --no-deps --only-binary=:all: musicnn==0\.1\.0"):
            musicnn_weights(path)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(RunError, match=r"MSD_musicnn/\.index"):
        musicnn_weights(empty)
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for file in folder.iterdir():
        raw = bytearray(file.read_bytes())
        raw[len(raw) // 2] ^= 0xFF
        (damaged / file.name).write_bytes(raw)
    with pytest.raises(RunError, match="must contain a checkpoint of musicnn"):
        musicnn_weights(damaged)


def test_a_download_builds_and_runs_nothing(tmp_path, monkeypatch):
    """Where the index has a source archive alone, or pip.py stands in the folder: one line, and none of it is run."""
    backend = f"open({str(tmp_path / 'ran')!r}, 'w')"
    (tmp_path / "pip.py").write_text(backend)
    files = {
        "pyproject.toml": "[build-system]\nrequires = []\nbuild-backend = 'evil'\nbackend-path = ['.']\n",
        "evil.py": backend, "setup.py": backend, "PKG-INFO": "Metadata-Version: 1.0\nName: musicnn\nVersion: 0.1.0\n",
    }  # fmt: skip
    with tarfile.open(tmp_path / "musicnn-0.1.0.tar.gz", "w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(f"musicnn-0.1.0/{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": str(tmp_path), "CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.setenv("TFMUSIC_WEIGHTS", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match=r"only-binary=:all: musicnn==0\.1\.0: .*Fetch the wheel"):
        download_musicnn()
    with zipfile.ZipFile(tmp_path / "musicnn-0.1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("musicnn-0.1.0.dist-info/WHEEL", "Wheel-Version: 1.0\n")
    with pytest.raises(RunError, match="HASH"):
        download_musicnn()
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
@pytest.mark.parametrize("network", ["MSD_musicnn", "MTT_musicnn"])
def test_the_published_graph_and_ours_agree(network):
    """The authors' own graph, from the wheel, and our network give the same tags within 1e-6."""
    wheel = Path(os.environ.get("TFMUSIC_MUSICNN_WHEEL", ""))
    if not wheel.is_file():
        pytest.skip(f"set TFMUSIC_MUSICNN_WHEEL to the file that `{HOW_TO_GET}` brings")
    v1 = tf.compat.v1
    x = np.log10(1 + 1e4 * np.random.default_rng(0).gamma(0.3, 1.0, (3, 187, 96))).astype(np.float32)
    meta = v1.MetaGraphDef()
    with zipfile.ZipFile(wheel) as archive:
        meta.ParseFromString(archive.read(f"musicnn/{network}/.meta"))
    graph = v1.graph_util.extract_sub_graph(meta.graph_def, ["model/dense_1/BiasAdd"])
    for node in graph.node:
        node.device = ""
        node.attr.pop("_output_shapes", None)
    named = {node.name: node for node in graph.node}
    weights = musicnn_weights(wheel, network)
    with tf.Graph().as_default(), v1.Session() as session:
        tf.import_graph_def(graph, name="")
        feed = {f"{name}:0": value for name, value in _checkpoint_values(wheel, network, named).items()}
        feed |= {"model/Placeholder:0": x, "model/Placeholder_2:0": False}
        original = session.run("model/dense_1/BiasAdd:0", feed)
    to_tags = tf.sigmoid
    np.testing.assert_allclose(to_tags(logits_of(weights, x)), to_tags(original), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("clip", "published"),
    [
        (
            "joram-moments_of_clarity-08-solipsism-59-88.mp3",
            ["techno", "electronic", "synth", "fast", "beat", "drums", "no vocals", "no vocal", "dance", "ambient"],
        ),
        ("TRWJAZW128F42760DD_test.mp3", ["guitar", "piano", "fast"]),
    ],
)
def test_tags_that_the_authors_published(clip, published):
    """The top tags of the authors' README for their two clips, in order; a decoder may exchange near ties."""
    folder = Path(os.environ.get("TFMUSIC_MUSICNN_CLIPS", ""))
    if not (folder / clip).is_file():
        pytest.skip(
            "set TFMUSIC_MUSICNN_CLIPS to the folder audio/ of the authors' repository, after `weights musicnn`"
        )
    scores = tfmusic.load("musicnn-mtt").predict(folder / clip).scores.sort_values(ascending=False)
    for place, tag in enumerate(published):
        assert scores[tag] == pytest.approx(scores.iloc[place], abs=1e-3)


def _checkpoint_values(wheel, network, nodes):
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as archive:
        for name in (".index", ".data-00000-of-00001"):
            (Path(folder) / name).write_bytes(archive.read(f"musicnn/{network}/{name}"))
        reader = tf.compat.v1.train.NewCheckpointReader(f"{folder}/")
        return {name: reader.get_tensor(name) for name, node in nodes.items() if node.op in ("VariableV2", "Variable")}


@pytest.mark.parametrize("name", ["resnet18", "crnn", "resnet_gru"])
def test_archives_are_read_without_keras(name, tmp_path):
    """The weights by layer that the file holds are those of the model, recurrent and bidirectional layers included."""
    model = build_model(name, frames=64, n_bins=32, n_outputs=3, width=4)
    model.save(tmp_path / "model.keras")
    read = archive_weights(tmp_path / "model.keras")
    assert set(read) == {layer.name for layer in model.layers if layer.weights}
    for layer in model.layers:
        for actual, original in zip(layer.get_weights(), read.get(layer.name, []), strict=True):
            np.testing.assert_array_equal(actual, original)


# --- torchvision -----------------------------------------------------------------------------------------------


def torchvision_state(name):
    """Returns random values under the names and shapes of torchvision's state dict, its head included."""
    rng = np.random.default_rng(3)
    state = {}

    def conv(key, n_in, n_out, size, bias=False):
        state[f"{key}.weight"] = rng.normal(0, (2 / (n_in * size * size)) ** 0.5, (n_out, n_in, size, size))
        if bias:
            state[f"{key}.bias"] = rng.normal(0, 0.1, n_out)

    def norm(key, n):
        state.update({f"{key}.{part}": rng.uniform(0.5, 1.0, n) for part in ("weight", "running_var")})
        state.update({f"{key}.{part}": rng.normal(0, 0.1, n) for part in ("bias", "running_mean")})
        state[f"{key}.num_batches_tracked"] = np.array(7)

    if name == "vgg13":
        for index, n_in, n_out in zip((0, 2, 5, 7, 10, 12, 15, 17, 20, 22), _VGG[:-1], _VGG[1:], strict=True):
            conv(f"features.{index}", n_in, n_out, 3, bias=True)
    else:
        conv("conv1", 3, 64, 7)
        norm("bn1", 64)
        n_in = 64
        for stage, depth in enumerate({"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}[name], start=1):
            n = 32 * 2**stage
            for block in range(depth):
                key = f"layer{stage}.{block}"
                conv(f"{key}.conv1", n_in, n, 3)
                norm(f"{key}.bn1", n)
                conv(f"{key}.conv2", n, n, 3)
                norm(f"{key}.bn2", n)
                if n_in != n:
                    conv(f"{key}.downsample.0", n_in, n, 1)
                    norm(f"{key}.downsample.1", n)
                n_in = n
        state["fc.weight"] = rng.normal(size=(1000, 512))
    return {key: value.astype(np.int64 if value.shape == () else np.float32) for key, value in state.items()}


_VGG = (3, 64, 64, 128, 128, 256, 256, 512, 512, 512, 512)


def torchvision_features(name, state, x):
    """Returns the features [channels, h, w] of a picture [3, h, w], in numpy from the papers."""

    def conv(x, key, stride=1, pad=1):
        kernel = state[f"{key}.weight"]
        padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape[2:], (1, 2))[:, ::stride, ::stride]
        return np.tensordot(kernel, windows, ((1, 2, 3), (0, 3, 4)))

    def norm(x, key):
        scale, shift, mean, variance = (
            state[f"{key}.{part}"][:, None, None] for part in ("weight", "bias", "running_mean", "running_var")
        )
        return scale * (x - mean) / np.sqrt(variance + 1e-5) + shift

    def pooled(x, size, stride, pad=0):
        padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad)), constant_values=-np.inf)
        windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), (1, 2))[:, ::stride, ::stride]
        return windows.max((3, 4))

    if name == "vgg13":
        for index in (0, 2, 5, 7, 10, 12, 15, 17, 20, 22):
            key = f"features.{index}"
            x = np.maximum(conv(x, key) + state[f"{key}.bias"][:, None, None], 0)
            x = pooled(x, 2, 2) if index in (2, 7, 12, 17, 22) else x
        return x
    x = pooled(np.maximum(norm(conv(x, "conv1", 2, 3), "bn1"), 0), 3, 2, 1)
    for key in dict.fromkeys(key.rsplit(".", 2)[0] for key in state if ".conv1." in key):
        stride = 2 if f"{key}.downsample.0.weight" in state else 1
        y = np.maximum(norm(conv(x, f"{key}.conv1", stride), f"{key}.bn1"), 0)
        y = norm(conv(y, f"{key}.conv2"), f"{key}.bn2")
        shortcut = x if stride == 1 else norm(conv(x, f"{key}.downsample.0", 2, 0), f"{key}.downsample.1")
        x = np.maximum(y + shortcut, 0)
    return x


def write_safetensors(path, state):
    pytest.importorskip("safetensors.numpy").save_file(state, path)
    return path


def features_of(name, path, x):
    """Returns our features [batch, h, w, channels] of grey pictures [batch, h, w] with the weights of a file."""
    model = build_model(name, frames=x.shape[1], n_bins=x.shape[2], n_outputs=4, dtype="float32")
    result = transplant(model, find_weights(ModelSection(name=name, weights=str(path))))
    assert result.skipped == {"logits": "a new head"}
    return np.asarray(keras.Model(model.input, model.get_layer("positions").input)(x, training=False))


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "vgg13"])
def test_torchvision_weights_give_the_same_features(name, tmp_path):
    """Of a grey picture, by the formulas of the papers on torchvision's tensors, whatever else the file holds."""
    pytest.importorskip("safetensors.numpy")
    state = torchvision_state(name)
    path = write_safetensors(tmp_path / "weights.safetensors", state)
    x = np.random.default_rng(0).normal(size=(1, 64, 45)).astype(np.float32)
    expected = torchvision_features(name, state, np.repeat(x, 3, axis=0).astype(np.float64))
    found = features_of(name, path, x)[0].transpose(2, 0, 1)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


# In a process of its own: TensorFlow and PyTorch in one may crash.
_TORCHVISION = """
import sys, numpy as np, torch, torchvision, safetensors.torch
name, folder = sys.argv[1:]
torch.manual_seed(0)
network = getattr(torchvision.models, name)(weights=None).eval()
for module in network.modules():
    if isinstance(module, torch.nn.BatchNorm2d):
        torch.nn.init.uniform_(module.running_var, 0.5, 1.0)
        torch.nn.init.normal_(module.running_mean, 0.0, 0.1)
backbone = network.features if name.startswith("vgg") else torch.nn.Sequential(*list(network.children())[:-2])
safetensors.torch.save_file(network.state_dict(), f"{folder}/weights.safetensors")
x = torch.randn(2, 96, 80)
with torch.no_grad():
    features = backbone(x[:, None].repeat(1, 3, 1, 1))
np.savez(f"{folder}/features.npz", x=x.numpy(), features=features.numpy())
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnet34", "vgg13"])
def test_torchvision_itself_gives_the_same_features(name, tmp_path):
    """Of a grey picture, by torchvision's own forward pass, in the environment of the benchmarks."""
    pytest.importorskip("safetensors")
    python = os.environ.get("TFMUSIC_TORCH_PYTHON", sys.executable)
    if subprocess.run([python, "-c", "import torchvision, safetensors"], capture_output=True).returncode:
        pytest.skip(f"no torchvision and safetensors in {python}; TFMUSIC_TORCH_PYTHON names a Python that has them")
    subprocess.run([python, "-c", _TORCHVISION, name, str(tmp_path)], check=True)
    with np.load(tmp_path / "features.npz") as made:
        x, expected = made["x"], made["features"]
    found = features_of(name, tmp_path / "weights.safetensors", x).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_errors_of_torchvision_files(tmp_path):
    """A missing tensor, another shape, another network, no such format: one line that names file and key."""
    pytest.importorskip("safetensors.numpy")
    state, path = torchvision_state("resnet18"), tmp_path / "bad.safetensors"
    missing = {key: value for key, value in state.items() if key != "layer2.0.downsample.1.running_var"}
    write_safetensors(path, missing)
    with pytest.raises(RunError, match=r"bad\.safetensors: .*no tensor layer2\.0\.downsample\.1\.running_var"):
        torchvision_weights("resnet18", path)
    write_safetensors(path, state | {"layer4.1.conv2.weight": np.zeros((512, 512, 1, 3), np.float32)})
    with pytest.raises(RunError, match=r"bad\.safetensors: layer4\.1\.conv2\.weight .*shape \[512, 512, 1, 3\]"):
        torchvision_weights("resnet18", path)
    with pytest.raises(RunError, match=r"torchvision's vgg13\. Received: no tensor features\.0\.weight"):
        torchvision_weights("vgg13", path)
    for content in (b"", b"\x80\x04K\x01.", b"\xff" * 100):
        path.write_bytes(content)
        with pytest.raises(RunError, match=r"bad\.safetensors: must be a \.safetensors file"):
            torchvision_weights("resnet18", path)
    with pytest.raises(ConfigError, match=r"resnet18, resnet34, vgg13, .*Received: model\.name=crnn"):
        check_torchvision("crnn")
