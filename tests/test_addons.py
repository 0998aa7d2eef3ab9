"""TensorFlow Addons on its own stack; on the other stack, what is said where it is asked for."""

import importlib.util
import os
import subprocess
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import stacks
from tests.conftest import fit_small
from tfmusic.cli import main
from tfmusic.config.loading import find_config, load_config
from tfmusic.config.sections import TrainingSection
from tfmusic.core import addons
from tfmusic.core.rundir import RunDir
from tfmusic.errors import ConfigError, RunError
from tfmusic.inputs import augment
from tfmusic.models.surgery import load_saved
from tfmusic.scoring.metrics import micro_f1, per_label
from tfmusic.training.checks import check_config
from tfmusic.training.optimizer import averages, build, current_rate, make_optimizer, state_variables

ROOT = Path(__file__).parents[1]
IS_THERE = importlib.util.find_spec("tensorflow_addons") is not None
needs_addons = pytest.mark.skipif(not IS_THERE, reason="wants the addons stack: make test-addons")
OPTIMIZERS = ["addons/lookahead_radam", "addons/lamb", "addons/novograd", "addons/swa"]
_MIXED = ("training.precision=mixed_float16", "training.ema_momentum=0.0")
OTHER_STACK = os.environ.get("TFMUSIC_OTHER_PYTHON")  # an interpreter of the other stack


def tiny_model():
    inputs = keras.Input((4,))
    return keras.Model(inputs, keras.layers.Dense(2)(inputs))


@pytest.mark.skipif(IS_THERE, reason="on the default stack")
@pytest.mark.parametrize(
    ("override", "built_in"),
    [("training.optimizer=addons/lamb", "adamw"), ("augment.time_warp=addons/sparse_image_warp", "gather")],
)
def test_without_addons_one_line_says_what_to_do(records, tmp_path, capsys, override, built_in):
    """What is missing, how to get it, and what is there instead; nothing is written."""
    assert fit_small("q2", records, tmp_path / "run", override) == 2
    error = capsys.readouterr().err
    assert f"{override} needs TensorFlow Addons" in error
    assert ".ci/constraints-addons.txt" in error
    assert f"Built in: {built_in}" in error
    assert not (tmp_path / "run").exists()


def test_addons_need_float32(monkeypatch):
    """Their interface does not go with the scaled loss of mixed precision."""
    monkeypatch.setattr("tfmusic.training.checks.check_addons", lambda *_: None)
    with pytest.raises(ConfigError, match=r"training\.precision must be float32 .*addons/lamb.*mixed_float16"):
        check_config(load_config(find_config("q2"), ["training.optimizer=addons/lamb", *_MIXED]))


def test_the_scale_of_the_loss_is_part_of_the_state():
    """A resumed training under mixed_float16 goes on with the scale that it had found, on either Keras."""
    model = tiny_model()
    optimizer = keras.mixed_precision.LossScaleOptimizer(keras.optimizers.Adam(), initial_scale=512.0)
    build(optimizer, model.trainable_variables)
    assert 512.0 in [float(np.asarray(v)) for v in state_variables(optimizer) if not tuple(v.shape)]


@needs_addons
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_learn_and_come_back(name):
    """The loss falls, and a copy that is given the state of another takes the same next steps."""
    section = TrainingSection(optimizer=name, learning_rate=0.02, weight_decay=0.0)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(32, 4)).astype("float32"), rng.normal(size=(32, 2)).astype("float32")
    models = []
    for _ in range(2):
        model = tiny_model()
        model.compile(make_optimizer(section, model, 60, 5), "mse", jit_compile=False)
        build(model.optimizer, model.trainable_variables)
        models.append(model)
    first, second = models
    losses = [first.train_on_batch(x, y) for _ in range(40)]
    assert losses[-1] < losses[0]
    assert 0 < current_rate(first.optimizer) < 0.02
    mine, theirs = ([*model.variables, *state_variables(model.optimizer)] for model in models)
    for variable, value in zip(theirs, mine, strict=True):
        variable.assign(value)
    for _ in range(8):  # more than Lookahead's period
        first.train_on_batch(x, y)
        second.train_on_batch(x, y)
    for one, other in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


@needs_addons
def test_swa_averages_the_second_half():
    """Nothing before its begin; then the mean of the weights at its steps."""
    section = TrainingSection(
        optimizer="addons/swa", learning_rate=0.1, schedule="constant", weight_decay=0.0, momentum=0.0
    )
    model = tiny_model()
    model.compile(make_optimizer(section, model, 8, 0), "mse", jit_compile=False)
    history = []
    for _ in range(8):
        model.train_on_batch(np.ones((2, 4)), np.zeros((2, 2)))
        history.append(model.get_weights()[0])
        if len(history) <= 4:
            assert averages(model.optimizer, model.trainable_variables) == []
    average = averages(model.optimizer, model.trainable_variables)[0].numpy()
    np.testing.assert_allclose(average, np.mean(history[4:], axis=0), rtol=1e-5)


@needs_addons
@pytest.mark.slow
@pytest.mark.parametrize("name", ["addons/lookahead_radam", "addons/swa"])
def test_a_run_with_addons(records, tmp_path, name):
    """A training with the original's warp ends in a run that resumes; what is not for these optimizers is refused."""
    warp = ("augment.time_warp=addons/sparse_image_warp", "augment.time_warp_frames=9")
    switches = (f"training.optimizer={name}", *warp, "training.ema_momentum=0.0")
    assert fit_small("q2", records, tmp_path / "run", *switches, "training.epochs=1") == 0
    assert fit_small("q2", records, tmp_path / "run", *switches, "training.epochs=2", flags=("--resume",)) == 0
    assert RunDir(tmp_path / "run").calibration.is_file()
    assert fit_small("q2", records, tmp_path / "other", *switches, "training.ema_momentum=0.9") == 2


@needs_addons
def test_the_originals_warp_bends_time_as_ours():
    """On a ramp over time the spline puts the point where the gather puts it, within 2 frames; dtype and ends stay."""
    ramp = np.broadcast_to(np.arange(200, dtype=np.uint8)[None, :, None], (4, 200, 16)).copy()
    places = augment.warp_points(4, 200, 30, np.random.default_rng(3))
    warped = augment.image_warp(tf.constant(ramp), *map(tf.constant, places)).numpy()
    ours = np.take_along_axis(ramp, augment.warp_rows(200, *places)[:, :, None], 1)
    point, moved = (place[:, 0] for place in places)
    assert warped.dtype == np.uint8
    assert np.abs(moved - point).max() > 2
    for row in range(4):
        assert abs(int(warped[row, moved[row], 8]) - int(point[row])) <= 2
        assert abs(int(ours[row, moved[row], 8]) - int(point[row])) <= 2
    assert np.abs(warped[:, 0, 8].astype(int) - 0).max() <= 2
    assert np.abs(warped[:, -1, 8].astype(int) - 199).max() <= 2


@needs_addons
def test_f1_agrees_with_addons():
    """Micro-F1 and the F1 of every label are those of tfa.metrics.F1Score."""
    f1_score = addons._addons().metrics.F1Score
    rng = np.random.default_rng(1)
    targets, predicted = rng.random((50, 7)) < 0.3, rng.random((50, 7)) < 0.4
    for average, ours in (("micro", micro_f1(predicted, targets)), (None, per_label(predicted, targets)["f1"])):
        metric = f1_score(num_classes=7, average=average, threshold=0.5)
        metric.update_state(targets.astype("float32"), predicted.astype("float32"))
        np.testing.assert_allclose(metric.result().numpy(), ours, atol=1e-6)


@needs_addons
def test_focal_loss_agrees_with_addons():
    """Keras' focal loss, the kind that training.loss=focal is, is tfa's with a mean over the tags for the sum."""
    focal = addons._addons().losses.SigmoidFocalCrossEntropy
    rng = np.random.default_rng(2)
    logits, targets = rng.normal(size=(5, 7)).astype("float32"), (rng.random((5, 7)) < 0.3).astype("float32")
    theirs = focal(from_logits=True, alpha=0.25, gamma=2.0)(targets, logits).numpy()  # [batch], summed over tags
    ours = keras.losses.BinaryFocalCrossentropy(from_logits=True, apply_class_balancing=True, alpha=0.25, gamma=2.0)
    assert float(ours(targets, logits)) * 7 == pytest.approx(float(theirs.mean()), rel=1e-4)


def on_other_stack(*arguments):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "KERAS_BACKEND": "tensorflow"}
    subprocess.run([OTHER_STACK, "-m", *map(str, arguments)], cwd=ROOT, env=environment, check=True)


needs_both = pytest.mark.skipif(not OTHER_STACK, reason="TFMUSIC_OTHER_PYTHON names no interpreter of the other stack")


@pytest.mark.slow
@needs_both
def test_weights_move_between_the_stacks(tmp_path):
    """A model that one stack saved gives its weights by name to the other, both ways, and the same logits to 1e-5."""
    for name in ("theirs", "ours"):
        (tmp_path / name).mkdir()
    on_other_stack("tests.stacks", "save", tmp_path / "theirs")
    stacks.load(tmp_path / "theirs")
    stacks.save(tmp_path / "ours")
    on_other_stack("tests.stacks", "load", tmp_path / "ours")
    with pytest.raises(RunError, match=r"Keras \d.* saved it.*model\.init_from"):  # a whole model has one stack
        load_saved(tmp_path / "theirs/model.keras")


@pytest.mark.slow
@needs_both
def test_a_saved_model_answers_on_the_other_stack(trained, music, tmp_path):
    """What one stack exports answers for every track on the other as it does at home, to the last digit written."""
    tracks, answers = music / "q2" / "test", [tmp_path / "ours.json", tmp_path / "theirs.json"]
    assert main(["export", str(trained), "--out", str(tmp_path / "export")]) == 0
    assert main(["predict", str(tmp_path / "export"), str(tracks), "--out", str(answers[0])]) == 0
    on_other_stack("tfmusic", "predict", tmp_path / "export", tracks, "--out", answers[1])
    assert answers[0].read_bytes() == answers[1].read_bytes()


def test_one_module_imports_addons():
    """Only tfmusic/addons.py imports TensorFlow Addons."""
    files = [path for path in (ROOT / "tfmusic").rglob("*.py") if "import tensorflow_addons" in path.read_text("utf-8")]
    assert [path.name for path in files] == ["addons.py"]
