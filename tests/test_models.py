"""One contract for all builders; published parameter counts; what the table of models says."""

import functools
import json
import os
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmusic.config.loading import find_config, load_config
from tfmusic.core.contract import Contract
from tfmusic.core.feature import Feature
from tfmusic.core.scale import Scale
from tfmusic.export.savedmodel import TrackModel, signatures
from tfmusic.inference.model_folder import load_predict_fn
from tfmusic.models import BUILDERS, build_model, models_with
from tfmusic.models.blocks import squeeze_and_excite
from tfmusic.models.cost import multiply_adds, receptive_field
from tfmusic.models.ops import IS_KERAS_3
from tfmusic.models.surgery import fuse_batch_norm
from tfmusic.pretrained.transplant import layer_weights, transplant
from tfmusic.scoring.track_scorer import TrackScorer
from tfmusic.training import devices
from tfmusic.training.devices import for_this_device

MEAN, VARIANCE = np.linspace(50, 150, 64), np.linspace(100, 900, 64)
DEEP = {"resnet50", "resnet101"}  # slow to build and compile, so left out where their parts are covered elsewhere
FAMILIES = ("cnn1d", "cnn2d", "vgg13", "resnet18", "crnn", "convgru1d", "shortchunk", "musicnn", "mlp")


def one_a_family(names=tuple(BUILDERS)):
    """Returns parameters for models; those that only repeat the layers of another are left to `make torture`."""
    return [name if name in FAMILIES else pytest.param(name, marks=pytest.mark.torture) for name in names]


def small(name, **changes):
    fields = {"frames": 100, "n_bins": 64, "n_outputs": 3, "mean": MEAN, "variance": VARIANCE, "width": 4}
    return build_model(name, **(fields | changes))


@pytest.fixture(scope="module")
def built():
    """Returns a small model by name, built once for all tests that only read it."""

    @functools.cache
    def build(name):
        keras.utils.set_random_seed(0)
        return small(name, dropout=0.5)

    return build


def some_codes(n=4, frames=100, n_bins=64):
    return np.random.default_rng(0).integers(0, 256, (n, frames, n_bins), np.uint8)


def count(weights):
    return sum(int(np.prod(weight.shape)) for weight in weights)


def without_head(model):
    return model.count_params() - count(model.get_layer("logits").weights)


@pytest.mark.parametrize(
    ("name", "frames", "n_bins", "n_outputs", "trainable"),
    [
        ("cnn2d", 1200, 128, 4, 6_536_836),  # the AI Rush baseline
        ("resnet18", 224, 224, 1000, 11_689_512 - 2 * 64 * 49),  # torchvision, less two input channels
        ("resnet34", 224, 224, 1000, 21_797_672 - 2 * 64 * 49),
        ("shortchunk", 231, 128, 50, 3_687_348),  # the authors' networks, layer by layer; 3.69 million
        ("shortchunk_res", 231, 128, 50, 12_104_244),  # and 12.1 million
        ("musicnn", 187, 96, 50, 787_159),  # "787k" in the authors' table, and the sum of their checkpoint's shapes
        ("cnn1d", 125, 128, 4, 8 * 128 * 32 + 8 * 32 * 32 + 2 * 2 * 32 + 33 * 100 + 101 * 4),  # by hand
        ("mlp", 1, 1506, 4, 1507 * 256 + 257 * 4),
    ],
)
def test_published_parameter_counts(name, frames, n_bins, n_outputs, trainable):
    """Trainable parameters equal the original's."""
    model = build_model(name, frames=frames, n_bins=n_bins, n_outputs=n_outputs)
    assert count(model.trainable_weights) == trainable


@pytest.mark.parametrize(
    ("name", "reference"),
    [("vgg16", "VGG16"), ("vgg19", "VGG19"), ("resnet50", "ResNet50"), ("resnet101", "ResNet101")],
)
def test_parameter_counts_of_keras_applications(name, reference):
    """Before the head as many as Keras Applications, less the two input channels that a spectrogram lacks."""
    original = getattr(keras.applications, reference)(include_top=False, weights=None)
    kernel = next(layer for layer in original.layers if layer.weights).weights[0]
    two_channels = 2 * count([kernel]) // 3
    assert without_head(build_model(name, frames=64, n_bins=64, n_outputs=9)) == original.count_params() - two_channels


def test_vgg13_parameter_count():
    """torchvision's features: 9,404,992, less two input channels."""
    assert without_head(build_model("vgg13", frames=64, n_bins=64, n_outputs=9)) == 9_404_992 - 2 * 9 * 64


def test_crnn_parameter_count():
    """Choi's network with 50 outputs: 395,186 with moving averages, 15 steps into the recurrent layers."""
    model = build_model("crnn", frames=1366, n_bins=96, n_outputs=50)
    assert model.count_params() == 395_186
    assert model.get_layer("steps").output.shape == (None, 15, 128)
    assert model.get_layer("pad_time").padding == ((37, 37), (0, 0))


def test_crnn_with_the_gru_of_gpus():
    """It has a second bias of three gates in each of its GRUs of 32 units, and weights of the two kinds do not mix."""
    fast = build_model("crnn", frames=1366, n_bins=96, n_outputs=50, reset_after=True)
    assert fast.count_params() == 395_186 + 2 * 3 * 32
    slow = build_model("crnn", frames=1366, n_bins=96, n_outputs=50)
    for target, source, kind in ((slow, fast, "true"), (fast, slow, "false")):
        result = transplant(target, layer_weights(source))
        assert [name for name, reason in result.skipped.items() if f"set model.reset_after={kind}" in reason] == [
            "gru1", "gru2",
        ]  # fmt: skip


def test_crnn_takes_the_fast_gru_where_there_is_a_gpu(monkeypatch):
    """Only where the config leaves it open: then the config of the run says which it is."""
    config = load_config(find_config("q1"), ["model.name=crnn", "model.width=64"])
    assert for_this_device(config).model.reset_after is False
    monkeypatch.setattr(devices, "has_gpu", lambda: True)
    assert for_this_device(config).model.reset_after is True
    slow = load_config(find_config("q1"), ["model.name=crnn", "model.width=64", "model.reset_after=false"])
    assert for_this_device(slow).model.reset_after is False
    other = load_config(find_config("q1"))
    assert for_this_device(other) is other


def test_finalists_network():
    """SE-ResNet34 of 16 to 128 channels, pools that leave 27 steps of one bin of 7,000 frames, GRU of 128 units."""
    config = load_config(find_config("q1_q2-finalist"))
    assert (config.record.segment_frames, config.input.frames, config.task) == (7000, 7000, ["q1", "q2"])
    model = build_model("resnet_gru", frames=7000, n_bins=128, n_outputs=4, **config.model.builder_options)
    assert model.get_layer("steps").output.shape == (None, 27, 128)
    sizes = ((3500, 64, 16), (1750, 32, 16), (437, 16, 32), (109, 4, 64), (27, 1, 128))
    pools = ["stem_pool", *(f"stage{i}_pool" for i in (1, 2, 3, 4))]
    assert tuple(model.get_layer(name).output.shape[1:] for name in pools) == sizes
    expected, n_in = 49 * 16 + 4 * 16, 16
    for depth, n in zip((3, 4, 6, 3), (16, 32, 64, 128), strict=True):
        hidden = n // 4
        for _ in range(depth):
            expected += 9 * n_in * n + 9 * n * n + 2 * 4 * n  # two convolutions and their normalisations
            expected += n * hidden + hidden + hidden * n + n  # squeeze and excitation
            expected += n_in * n + 4 * n if n_in != n else 0  # shortcut
            n_in = n
    expected += 3 * (128 * 128 + 128 * 128 + 2 * 128) + 129 * 4
    assert model.count_params() == expected
    assert f"{expected:,}" in BUILDERS["resnet_gru"].__doc__
    small = build_model("resnet_gru", frames=64, n_bins=64, n_outputs=3, width=4, squeeze=2, downsampling="pools")
    codes = np.random.default_rng(0).integers(0, 256, (2, 64, 64), np.uint8)
    np.testing.assert_allclose(fuse_batch_norm(small)(codes), small(codes, training=False), atol=1e-4)


def test_squeeze_and_excitation_by_hand():
    """Each channel is scaled by a sigmoid of two dense layers on the means of all channels."""
    x = np.random.default_rng(0).normal(size=(2, 5, 3, 8)).astype(np.float32)
    inputs = keras.Input(x.shape[1:])
    model = keras.Model(inputs, squeeze_and_excite(inputs, 4, name="a"))
    reduce, reduce_bias, excite, excite_bias = model.get_weights()
    assert (reduce.shape, excite.shape) == ((8, 2), (2, 8))
    hidden = np.maximum(x.mean((1, 2)) @ reduce + reduce_bias, 0)
    scale = 1 / (1 + np.exp(-(hidden @ excite + excite_bias)))
    np.testing.assert_allclose(model(x), x * scale[:, None, None, :], rtol=1e-5, atol=1e-6)


def test_cnn2d_leaves_one_position_at_the_baselines_input():
    """At 1200 x 128 the head pools over a single position, as the baseline has no pooling there."""
    model = build_model("cnn2d", frames=1200, n_bins=128, n_outputs=4)
    assert model.get_layer("block5_pool").output.shape[1:3] == (1, 1)


@pytest.mark.parametrize("name", BUILDERS)
def test_docstring_states_the_facts(name):
    """Every builder cites its source and states input, parameters and the receptive field that its layers have."""
    text = BUILDERS[name].__doc__
    module = sys.modules[BUILDERS[name].__module__].__doc__
    assert re.search(r"\d{4}|embeddings", text + module)
    assert re.search(r"Input\s+\[batch, frames, n_bins, 1\]|n_dims", text)
    assert re.search(r"[\d,]{6,}\s+(trainable\s+)?parameters|[\d,]{6,}\s*parameters", text)
    stated = re.search(r"Receptive field:\s+(the whole input|([\d,]+)\s+frames?)", text)
    field = receptive_field(build_model(name, frames=1400, n_bins=128, n_outputs=4, width=4))
    assert stated[1] == "the whole input" if field is None else int(stated[2].replace(",", "")) == field


@pytest.mark.parametrize("name", [name for name in BUILDERS if name not in {*DEEP, "resnet34", "mlp", "descriptors"}])
def test_receptive_field_is_what_a_position_reacts_to(name):
    """The frames that move the middle position of the last feature map span the stated field, or all of them."""
    field = receptive_field(small(name, frames=1400))
    frames = 200 if field is None else 1400  # over more steps a recurrent layer's gradient falls below float32
    model = build_model(name, frames=frames, n_bins=16, n_outputs=2, width=4, dtype="float32", pooling="average")
    for layer in model.layers:  # residual blocks begin as the identity, which sees less
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.gamma.assign(np.ones(layer.gamma.shape))
    backbone = keras.Model(model.get_layer("image").output, model.get_layer("positions").input)
    x = tf.constant(np.random.default_rng(0).normal(size=(1, frames, 16, 1)).astype(np.float32))
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(x)
        features = backbone(x, training=False)
        middle = tf.reduce_sum(features[:, features.shape[1] // 2])
    moved = np.flatnonzero(np.abs(tape.gradient(middle, x).numpy()).sum((0, 2, 3)))
    span = moved[-1] - moved[0] + 1
    if field is None:
        assert span > 0.5 * frames  # a step knows what came before it
    else:
        assert span <= field
        assert span > 0.5 * field  # rectifiers and maxima pass on some of what is in reach


@pytest.mark.parametrize("name", [name for name in BUILDERS if name not in DEEP])
def test_multiply_adds_are_those_of_the_graph(built, name):
    """The count read from the layers is that of the convolutions and matrix products in TensorFlow's graph."""
    model = built(name)
    if receptive_field(model) is None:
        pytest.skip("a recurrent layer is a loop, whose turns a graph does not show, as are products of vectors")
    graph = tf.function(lambda x: model(x, training=False)).get_concrete_function(tf.TensorSpec((1, 100, 64), tf.uint8))
    in_graph = sum(
        int(operation.outputs[0].shape.num_elements()) * per_output
        for operation in graph.graph.get_operations()
        if (per_output := _per_output(operation)) is not None
    )
    assert in_graph == multiply_adds(model)


def _per_output(operation):
    """Returns multiply-adds for one number of the output of a convolution or matrix product, None for others."""
    if operation.type == "Conv2D":
        return int(np.prod(operation.inputs[1].shape[:3]))
    if operation.type == "MatMul":
        return int(operation.inputs[1].shape[0])
    return None


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("frames", [1, 31, 100])
def test_codes_in_logits_out(built, name, frames):
    """Any length and number of outputs; uint8 in, float32 out, not squashed."""
    n_outputs = {1: 1, 31: 100, 100: 3}[frames]
    model = built(name) if frames == 100 else small(name, frames=frames, n_outputs=n_outputs)
    assert model.input.dtype == "uint8"
    logits = model(np.full((2, frames, 64), 255, np.uint8))
    assert logits.shape == (2, n_outputs)
    assert logits.dtype == "float32"
    assert np.isfinite(np.asarray(logits)).all()


@pytest.mark.parametrize("name", BUILDERS)
def test_save_and_load_keep_the_output(built, name, tmp_path):
    """A saved and loaded model gives the same logits."""
    model = built(name)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras", safe_mode=True)
    np.testing.assert_array_equal(np.asarray(loaded(some_codes())), np.asarray(model(some_codes())))


@pytest.mark.parametrize("name", one_a_family(models_with("pooling")))
@pytest.mark.parametrize("pooling", ["average", "max", "attention"])
def test_every_pooling_with_every_backbone(name, pooling):
    """Each builder takes each pooling; attention has its own layers."""
    model = small(name, pooling=pooling)
    assert np.asarray(model(some_codes())).shape == (4, 3)
    has_several = model.get_layer("positions").output.shape[1] > 1  # one position needs no attention
    assert any("attention" in layer.name for layer in model.layers) == (pooling == "attention" and has_several)


@pytest.mark.parametrize("name", BUILDERS)
def test_examples_do_not_see_each_other(built, name):
    """In inference a batch gives what its examples give alone."""
    model = built(name)
    codes = some_codes(5)
    alone = np.concatenate([np.asarray(model(codes[i : i + 1], training=False)) for i in range(5)])
    np.testing.assert_allclose(np.asarray(model(codes, training=False)), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", one_a_family())
def test_heads_of_several_tasks_share_a_backbone(built, name):
    """Logits of the tasks stand side by side, in their order; each task has a last layer of its own."""
    model = small(name, n_outputs={"q1": 4, "q2": 7})
    logits = np.asarray(model(some_codes()))
    parts = [keras.Model(model.input, model.get_layer(f"logits_{task}").output) for task in ("q1", "q2")]
    np.testing.assert_allclose(
        logits, np.concatenate([np.asarray(part(some_codes())) for part in parts], 1), rtol=1e-5, atol=1e-6
    )
    heads = [layer.weights for layer in model.layers if layer.name in ("logits_q1", "logits_q2")]
    assert model.count_params() - sum(map(count, heads)) == without_head(built(name))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "precision"),
    [
        pytest.param(name, precision, marks=[] if name in names else pytest.mark.torture)
        for precision, names in (("float32", FAMILIES), ("mixed_bfloat16", ("cnn2d", "crnn")))
        for name in BUILDERS
    ],
)
def test_training_lowers_the_loss(name, precision):
    """Some steps on one fixed batch lower its loss, in full and in mixed precision."""
    keras.utils.set_random_seed(0)
    keras.mixed_precision.set_global_policy(precision)
    try:
        model = small(name)
    finally:
        keras.mixed_precision.set_global_policy("float32")
    model.compile(
        keras.optimizers.Adam(3e-3), keras.losses.CategoricalCrossentropy(from_logits=True), jit_compile=False
    )
    targets = np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1, 2]]
    losses = [float(model.train_on_batch(some_codes(6), targets)) for _ in range(12)]
    assert np.mean(losses[-3:]) < losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", one_a_family())
def test_export_keeps_the_output(name, tmp_path):
    """A SavedModel answers for a whole track as the module does, for every architecture."""
    model = small(name, frames=40)
    feature, scale = Feature(n_bins=64), Scale("db", -60.0, 30.0)
    contract = Contract("t", "single", ("a", "b", "c"), feature, scale, "uint8", 40, 20)
    module = TrackModel(model, contract, TrackScorer(kind=contract.kind))
    tf.saved_model.save(module, str(tmp_path / "export"), signatures=signatures(module, contract))
    mel = (10 ** np.random.default_rng(0).uniform(-6, 3, (64, 95))).astype(np.float32)
    scores, exported = module(tf.constant(mel)), load_predict_fn(tmp_path / "export")(mel)
    np.testing.assert_allclose(exported["window_scores"], scores["window_scores"].numpy(), atol=1e-6)
    assert exported["window_scores"].shape == (4, 3)


_ON_JAX = """
import json, sys
import keras, numpy as np
assert keras.backend.backend() == "jax"
codes = np.load(sys.argv[1] + "/codes.npy")
losses = {}
for name in json.loads(sys.argv[2]):
    model = keras.saving.load_model(f"{sys.argv[1]}/{name}.keras", safe_mode=True)
    np.save(f"{sys.argv[1]}/{name}.npy", model.predict_on_batch(codes))
from tfmusic.models import build_model
model = build_model("cnn2d", frames=100, n_bins=64, n_outputs=3, width=4)
model.compile(keras.optimizers.Adam(3e-3), keras.losses.CategoricalCrossentropy(from_logits=True))
targets = np.eye(3, dtype="float32")[[0, 1, 2, 0]]
losses = [float(model.train_on_batch(codes, targets)) for _ in range(12)]
assert np.mean(losses[-3:]) < losses[0], losses
"""


@pytest.mark.slow
@pytest.mark.parametrize("names", [FAMILIES, pytest.param(tuple(BUILDERS), marks=pytest.mark.torture)])
def test_jax_gives_the_same_numbers(tmp_path, names):
    """Models that were saved under TensorFlow give the same logits under JAX within 1e-4, and one trains there."""
    np.save(tmp_path / "codes.npy", some_codes())
    expected = {}
    for name in names:
        keras.utils.set_random_seed(1)
        model = small(name)
        model.save(tmp_path / f"{name}.keras")
        expected[name] = np.asarray(model(some_codes(), training=False))
    environment = os.environ | {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", _ON_JAX, str(tmp_path), json.dumps(names)], env=environment, check=True)
    for name, logits in expected.items():
        np.testing.assert_allclose(np.load(tmp_path / f"{name}.npy"), logits, atol=1e-4, rtol=1e-4, err_msg=name)


def test_normalisation_is_that_of_the_statistics():
    """Codes of the mean become 0; one standard deviation becomes 1; a constant bin stays finite."""
    variance = VARIANCE.copy()
    variance[5] = 0.0
    model = small("resnet18", mean=np.round(MEAN), variance=variance)
    values = keras.Model(model.input, model.get_layer("normalise").output)
    at_mean = np.asarray(values(np.broadcast_to(np.round(MEAN).astype(np.uint8), (1, 100, 64))))
    np.testing.assert_allclose(at_mean, 0, atol=1e-5)
    above = np.asarray(values(np.broadcast_to((np.round(MEAN) + 10).astype(np.uint8), (1, 100, 64))))
    np.testing.assert_allclose(above[0, 0, 0], 10 / np.sqrt(VARIANCE[0]), rtol=1e-4)
    assert above[0, 0, 5] == 10


def test_pooling_changes_the_head():
    """Each pooling is another function of the same features, in the recurrent network too."""
    codes = np.random.default_rng(0).integers(0, 256, (2, 300, 64), np.uint8)
    for name in ("crnn", "resnet18"):
        outputs = []
        for pooling in (None, "average", "max"):
            keras.utils.set_random_seed(0)
            outputs.append(np.asarray(small(name, frames=300, pooling=pooling)(codes)))
        assert not np.allclose(outputs[1], outputs[2])
        assert np.allclose(outputs[0], outputs[1]) == (name == "resnet18")


def test_unknown_pooling():
    """A pooling that does not exist is named."""
    with pytest.raises(ValueError, match="pooling must be average, max or attention"):
        small("resnet18", pooling="sum")


needs_keras_3 = pytest.mark.skipif(not IS_KERAS_3, reason="Keras 2 gets its model back")


@needs_keras_3
@pytest.mark.parametrize("name", one_a_family())
def test_folding_normalisations_changes_no_logit(name):
    """Whatever gamma, beta, mean and variance are; convolutions that only a normalisation reads do its work."""
    model = small(name)
    rng = np.random.default_rng(1)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([rng.uniform(0.5, 1.5, weight.shape) for weight in layer.get_weights()])
    folded, codes = fuse_batch_norm(model), some_codes()
    before, after = (np.asarray(network(codes, training=False)) for network in (model, folded))
    assert np.abs(before - after).max() <= 1e-5 * np.abs(before).max()
    left = {
        network: sum("BatchNorm" in type(layer).__name__ for layer in network.layers) for network in (model, folded)
    }
    if name in ("cnn2d", "resnet18", "resnet34"):
        assert left[model] > 0
        assert left[folded] == 0


@pytest.mark.skipif(IS_KERAS_3, reason="Keras 3 folds")
def test_keras_2_gets_its_model_back():
    """It cannot clone a model layer by layer as the folding needs."""
    model = small("cnn2d")
    assert fuse_batch_norm(model) is model


@needs_keras_3
def test_folding_leaves_half_precision_alone_and_reaches_members_of_an_ensemble():
    """Half precision would round otherwise than the run did; an ensemble is a model of models."""
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        half = small("cnn2d")
    finally:
        keras.mixed_precision.set_global_policy("float32")
    assert sum(isinstance(layer, keras.layers.BatchNormalization) for layer in fuse_batch_norm(half).layers) == 5
    member, codes = small("cnn2d"), keras.Input((100, 64), dtype="uint8")
    whole = keras.Model(codes, member(codes) * 2.0)
    nested = [layer for layer in fuse_batch_norm(whole).layers if isinstance(layer, keras.Model)]
    assert not [layer for layer in nested[0].layers if isinstance(layer, keras.layers.BatchNormalization)]
    before, after = (np.asarray(network(some_codes(), training=False)) for network in (whole, fuse_batch_norm(whole)))
    np.testing.assert_allclose(before, after, rtol=1e-4, atol=1e-5)
