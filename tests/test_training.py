"""Training: folds, resume, errors, what a run folder holds."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from functools import partial
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import SMALL_MODEL, fit_small
from tests.kill import hashes
from tfmusic.cli import main
from tfmusic.config.sections import TrainingSection
from tfmusic.core.files import CHECKSUMS_NAME
from tfmusic.core.rundir import RunDir
from tfmusic.records.manifest import Manifest
from tfmusic.training.callbacks import StepWatch
from tfmusic.training.checks import choose_folds
from tfmusic.training.optimizer import current_rate, make_loss, make_optimizer, make_schedule
from tfmusic.training.trainer import TrainingProgress, averaged_weights, resumable

ROOT = Path(__file__).parents[1]


def weights_of(run):
    return keras.saving.load_model(RunDir(run).checkpoint("last"), compile=False).get_weights()


def tiny_model():
    inputs = keras.Input((4,))
    return keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Dropout(0.5)(inputs)))


def test_run_folder_is_complete(trained):
    """Config, environment, contract, log, metrics, event files, checkpoints, calibration."""
    run = RunDir(trained)
    for path in (run.config, run.environment, run.contract, run.log, run.calibration, run.records, run.state):
        assert path.is_file(), path
    assert run.checkpoint("best").is_file()
    assert run.checkpoint("last").is_file()
    assert len(list(run.tensorboard.glob("events*"))) == 1
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert all(0 <= line["validation"] <= 1 for line in lines)
    assert "epoch   3/3" in run.log.read_text()
    assert not list(trained.rglob("*.tmp*"))


@pytest.mark.slow
def test_killed_training_resumes_to_the_same_weights(records, trained, tmp_path, capsys):
    """Killed with -9 after an epoch and resumed: the same weights and history as undisturbed, optimizer included."""
    out = tmp_path / "run"
    code = f"""
from pathlib import Path
from tests.conftest import SMALL_MODEL, fit_small
fit_small("q2", Path({str(records)!r}), Path({str(out)!r}), "training.epochs=3")
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        while not RunDir(out).state.is_file():
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
    assert not RunDir(out).calibration.is_file()
    assert main(["evaluate", str(out)]) == 2
    assert f"Finish it with tfmusic fit {out}/config.yaml --resume --out {out}" in capsys.readouterr().err
    assert main(["fit", "q2", "--resume", "--out", str(out), "--records", str(records)]) == 0
    for mine, theirs in zip(weights_of(out), weights_of(trained), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    histories = [
        [json.loads(line) | {"seconds": 0, "input_wait": 0} for line in RunDir(path).metrics.read_text().splitlines()]
        for path in (out, trained)
    ]
    assert histories[0] == histories[1]
    assert not list(out.rglob("*.tmp*"))


@pytest.mark.slow
def test_same_seed_same_weights(records, trained, tmp_path):
    """Training is repeatable on a CPU, and another seed gives another model."""
    assert fit_small("q2", records, tmp_path / "a", "training.epochs=3") == 0
    assert fit_small("q2", records, tmp_path / "b", "training.epochs=1", "training.seed=1") == 0
    same = [np.array_equal(x, y) for x, y in zip(weights_of(tmp_path / "a"), weights_of(trained), strict=True)]
    other = [np.array_equal(x, y) for x, y in zip(weights_of(tmp_path / "b"), weights_of(trained), strict=True)]
    assert all(same)
    assert not all(other)


@pytest.mark.slow
@pytest.mark.parametrize("task", [pytest.param("q1", marks=pytest.mark.torture), "q3"])
def test_one_label_tasks_end_to_end(music, tmp_path, task, capsys):
    """q1 and q3: build, fit with everything switched on, evaluate, predict, score."""
    assert main(["build-records", task, "--data", str(music), "--out", str(tmp_path / "records")]) == 0
    switches = (
        "training.epochs=2", "training.class_weights=balanced", "training.ema_momentum=0.9", "augment.policy=SM",
        "augment.mixup_alpha=0.2", "training.early_stopping_epochs=1", "input.normalize=global",
        "model.pooling=attention",
    )  # fmt: skip
    assert fit_small(task, tmp_path / "records", tmp_path / "run", *switches) == 0
    assert main(["evaluate", str(tmp_path / "run")]) == 0
    out = tmp_path / "answers.json"
    assert main(["predict", str(tmp_path / "run"), str(music / task / "test"), "--out", str(out)]) == 0
    assert all(isinstance(answer, str) for answer in json.loads(out.read_text(encoding="utf-8")))
    assert main(["score", task, str(out), str(music / "answers" / f"{task}.json")]) == 0
    assert f"{task}: accuracy" in capsys.readouterr().out


@pytest.mark.slow
def test_training_on_all_folds(records, tmp_path, capsys):
    """`training.fold=none`: no validation, a model and a neutral calibration; evaluate asks for other tracks."""
    run = tmp_path / "run"
    assert fit_small("q2", records, run, "training.epochs=1", "training.fold=none", "training.tensorboard=false") == 0
    assert json.loads(RunDir(run).calibration.read_text())["q2"]["window_shift"] == 0.0
    assert not RunDir(run).tensorboard.exists()
    assert main(["evaluate", str(run)]) == 2
    assert "trained on every fold, so pass --split" in capsys.readouterr().err
    assert main(["evaluate", str(run), "--split", "fold1"]) == 0
    assert "TRAINED on 3 of these tracks" in capsys.readouterr().out


@pytest.mark.slow
def test_nan_stops_with_the_step(records, tmp_path, capsys):
    """A loss that is no number ends training with step, epoch and what to do."""
    code = fit_small("q2", records, tmp_path / "run", "training.learning_rate=1e30", "training.optimizer=sgd")
    assert code == 2
    assert "the loss became" in (error := capsys.readouterr().err)
    assert "of epoch 1: lower training.learning_rate" in error


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["record.segment_frames=400"], "record.segment_frames must be 400 as the config says. Received: 313"),
        (["record.dtype=float16"], "record.dtype must be float16"),
        (["record.scale=log10_1p10"], "record.scale must be log10_1p10 as the config says. Received: db"),
        (["feature.n_fft=512"], "feature must be"),
        (["task=q1"], "task must be q1 as the config says. Received: q2"),
        (["model.name=resnet99"], "model.name must be one of cnn1d, cnn2d"),
        (["training.loss=cross_entropy"], "training.loss must be auto or binary_cross_entropy or focal"),
        (["training.class_weights=balanced"], "class_weights=balanced is for one label a track"),
    ],
)
def test_config_and_records_must_go_together(records, tmp_path, capsys, overrides, message):
    """Records of another contract than the config says are refused before anything is written."""
    assert fit_small("q2", records, tmp_path / "run", *overrides) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_damaged_shard_is_named_before_training(records, tmp_path, capsys):
    """A flipped byte in a shard is found when training starts."""
    shutil.copytree(records, tmp_path / "records")
    shard = Manifest.read(tmp_path / "records").shard_paths("fold2")[0]
    raw = bytearray(shard.read_bytes())
    raw[-100] ^= 1
    shard.write_bytes(raw)
    assert fit_small("q2", tmp_path / "records", tmp_path / "run") == 2
    assert f"{shard.name}: damaged" in capsys.readouterr().err


def test_existing_run_and_resume_errors(records, trained, tmp_path, capsys):
    """An existing run stays unless told; resume wants a run, and the config it began with."""
    assert fit_small("q2", records, trained) == 2
    assert "exists already" in capsys.readouterr().err
    assert fit_small("q2", records, tmp_path / "none", flags=("--resume",)) == 2
    assert "nothing to resume" in capsys.readouterr().err
    assert fit_small("q2", records, trained, "training.seed=5", flags=("--resume",)) == 2
    assert "must be resumed with the config it began with" in capsys.readouterr().err


def test_an_interrupt_between_trainings_prints_how_to_go_on(tmp_path, capsys):
    """With a finished epoch in some part the run is kept; without one it goes; a finished run stays in any case."""
    for name, file, is_kept in (("folds", "fold0/backup/state.npz", True), ("new", "config.yaml", False)):
        run = RunDir(tmp_path / name)
        path = run.path / file
        path.parent.mkdir(parents=True)
        path.touch()
        with pytest.raises(KeyboardInterrupt), resumable(run):
            raise KeyboardInterrupt
        output = capsys.readouterr().out
        assert run.path.exists() == is_kept
        assert (f"--resume --out {run.path}" in output) == is_kept
    finished = RunDir(tmp_path / "finished")
    finished.path.mkdir()
    finished.calibration.touch()
    with pytest.raises(KeyboardInterrupt), resumable(finished):
        raise KeyboardInterrupt
    assert finished.path.exists()


def test_damaged_state_is_named(records, trained, tmp_path, capsys):
    """A state file that is no state gives one line."""
    shutil.copytree(trained, tmp_path / "run")
    state = RunDir(tmp_path / "run").state
    raw = bytearray(state.read_bytes())
    with zipfile.ZipFile(state) as archive:
        largest = max(archive.infolist(), key=lambda info: info.file_size)
    raw[largest.header_offset + largest.file_size // 2] ^= 1
    state.write_bytes(bytes(raw))
    assert fit_small("q2", records, tmp_path / "run", "training.epochs=4", flags=("--resume",)) == 2
    assert "state.npz" in capsys.readouterr().err  # its checksum differs
    (tmp_path / "run" / CHECKSUMS_NAME).unlink()
    for damaged in (b"not a state", bytes(raw), bytes(raw[:1000])):
        state.write_bytes(damaged)
        assert fit_small("q2", records, tmp_path / "run", "training.epochs=3", flags=("--resume",)) == 2
        assert "must be the saved state of a training" in capsys.readouterr().err


@pytest.mark.slow
def test_resume_leaves_finished_runs_alone(records, trained, tmp_path, capsys, monkeypatch):
    """Without --out a run that has ended is never trained further; one that has not is finished."""
    monkeypatch.chdir(tmp_path)
    done = shutil.copytree(trained, tmp_path / "runs/q2/cnn1d-1")
    before = hashes(done)
    resume = ["fit", "q2", "--records", str(records), "--resume"]
    assert main([*resume, "training.epochs=9"]) == 2
    assert "Received: 1 that have ended. Leave out --resume" in capsys.readouterr().err
    half = shutil.copytree(trained, tmp_path / "runs/q2/cnn1d-2")
    for name in ("calibration.json", "checksums.json"):
        (half / name).unlink()
    os.utime(done / "config.yaml")  # the last one is not the one
    assert main(resume) == 0
    assert RunDir(half).calibration.is_file()
    assert hashes(done) == before


@pytest.mark.slow
def test_resume_wants_the_same_deal(music, trained, tmp_path, capsys):
    """Records dealt with another seed would train on what validated: refused by resume, config and evaluate."""
    shutil.copytree(trained, tmp_path / "run")
    other = tmp_path / "records"
    assert main(["build-records", "q2", "--data", str(music), "--out", str(other), "data.seed=1"]) == 0
    assert fit_small("q2", other, tmp_path / "new") == 2
    assert "data.seed must be 0 as the config says. Received: 1" in capsys.readouterr().err
    assert main(["evaluate", str(trained), "--records", str(other)]) == 2
    assert "not trained on" in capsys.readouterr().err
    every = [word for k in range(5) for word in ("--split", f"fold{k}")]
    assert main(["evaluate", str(trained), "--records", str(other), *every]) == 0
    trained_on = json.loads((RunDir(trained).evaluation / "report.json").read_text())["tracks_trained_on"]
    assert trained_on == 15
    assert f"TRAINED on {trained_on} of these tracks" in capsys.readouterr().out


@pytest.mark.slow
def test_interrupted_training(records, tmp_path, monkeypatch, capsys):
    """Ctrl-C before an epoch has ended leaves nothing; later it says how to go on."""
    run, step_end, steps = tmp_path / "run", StepWatch.on_train_batch_end, []

    def interrupt_at(n):
        def on_train_batch_end(self, batch, logs=None):
            steps.append(batch)
            if len(steps) == n:
                raise KeyboardInterrupt
            step_end(self, batch, logs)

        steps.clear()
        monkeypatch.setattr(StepWatch, "on_train_batch_end", on_train_batch_end)

    interrupt_at(2)
    assert fit_small("q2", records, run) == 130
    assert "no epoch had ended: nothing is kept" in capsys.readouterr().out
    assert not run.exists()
    interrupt_at(10)  # eight steps an epoch
    assert fit_small("q2", records, run) == 130
    assert f"go on with --resume --out {run}" in capsys.readouterr().out
    monkeypatch.setattr(StepWatch, "on_train_batch_end", step_end)
    command = ["fit", "q2", "--records", str(records), "--out", str(run), "--resume", "training.epochs=2"]
    assert main(command) == 0
    capsys.readouterr()
    before = RunDir(run).checkpoint("last").read_bytes()
    assert main(command) == 0
    assert "finished already, 2 epochs" in capsys.readouterr().out
    assert RunDir(run).checkpoint("last").read_bytes() == before


def interrupted(records, run, *overrides, twice=False):
    """Starts a long training in a process, interrupts it after its first epoch, and returns exit code and output."""
    command = [sys.executable, "-m", "tfmusic", "fit", "q2", "--records", str(records), "--out", str(run)]
    keys = [*SMALL_MODEL, "training.batch_size=8", "training.epochs=2000", "training.tensorboard=false", *overrides]
    # A shell that starts the tests in the background has told them to ignore Ctrl-C, which children inherit.
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    listen = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen([*command, *keys], cwd=ROOT, preexec_fn=listen, **streams) as process:
        while not any(b"epoch   " in line for line in process.stdout):
            assert process.poll() is None, process.stderr.read().decode()
        process.send_signal(signal.SIGINT)
        if twice:
            while b"again stops at once" not in process.stderr.readline():
                pass
            process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=120)
    return process.returncode, output.decode(), errors.decode()


@pytest.mark.slow
def test_ctrl_c_ends_after_the_epoch(records, tmp_path, capsys):
    """The run is complete after one Ctrl-C: it is evaluated, exported, and trained further with --resume."""
    run = tmp_path / "run"
    code, output, errors = interrupted(records, run)
    assert code == 0
    assert "Ctrl-C again stops at once" in errors
    n_epochs = len(RunDir(run).metrics.read_text().splitlines())
    assert f"ended by hand after epoch {n_epochs} of 2000" in output
    assert main(["evaluate", str(run), "--records", str(records)]) == 0
    assert main(["export", str(run), "--out", str(tmp_path / "export")]) == 0
    more = ["--resume", f"training.epochs={n_epochs + 1}"]
    assert main(["fit", "q2", "--records", str(records), "--out", str(run), *more]) == 0
    assert len(RunDir(run).metrics.read_text().splitlines()) == n_epochs + 1


@pytest.mark.slow
def test_ctrl_c_in_a_cross_validation(records, tmp_path, capsys):
    """It completes the fold in work and leaves the others for --resume; a second Ctrl-C stops at once."""
    run = tmp_path / "run"
    code, output, _ = interrupted(records, run, "training.fold=all")
    assert code == 130
    assert "ended by hand after epoch" in output
    assert f"go on with --resume --out {run}" in output
    assert [path.name for path in sorted(run.iterdir()) if path.is_dir()] == ["fold0"]
    assert main(["evaluate", str(run / "fold0"), "--records", str(records)]) == 0
    assert main(["evaluate", str(run), "--records", str(records)]) == 2
    assert f"{run}: must be a run folder with a trained model" in capsys.readouterr().err
    twice = tmp_path / "twice"
    code, output, _ = interrupted(records, twice, twice=True)
    assert code == 130
    assert f"go on with --resume --out {twice}" in output
    assert not RunDir(twice).calibration.exists()


@pytest.mark.slow
def test_going_on_after_the_end(records, trained, tmp_path, capsys):
    """A finished run goes on for more epochs; the report of the shorter training is removed, and the user reads so."""
    run = shutil.copytree(trained, tmp_path / "run")
    assert main(["evaluate", str(run), "--records", str(records)]) == 0
    without_metadata = shutil.copytree(RunDir(run).evaluation, run / "evaluation-without-metadata")
    capsys.readouterr()
    assert main(["fit", "q2", "--records", str(records), "--out", str(run), "--resume", "training.epochs=4"]) == 0
    error = capsys.readouterr().err
    assert f"{run}/evaluation: removed" in error
    assert "model.width" not in error
    assert not RunDir(run).evaluation.exists()
    assert not without_metadata.exists()
    assert len(RunDir(run).metrics.read_text().splitlines()) == 4
    assert "epochs: 4" in RunDir(run).config.read_text()


@pytest.mark.slow
def test_early_stopping_and_the_best_epoch(records, tmp_path, capsys):
    """Without progress training ends after the patience; `best` is the model of the best epoch, `last` of the last."""
    run = tmp_path / "run"
    switches = ("training.epochs=30", "training.early_stopping_epochs=2", "training.learning_rate=1e-7")
    assert fit_small("q2", records, run, *switches) == 0
    lines = [json.loads(line) for line in RunDir(run).metrics.read_text().splitlines()]
    values = [line["validation"] for line in lines]
    assert len(lines) == int(np.argmax(values)) + 3 < 30
    command = ["fit", "q2", "--records", str(records), "--out", str(run), "--resume"]
    capsys.readouterr()
    assert main(command) == 0
    assert f"finished already, {len(lines)} epochs" in capsys.readouterr().out
    assert main(["evaluate", str(run)]) == 0
    report = json.loads((RunDir(run).evaluation / "report.json").read_text(encoding="utf-8"))
    assert report["value"] == pytest.approx(max(values), abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("monitor", "metric"), [("macro_f1", "macro-F1"), ("roc_auc", "ROC-AUC"), ("pr_auc", "PR-AUC")]
)
def test_monitor_is_what_evaluate_reports(records, tmp_path, capsys, monitor, metric):
    """`best` is the epoch with the best of the metric that `training.monitor` names; evaluation of it says the same."""
    run = tmp_path / "run"
    assert fit_small("q2", records, run, "training.epochs=3", f"training.monitor={monitor}") == 0
    lines = [json.loads(line) for line in RunDir(run).metrics.read_text().splitlines()]
    assert {line["metric"] for line in lines} == {monitor}
    assert f"val {monitor} " in capsys.readouterr().out
    assert main(["evaluate", str(run)]) == 0
    report = json.loads((RunDir(run).evaluation / "report.json").read_text(encoding="utf-8"))
    assert report["metrics"][metric][0] == pytest.approx(max(line["validation"] for line in lines), abs=1e-6)


def test_monitor_of_other_labels_is_refused(records, tmp_path, capsys):
    """Accuracy is for one label a track, micro-F1 for several; one line says what else there is."""
    assert fit_small("q2", records, tmp_path / "run", "training.monitor=accuracy") == 2
    assert "training.monitor=accuracy is for one label a track" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "switch",
    [
        "training.precision=mixed_bfloat16",
        pytest.param("training.precision=mixed_float16", marks=pytest.mark.torture),
        "training.jit=true",
    ],
)
def test_precision_and_jit_switches(records, tmp_path, switch):
    """Mixed precision and XLA train, evaluate and export to float32 answers."""
    run = tmp_path / "run"
    assert fit_small("q2", records, run, "training.epochs=1", "training.ema_momentum=0.5", switch) == 0
    assert main(["evaluate", str(run)]) == 0
    assert main(["export", str(run)]) == 0
    assert keras.mixed_precision.global_policy().name == "float32"


def test_overwrite_checks_before_it_deletes(records, trained, tmp_path, capsys):
    """A run is not lost to a config that cannot train, and only runs are replaced."""
    shutil.copytree(trained, tmp_path / "run")
    assert fit_small("q2", records, tmp_path / "run", "model.name=cnn81", flags=("--overwrite",)) == 2
    assert RunDir(tmp_path / "run").checkpoint("best").is_file()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious").write_text("x")
    assert fit_small("q2", records, tmp_path / "other", flags=("--overwrite",)) == 2
    assert "--overwrite replaces only run folders" in capsys.readouterr().err
    assert (tmp_path / "other" / "precious").is_file()


def test_interrupted_overwrite_spares_the_old_run(records, trained, tmp_path, monkeypatch):
    """Ctrl-C before the old run is replaced, here while shards are checked, leaves it whole."""
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    shutil.rmtree(run / "backup")  # a user may have made room

    def interrupt(self, splits):
        raise KeyboardInterrupt

    monkeypatch.setattr(Manifest, "verify", interrupt)
    assert fit_small("q2", records, run, flags=("--overwrite",)) == 130
    assert RunDir(run).checkpoint("best").is_file()


def test_dry_run_checks_everything(records, tmp_path, capsys):
    """`--dry-run` finds what training would find."""
    assert fit_small("q2", records, tmp_path / "run", "model.name=cnn81", flags=("--dry-run",)) == 2
    assert "model.name must be one of" in capsys.readouterr().err


def test_dry_run_finds_a_damaged_shard(records, tmp_path, capsys):
    """Of the folds that would be used, and of no other."""
    shutil.copytree(records, tmp_path / "records")
    shard = next((tmp_path / "records").glob("*-fold1.tfrecord-*"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    assert fit_small("q2", tmp_path / "records", tmp_path / "run", "training.fold=0", flags=("--dry-run",)) == 2
    assert shard.name in capsys.readouterr().err


def test_dry_run_writes_nothing(records, tmp_path, capsys):
    """`--dry-run` says on which folds it would train."""
    assert fit_small("q2", records, tmp_path / "run", "training.fold=2", flags=("--dry-run",)) == 0
    out = capsys.readouterr().out
    assert "would train on fold0, fold1, fold3, fold4, validate on fold2" in out
    assert not (tmp_path / "run").exists()


def test_folds(records):
    """One fold validates, the others train; `none` trains on all."""
    manifest = Manifest.read(records)
    assert choose_folds(manifest, 1).validation == ("fold1",)
    assert choose_folds(manifest, 1).training == ("fold0", "fold2", "fold3", "fold4")
    assert choose_folds(manifest, "none").training == ("fold0", "fold1", "fold2", "fold3", "fold4")


def test_schedule_warms_up_and_ends_at_zero():
    """Linear to the peak over the warm-up, then a cosine down to 0 at the last step."""
    schedule = make_schedule(TrainingSection(learning_rate=0.1), 100, 20)
    rates = [float(schedule(step)) for step in range(101)]
    np.testing.assert_allclose(rates[:21], np.linspace(0, 0.1, 21), atol=1e-6)
    np.testing.assert_allclose(rates[20:], 0.05 * (1 + np.cos(np.pi * np.linspace(0, 1, 81))), atol=1e-6)
    assert make_schedule(TrainingSection(schedule="constant"), 100, 20) == 1e-3


def test_plateau_lowers_the_rate_as_keras_does():
    """The rate after every epoch is that of Keras's ReduceLROnPlateau, for scores that rise, stay and fall."""
    scores = np.round(np.random.default_rng(2).uniform(0.3, 0.6, 60), 2)
    section = TrainingSection(schedule="plateau", plateau_epochs=3, plateau_factor=0.5, learning_rate=0.01)
    theirs, mine = tiny_model(), tiny_model()
    theirs.compile(keras.optimizers.SGD(0.01), "mse")
    reducer = keras.callbacks.ReduceLROnPlateau("score", factor=0.5, patience=3, mode="max")
    reducer.set_model(theirs)
    reducer.on_train_begin()
    progress, optimizer = TrainingProgress(), make_optimizer(section, mine, 10, 0)
    for epoch, score in enumerate(scores):
        reducer.on_epoch_end(epoch, {"score": score})
        progress.follow_plateau(float(score), section)
        progress.set_rate(optimizer, section)
        assert current_rate(optimizer) == pytest.approx(current_rate(theirs.optimizer), rel=1e-6)
    assert current_rate(optimizer) < 0.002


@pytest.mark.slow
def test_plateau_resumes_to_the_same_weights(records, tmp_path):
    """Resumed in the middle of a plateau and after a fall of the rate: the same weights and rates as undisturbed."""
    keys = ("training.schedule=plateau", "training.plateau_epochs=1")
    rates = []
    for name, lengths in (("whole", (5,)), ("parts", (2, 4, 5))):
        for n, epochs in enumerate(lengths):
            flags = ("--resume",) if n else ()
            assert fit_small("q2", records, tmp_path / name, *keys, f"training.epochs={epochs}", flags=flags) == 0
        lines = RunDir(tmp_path / name).metrics.read_text().splitlines()
        rates.append([json.loads(line)["learning_rate"] for line in lines])
    assert rates[0] == rates[1]
    assert rates[0][-1] < 0.5 * rates[0][0]
    for mine, theirs in zip(weights_of(tmp_path / "parts"), weights_of(tmp_path / "whole"), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_weight_decay_spares_vectors(name):
    """With a gradient of 0, matrices shrink and biases stay."""
    model = tiny_model()
    model.set_weights([np.ones((4, 2)), np.ones(2)])
    section = TrainingSection(optimizer=name, weight_decay=0.1, schedule="constant", learning_rate=0.1)
    optimizer = make_optimizer(section, model, 10, 0)
    optimizer.apply_gradients(zip([tf.zeros((4, 2)), tf.zeros(2)], model.trainable_variables, strict=True))
    kernel, bias = model.get_weights()
    np.testing.assert_allclose(kernel, 0.99, atol=1e-6)
    np.testing.assert_array_equal(bias, 1)


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_no_weight_decay_is_none_at_all(name):
    """With weight_decay 0 and a gradient of 0 nothing moves; AdamW alone would decay by its own default."""
    model = tiny_model()
    before = model.get_weights()
    section = TrainingSection(optimizer=name, weight_decay=0.0, schedule="constant", learning_rate=0.1)
    optimizer = make_optimizer(section, model, 10, 0)
    optimizer.apply_gradients(zip([tf.zeros((4, 2)), tf.zeros(2)], model.trainable_variables, strict=True))
    for mine, theirs in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
def test_averaged_weights_are_put_back(precision):
    """Inside, the model has the average computed by hand; after that its own weights, also after an error."""
    keras.mixed_precision.set_global_policy(precision)
    try:
        inputs = keras.Input((4,))
        model = keras.Model(inputs, keras.layers.Dense(2)(inputs))
    finally:
        keras.mixed_precision.set_global_policy("float32")
    section = TrainingSection(
        optimizer="sgd", ema_momentum=0.5, schedule="constant", learning_rate=0.1, weight_decay=0.0, momentum=0.0
    )
    model.compile(make_optimizer(section, model, 10, 0), "mse", jit_compile=False)
    model.set_weights([np.ones((4, 2)), np.ones(2)])
    epochs = []
    record = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: epochs.append(model.get_weights()))
    model.fit(np.ones((2, 4)), np.zeros((2, 2)), epochs=5, verbose=0, callbacks=[record])
    raw = epochs[-1]
    model.set_weights(raw)  # Keras leaves the average there when fit returns
    average = epochs[0][1]
    for weights in epochs[1:]:
        average = 0.5 * average + 0.5 * weights[1]
    with averaged_weights(model):
        inside = model.get_weights()[1]
    if precision == "float32":
        np.testing.assert_allclose(inside, average, rtol=1e-6)
    else:  # loss scaling skips the first steps: the average lies between the start and the last weights
        assert (raw[1] < inside).all()
        assert (inside <= 1).all()
    assert not np.allclose(inside, raw[1], rtol=1e-2)
    with pytest.raises(RuntimeError, match="inside"), averaged_weights(model):
        assert not np.array_equal(model.get_weights()[0], raw[0])
        raise RuntimeError("inside")
    np.testing.assert_array_equal(model.get_weights()[0], raw[0])


@pytest.mark.parametrize(
    ("name", "kind"), [("cross_entropy", "single"), ("binary_cross_entropy", "multi"), ("focal", "multi")]
)
def test_losses_are_on_logits(name, kind):
    """Sure and right costs almost nothing, sure and wrong a lot."""
    loss = make_loss(TrainingSection(loss=name), kind)
    targets = np.array([[1.0, 0.0]], np.float32)
    assert float(loss(targets, np.array([[9.0, -9.0]], np.float32))) < 1e-3
    assert float(loss(targets, np.array([[-9.0, 9.0]], np.float32))) > 1
