"""Starting from a backbone that was trained before: stages, rates, resume, and what is said about it."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import fit_small
from tests.test_pretrained import checkpoint  # noqa: F401 - a fixture
from tfmusic.cli import main
from tfmusic.config.loading import load_config
from tfmusic.config.sections import Config, TrainingSection
from tfmusic.core.rundir import RunDir
from tfmusic.records.manifest import Manifest
from tfmusic.training.checks import check
from tfmusic.training.job import Job, Stage, stage_of, stages
from tfmusic.training.optimizer import make_optimizer
from tfmusic.training.trainer import TrainingProgress

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def q1_records(music, tmp_path_factory):
    """Folder of the q1 records of the made-up music."""
    out = tmp_path_factory.mktemp("records") / "q1"
    assert main(["build-records", "q1", "--data", str(music), "--out", str(out), "--workers", "1"]) == 0
    return out


def weights_of(run, which="last"):
    model = keras.saving.load_model(RunDir(run).checkpoint(which), compile=False)
    return {layer.name: layer.get_weights() for layer in model.layers if layer.weights}


def same(mine, theirs):
    return all(np.array_equal(x, y) for x, y in zip(mine, theirs, strict=True))


def prepare(config, records):
    """Returns a training that is ready to start its first stage."""
    manifest = Manifest.read(records)
    contract, folds = check(config, manifest, resume=False)
    return Job.prepare(config, manifest, RunDir(Path("nowhere")), contract=contract, folds=folds)


def test_stages_cover_all_epochs():
    """One stage without freezing; else frozen epochs first; never more than there are."""
    assert stages(TrainingSection(epochs=5)) == (Stage(0, 5, False),)
    both = TrainingSection(epochs=5, freeze_epochs=2)
    assert stages(both) == (Stage(0, 2, True), Stage(2, 5, False))
    assert [stage_of(both, epoch).is_frozen for epoch in range(5)] == [True, True, False, False, False]
    assert stages(TrainingSection(epochs=2, freeze_epochs=9)) == (Stage(0, 2, True),)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_slow_layers_take_smaller_steps(name, weight_decay):
    """With the same gradient, the slow kernel moves, and decays, by the factor of what the other moves."""
    inputs = keras.Input((3,))
    slow, fast = keras.layers.Dense(3, name="slow"), keras.layers.Dense(3, name="fast")
    model = keras.Model(inputs, fast(slow(inputs)))
    model.set_weights([np.ones(weight.shape) for weight in model.weights])
    section = TrainingSection(
        optimizer=name, learning_rate=0.01, schedule="constant", weight_decay=weight_decay, momentum=0.0,
        backbone_rate_factor=0.25,
    )  # fmt: skip
    optimizer = make_optimizer(section, model, 10, 0, slow.trainable_variables)
    gradients = [tf.ones(weight.shape) for weight in model.weights]
    optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
    for i in (0, 1):  # kernel, which decays, and bias
        moved = [1 - layer.get_weights()[i] for layer in (slow, fast)]
        np.testing.assert_allclose(moved[0], 0.25 * moved[1], rtol=1e-2)


@pytest.mark.slow
def test_the_rate_factor_holds_inside_fit(trained, records):
    """In the compiled training step, too, the backbone moves less than it would at the full rate."""
    moved = {}
    for factor in (1.0, 0.01):
        config = Config.model_validate(
            {
                "task": "q2",
                "data": {"question": "q2"},
                "input": {"frames": 64, "hop_frames": 32},
                "model": {"name": "cnn1d", "width": 4, "init_from": str(trained)},
                "training": {
                    "batch_size": 8, "backbone_rate_factor": factor, "optimizer": "sgd", "momentum": 0.0,
                    "weight_decay": 0.0, "schedule": "constant",
                },
            }
        )  # fmt: skip
        job = prepare(config, records)
        job.start_stage(stages(config.training)[0])
        codes = np.random.default_rng(0).integers(0, 256, (8, 64, 128), np.uint8)
        before = job.model.get_layer("block1_conv").get_weights()[0]
        job.training_model.train_on_batch(codes, np.eye(8, len(job.contract.labels), dtype=np.float32))
        moved[factor] = job.model.get_layer("block1_conv").get_weights()[0] - before
    np.testing.assert_allclose(moved[0.01], 0.01 * moved[1.0], atol=1e-3 * np.abs(moved[1.0]).max())


@pytest.mark.slow
def test_backbone_of_another_run_frozen_then_free(trained, q1_records, tmp_path, capsys):
    """q2 to q1: while frozen the backbone stays bit for bit, statistics included; the head learns; then all learn."""
    source = weights_of(trained, "best")
    transfer = (f"model.init_from={trained}", "training.freeze_epochs=1", "training.fold=1")
    assert fit_small("q1", q1_records, tmp_path / "frozen", *transfer, "training.epochs=1") == 0
    out = capsys.readouterr().out
    assert f"backbone from {trained}: 5 layers loaded, 1 not" in out
    assert "not loaded, a new head: logits" in out
    assert "of the validation tracks have trained that backbone" in out
    frozen = weights_of(tmp_path / "frozen")
    assert all(same(frozen[name], source[name]) for name in source if name != "logits")
    assert frozen["logits"][0].shape == (100, 4)
    assert fit_small("q1", q1_records, tmp_path / "freed", *transfer, "training.epochs=2") == 0
    freed = weights_of(tmp_path / "freed")
    assert not any(same(freed[name], source[name]) for name in ("block1_conv", "block1_bn", "block2_conv"))
    known = json.loads(RunDir(tmp_path / "freed").pretrained.read_text())
    assert len(known["loaded"]) == 5
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "freed")]) == 0
    assert "that trained the backbone or the embeddings that the model began with" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("killed_after", [1, pytest.param(2, marks=pytest.mark.torture)])
def test_killed_in_either_stage_and_resumed(trained, q1_records, tmp_path, killed_after):
    """Killed with -9 at the end of the frozen stage or in the next, and resumed without the source: same weights."""
    source = tmp_path / "source"
    shutil.copytree(trained, source)
    transfer = (f"model.init_from={source}", "training.freeze_epochs=1", "training.epochs=3")
    assert fit_small("q1", q1_records, tmp_path / "whole", *transfer) == 0
    out = tmp_path / "run"
    code = f"from tests.conftest import fit_small; fit_small('q1', {str(q1_records)!r}, {str(out)!r}, *{transfer!r})"
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        while not RunDir(out).log.is_file() or f"epoch   {killed_after}/3" not in RunDir(out).log.read_text():
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
    shutil.rmtree(source)
    assert main(["fit", "q1", "--resume", "--out", str(out), "--records", str(q1_records)]) == 0
    mine, theirs = weights_of(out), weights_of(tmp_path / "whole")
    assert all(same(mine[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["training.freeze_epochs=2"], "training.freeze_epochs is for a pretrained backbone: set model.weights"),
        (["model.weights=imagenet", "model.init_from=runs/q2/x"], "model.weights and model.init_from must not both"),
        (["model.weights=imagenet"], "ImageNet weights exist for vgg16, vgg19, resnet50, resnet101"),
        (["model.weights=some.txt"], "model.weights must be none, imagenet, a .keras file"),
        (["model.weights=gone.keras"], "gone.keras: no such file"),
        (["model.weights=imagenet", "model.name=vgg16"], "model.width must be 64 or null with ImageNet weights"),
        (["model.weights=gone.h5", "model.name=vgg16", "model.width=64"], "gone.h5: no such file"),
        (
            ["model.name=musicnn", "model.weights=musicnn.whl"],
            "musicnn.whl: no such file; model.weights must be a file of weights",
        ),
        (
            ["model.name=musicnn", "model.weights=tests"],
            "model.weights=tests: the weights of musicnn need feature.n_fft=512 (not 1024), feature.hop_length=256",
        ),
        (
            ["model.name=vgg16", "model.width=64", "model.weights=imagenet", "input.normalize=none"],
            "input.normalize must be per_bin or global with ImageNet weights",
        ),
        (["model.init_from=nowhere"], "nowhere: no such folder; it must be a run folder"),
    ],
)
def test_errors_before_anything_is_written(records, tmp_path, monkeypatch, capsys, overrides, message):
    """A backbone that is not to be had stops the command with one line."""
    monkeypatch.chdir(ROOT)
    assert fit_small("q2", records, tmp_path / "run", *overrides) == 2
    error = capsys.readouterr().err
    assert message in error
    assert not (tmp_path / "run").exists()


def test_a_backbone_of_another_network_or_feature(trained, records, tmp_path, capsys):
    """No layer in common, or trained on another spectrogram: refused."""
    assert fit_small("q2", records, tmp_path / "run", f"model.init_from={trained}", "model.name=resnet18") == 2
    error = capsys.readouterr().err
    assert "must contain the backbone of model.name=resnet18, model.width=4. Received: no layer of that name" in error
    other = tmp_path / "other"
    shutil.copytree(trained, other)
    contract = json.loads((other / "contract.json").read_text())
    contract["feature"]["n_fft"] = 512
    (other / "contract.json").write_text(json.dumps(contract))
    (other / "checksums.json").unlink()
    assert fit_small("q2", records, tmp_path / "run", f"model.init_from={other}") == 2
    assert "the backbone must be trained with feature" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_keras_file_is_a_source_too(trained, records, tmp_path, capsys):
    """`model.weights` takes the checkpoint of a run, and knows whose it is, or a copy, and says that it does not."""
    path = RunDir(trained).checkpoint("best")
    transfer = ("training.epochs=1", "training.fold=1")
    assert fit_small("q2", records, tmp_path / "run", f"model.weights={path}", *transfer) == 0
    out = capsys.readouterr().out
    assert f"backbone from {path}: 5 layers loaded, 1 not" in out
    assert "of the validation tracks have trained that backbone" in out
    shutil.copy(path, tmp_path / "copy.keras")
    assert fit_small("q2", records, tmp_path / "other", f"model.weights={tmp_path / 'copy.keras'}", *transfer) == 0
    assert "which tracks have trained it is not known" in capsys.readouterr().out


@pytest.mark.slow
def test_a_backbone_of_other_values_is_refused_by_dry_run_too(trained, music, tmp_path, capsys):
    """Another scale, or another normalisation, than the backbone has learned on."""
    records = tmp_path / "records"
    scale = "record.scale=log10_1p10"
    assert main(["build-records", "q1", "--data", str(music), "--out", str(records), scale]) == 0
    for flags in ((), ("--dry-run",)):
        assert fit_small("q1", records, tmp_path / "run", scale, f"model.init_from={trained}", flags=flags) == 2
        error = capsys.readouterr().err
        assert "the backbone must be trained with scale log10_1p10. Received: db" in error


def test_early_stopping_waits_for_the_backbone_to_be_free():
    """Epochs with a frozen backbone do not count against patience."""
    training = {"epochs": 12, "freeze_epochs": 6, "early_stopping_epochs": 2}
    fields = {"task": "q2", "data": {"question": "q2"}, "model": {"weights": "imagenet"}, "training": training}
    config = Config.model_validate(fields)
    ended = [TrainingProgress(epoch=epoch, best_epoch=1).has_ended(config) for epoch in range(1, 10)]
    assert ended == [False] * 7 + [True] * 2


@pytest.mark.slow
def test_float16_scales_its_loss(records, tmp_path):
    """mixed_float16 trains with a scaled loss, which resume restores; the average still starts at the weights."""
    half = ("training.precision=mixed_float16", "training.ema_momentum=0.9")
    assert fit_small("q2", records, tmp_path / "whole", *half, "training.epochs=2") == 0
    config = load_config(RunDir(tmp_path / "whole").config)
    job = prepare(config, records)
    job.start_stage(stages(config.training)[0])
    assert isinstance(job.training_model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert fit_small("q2", records, tmp_path / "run", *half, "training.epochs=1") == 0
    resume = ["fit", "q2", "--resume", "--out", str(tmp_path / "run"), "--records", str(records)]
    assert main([*resume, "training.epochs=2"]) == 0
    assert len(RunDir(tmp_path / "run").metrics.read_text().splitlines()) == 2


@pytest.mark.slow
def test_musicnn_fine_tuned_on_its_own_spectrogram(music, checkpoint, tmp_path, capsys):  # noqa: F811
    """On 96 bins at hop 256 the published weights start where they stood: the same vector for the same sound."""
    shutil.copytree(music / "q1", tmp_path / "q1")
    for path in (tmp_path / "q1").rglob("*.npy"):
        np.save(path, np.load(path)[:, :96])
    keys = (
        "feature.n_bins=96", "feature.n_fft=512", "feature.hop_length=256", "record.scale=log10_1p10000",
        "record.dtype=float32",
    )  # fmt: skip
    build = ["build-records", "q1", "--data", str(tmp_path), "--out", str(tmp_path / "records")]
    assert main([*build, *keys]) == 0
    weights = (
        "model.name=musicnn", f"model.weights={checkpoint[0]}", "input.normalize=none", "model.width=64",
        "training.fold=0", "metadata.fields=[]",
    )  # fmt: skip
    run = ["fit", "q1", "--records", str(tmp_path / "records"), "--out", str(tmp_path / "run"), *keys, *weights]
    assert (
        main([*run, "training.epochs=1", "training.freeze_epochs=1", "input.frames=187", "input.hop_frames=187"]) == 0
    )
    assert "20 layers loaded, 1 not" in capsys.readouterr().out
    mels = str(tmp_path / "q1" / "test")
    for source, options in (("musicnn", ["--weights", str(checkpoint[0])]), (str(tmp_path / "run"), [])):
        assert main(["embed", source, mels, "--out", str(tmp_path / f"{Path(source).name}.npz"), *options]) == 0
    model = keras.saving.load_model(RunDir(tmp_path / "run").checkpoint("best"), compile=False)
    after_pool = keras.Model(model.get_layer("pool").output, model.get_layer("logits").input)
    with np.load(tmp_path / "musicnn.npz") as theirs, np.load(tmp_path / "run.npz") as ours:
        for name in theirs["track_ids"]:
            expected = np.asarray(after_pool(theirs[f"segments/{name}"], training=False))
            np.testing.assert_allclose(ours[f"segments/{name}"], expected, rtol=1e-3, atol=1e-3)
