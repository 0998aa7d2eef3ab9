"""One contract for all builders, and the published parameter counts."""

import keras
import numpy as np
import pytest

from tfmusic.models import BUILDERS, build_model

MEAN, VARIANCE = np.linspace(50, 150, 64), np.linspace(100, 900, 64)


def small(name, **changes):
    fields = {"frames": 100, "n_bins": 64, "n_outputs": 3, "mean": MEAN, "variance": VARIANCE, "width": 4}
    return build_model(name, **(fields | changes))


def n_trainable(model):
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


@pytest.mark.parametrize(
    ("name", "frames", "n_bins", "n_outputs", "count"),
    [
        ("cnn2d", 1200, 128, 4, 6_536_836),  # the AI Rush baseline
        ("resnet18", 224, 224, 1000, 11_689_512 - 2 * 64 * 49),  # torchvision, less two input channels
        ("resnet34", 224, 224, 1000, 21_797_672 - 2 * 64 * 49),
    ],
)
def test_published_parameter_counts(name, frames, n_bins, n_outputs, count):
    """Trainable parameters equal the original's."""
    assert n_trainable(build_model(name, frames=frames, n_bins=n_bins, n_outputs=n_outputs)) == count


def test_crnn_parameter_count():
    """Choi's network with 50 outputs: 395,186 with moving averages, 15 steps into the recurrent layers."""
    model = build_model("crnn", frames=1366, n_bins=96, n_outputs=50)
    assert model.count_params() == 395_186
    assert model.get_layer("steps").output.shape == (None, 15, 128)
    assert model.get_layer("pad_time").padding == ((37, 37), (0, 0))


def test_cnn2d_leaves_one_position_at_the_baselines_input():
    """At 1200 x 128 the head pools over a single position, as the baseline has no pooling there."""
    model = build_model("cnn2d", frames=1200, n_bins=128, n_outputs=4)
    assert model.get_layer("block5_pool").output.shape[1:3] == (1, 1)


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("frames", [1, 31, 100])
@pytest.mark.parametrize("n_outputs", [1, 100])
def test_codes_in_logits_out(name, frames, n_outputs):
    """Any length and number of outputs; uint8 in, float32 out, not squashed."""
    model = small(name, frames=frames, n_outputs=n_outputs)
    assert model.input.dtype == "uint8"
    logits = model(np.full((2, frames, 64), 255, np.uint8))
    assert logits.shape == (2, n_outputs)
    assert logits.dtype == "float32"
    assert np.isfinite(np.asarray(logits)).all()


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("pooling", [None, "average", "max", "attention"])
def test_save_and_load_keep_the_output(name, pooling, tmp_path):
    """A saved and loaded model gives the same logits."""
    model = small(name, pooling=pooling, dropout=0.5)
    codes = np.random.default_rng(0).integers(0, 256, (4, 100, 64), np.uint8)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras", safe_mode=True)
    np.testing.assert_array_equal(np.asarray(loaded(codes)), np.asarray(model(codes)))


@pytest.mark.parametrize("name", BUILDERS)
def test_examples_do_not_see_each_other(name):
    """In inference a batch gives what its examples give alone."""
    model = small(name)
    codes = np.random.default_rng(0).integers(0, 256, (5, 100, 64), np.uint8)
    alone = np.concatenate([np.asarray(model(codes[i : i + 1], training=False)) for i in range(5)])
    np.testing.assert_allclose(np.asarray(model(codes, training=False)), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
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
    codes = np.random.default_rng(0).integers(0, 256, (6, 100, 64), np.uint8)
    targets = np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1, 2]]
    losses = [float(model.train_on_batch(codes, targets)) for _ in range(12)]
    assert np.mean(losses[-3:]) < losses[0]


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
