"""Cross-validation and ensembles: every track held out once, one run that is the mean, resumed where it stood."""

import json
import shutil

import keras
import numpy as np
import pandas as pd
import pytest

from tests.conftest import SMALL_MODEL, fit_small
from tfmusic.cli import main
from tfmusic.config.loading import find_config, load_config, to_yaml
from tfmusic.core.contract import Contract
from tfmusic.core.rundir import RunDir
from tfmusic.evaluation.evaluate import evaluate, format_report
from tfmusic.evaluation.held_out import fit_scorers_apart, score_held_out
from tfmusic.models import build_model
from tfmusic.models.ensemble import build_ensemble
from tfmusic.records.manifest import Manifest
from tfmusic.scoring.aggregate import blend_weights

THREE = "data.folds=3"  # every fold costs a training


@pytest.fixture(scope="module")
def dealt(music, tmp_path_factory):
    """Folder of the q2 records of the made-up music, dealt into three folds."""
    out = tmp_path_factory.mktemp("records") / "q2"
    assert main(["build-records", "q2", "--data", str(music), "--out", str(out), "--workers", "1", THREE]) == 0
    return out


@pytest.fixture(scope="module")
def crossed(dealt, tmp_path_factory):
    """Run folder of a cross-validation of a small q2 model over the three folds, with its classical baseline."""
    out = tmp_path_factory.mktemp("folds") / "run"
    changes = (THREE, "training.epochs=1", "training.select=last", "evaluation.baseline=true")
    assert fit_small("q2", dealt, out, *changes, flags=("--folds", "3")) == 0
    return out


def members(frames, n_outputs):
    return [build_model("cnn1d", frames=n, n_bins=32, n_outputs=n_outputs, width=4) for n in frames]


def codes(frames, n=3):
    return np.random.default_rng(0).integers(0, 256, (n, frames, 32), np.uint8)


def test_ensemble_is_the_weighted_mean_of_logits(tmp_path):
    """Members of one length; saved and loaded again, and nested in another ensemble."""
    models, x = members((64, 64), 3), codes(64)
    want = 0.3 * models[0].predict_on_batch(x) + 0.7 * models[1].predict_on_batch(x)
    whole = build_ensemble(models, [0.3, 0.7])
    np.testing.assert_allclose(whole.predict_on_batch(x), want, atol=1e-5)
    whole.save(tmp_path / "whole.keras")
    again = keras.saving.load_model(tmp_path / "whole.keras", compile=False, safe_mode=True)
    nested = build_ensemble([again, models[0]], [0.5, 0.5])
    np.testing.assert_allclose(nested.predict_on_batch(x), 0.5 * want + 0.5 * models[0].predict_on_batch(x), atol=1e-5)


def test_a_member_with_a_shorter_window_covers_the_longer_one():
    """Its logits are the mean over evenly spaced windows, the last of which ends with the input."""
    models, x = members((64, 40), 3), codes(64)
    short = (models[1].predict_on_batch(x[:, :40]) + models[1].predict_on_batch(x[:, 24:])) / 2
    want = 0.5 * models[0].predict_on_batch(x) + 0.5 * short
    np.testing.assert_allclose(build_ensemble(models, [0.5, 0.5]).predict_on_batch(x), want, atol=1e-5)


def test_members_share_a_backbone_that_is_the_same(tmp_path):
    """Two heads on one backbone: it is there once, also for two windows; another backbone stays its own."""
    one, two, other = members((40, 40, 64), 3)
    backbone = [layer.name for layer in one.layers[: [layer.name for layer in one.layers].index("pool")]]
    for name in backbone:
        two.get_layer(name).set_weights(one.get_layer(name).get_weights())
    x = codes(64)
    want = [(m.predict_on_batch(x[:, :40]) + m.predict_on_batch(x[:, 24:])) / 2 for m in (one, two)]
    want.append(other.predict_on_batch(x))
    whole = build_ensemble([one, two, other], [0.2, 0.3, 0.5])
    whole.save(tmp_path / "whole.keras")
    again = keras.saving.load_model(tmp_path / "whole.keras", compile=False, safe_mode=True)
    for model in (whole, again):
        got = model.predict_on_batch(x)
        np.testing.assert_allclose(got, np.tensordot([0.2, 0.3, 0.5], want, 1), rtol=1e-5, atol=1e-5)
    alone = sum(model.count_params() for model in (one, two, other))
    assert whole.count_params() == alone - sum(one.get_layer(name).count_params() for name in backbone)
    conv = next(two.get_layer(name) for name in backbone if two.get_layer(name).weights)
    conv.set_weights([value + 1e-6 for value in conv.get_weights()])
    assert build_ensemble([one, two, other], [0.2, 0.3, 0.5]).count_params() == alone


def test_ensemble_of_several_tasks_keeps_their_heads():
    """The layer of each task has its own columns of the mean."""
    models, x = members((64, 64), {"a": 3, "b": 2}), codes(64)
    whole = build_ensemble(models, [0.5, 0.5], tasks=["a", "b"])
    want = (models[0].predict_on_batch(x) + models[1].predict_on_batch(x)) / 2
    np.testing.assert_allclose(whole.predict_on_batch(x), want, atol=1e-5)
    assert whole.get_layer("logits_b").output.shape == (None, 2)


def test_ensemble_needs_two_members_and_a_weight_each():
    """Anything else is a mistake of the caller."""
    with pytest.raises(ValueError, match="2 or more members"):
        build_ensemble(members((64,), 3), [1.0])
    with pytest.raises(ValueError, match="a weight each"):
        build_ensemble(members((64, 64), 3), [1.0])


def test_blend_weights_follow_the_better_member():
    """A member that knows gets the weight, one that guesses next to none; two halves of the truth share it."""
    rng = np.random.default_rng(0)
    targets = np.eye(4, dtype=bool)[rng.integers(0, 4, 300)]
    knows, guesses = 3.0 * targets + rng.normal(0, 1, (300, 4)), rng.normal(0, 1, (300, 4))
    weights = blend_weights([knows, guesses], targets, "single")
    assert weights[0] > 0.8
    assert weights[1] < 0.25 * weights[0]
    other = 3.0 * targets + rng.normal(0, 1, (300, 4))
    shared = blend_weights([knows, other], targets, "single")
    assert 0.5 < shared[0] / shared[1] < 2
    tags = rng.random((300, 4)) < 0.3
    assert blend_weights([4.0 * tags - 2, guesses], tags, "multi")[0] > 1


def test_every_track_is_held_out_once(crossed, dealt):
    """The out-of-fold report has every track of the dealt, each scored by the model of its own fold."""
    manifest, run = Manifest.read(dealt), RunDir(crossed)
    names = [name for name in manifest.splits if name.startswith("fold")]
    table = pd.read_csv(crossed / "evaluation" / "predictions.csv")
    assert sorted(table.iloc[:, 0].astype(str)) == sorted(manifest.track_ids(names))
    for number, fold in enumerate(run.folds()):
        used = json.loads(fold.records.read_text())
        assert used["validation"] == [f"fold{number}"]
        assert not set(used["training_tracks"]) & set(manifest.track_ids([f"fold{number}"]))
    report = json.loads((crossed / "evaluation" / "report.json").read_text())
    assert len(report["folds"]) == 3
    assert report["tracks"] == len(table)


def test_a_cross_validation_is_measured_by_its_classical_baseline(crossed, dealt, tmp_path, capsys):
    """The baseline is a run by itself; `evaluate` says how far the model is ahead of it, on the same tracks."""
    run, manifest = RunDir(crossed), Manifest.read(dealt)
    (report,), (baseline,) = evaluate(run, manifest), evaluate(run.baseline, manifest)
    said = report.report["classical_baseline"]
    assert said["value"] == baseline.report["value"]
    assert said["gain"] == report.report["value"] - baseline.report["value"]
    assert said["interval"][0] < said["gain"] < said["interval"][1]
    assert report.evaluation.compare(report.evaluation)["interval"] == (0.0, 0.0)
    assert "classical_baseline" not in baseline.report
    by_itself = load_config(find_config("q2-descriptors"), [THREE, "data.on_error=skip"])
    trained = load_config(run.baseline.config)
    assert (trained.model, trained.input) == (by_itself.model, by_itself.input)
    assert main(["evaluate", str(crossed), "--split", "fold1", "--out", str(tmp_path / "report")]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "the classical baseline" in printed
    assert "classical baseline" in (tmp_path / "report" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("gain", "low", "note"),
    [(-0.1, -0.2, "BEHIND its classical baseline"), (0.1, -0.1, "within chance"), (0.2, 0.1, "")],
)
def test_a_model_that_is_not_ahead_of_its_classical_baseline_is_named(crossed, gain, low, note):
    """One line of numbers; a note where the baseline is better, or no worse within chance."""
    report = json.loads((crossed / "evaluation" / "report.json").read_text())
    report["classical_baseline"] = {"value": 0.4, "gain": gain, "interval": [low, 0.3]}
    lines = [line for line in format_report(report).splitlines() if "classical baseline" in line]
    assert f"{gain:+.4f}" in lines[0]
    assert [note in line for line in lines[1:]] == ([True] if note else [])


def test_too_many_windows_have_no_classical_baseline(dealt, tmp_path, monkeypatch, capsys):
    """Their descriptors would not fit into memory: one line says so, and the model is trained without."""
    monkeypatch.setattr("tfmusic.training.experiment._MOST_WINDOWS", 20)
    asked = ["fit", "q2", "--records", str(dealt), "--out", str(tmp_path / "run"), "--folds", "3", "--dry-run"]
    assert main([*asked, *SMALL_MODEL, THREE, "evaluation.baseline=true"]) == 0
    said = capsys.readouterr().out
    assert "no classical baseline" in said
    assert "3 models: fold0" in said


@pytest.mark.parametrize("change", ["model.name=descriptors", "training.fold=0", "evaluation.baseline=false"])
def test_what_has_no_classical_baseline(change):
    """A model of descriptors itself, a single fold, and where it is not wanted."""
    assert load_config(find_config("q3"), [change]).baseline() is None
    for name in ("embeddings", "q1_q2"):
        assert load_config(find_config(name)).baseline() is None
    assert load_config(find_config("q1-best")).baseline().ensemble.partners == []


def test_the_run_is_the_mean_of_its_folds(crossed):
    """Its logits are the mean of the logits of the three models."""
    run = RunDir(crossed)
    contract = Contract.load(run.contract)
    x = np.random.default_rng(1).integers(0, 256, (2, contract.frames, contract.n_bins), np.uint8)
    logits = [
        keras.saving.load_model(fold.checkpoint("best"), compile=False).predict_on_batch(x) for fold in run.folds()
    ]
    whole = keras.saving.load_model(run.checkpoint("best"), compile=False).predict_on_batch(x)
    assert len(logits) == 3
    np.testing.assert_allclose(whole, np.mean(logits, axis=0), atol=1e-4)


def test_thresholds_of_a_fold_never_saw_its_tracks(crossed, dealt):
    """The calibration that judges a fold stays the same whatever the labels of that fold are."""
    held_out = score_held_out(RunDir(crossed), Manifest.read(dealt))
    from tfmusic.config.sections import EvaluationSection

    folds = held_out.part("q2")
    before = fit_scorers_apart(EvaluationSection(), "multi", folds)
    object.__setattr__(folds[0], "targets", ~folds[0].targets)
    after = fit_scorers_apart(EvaluationSection(), "multi", folds)
    assert after[0] == before[0]
    assert after[1] != before[1]


def test_a_cross_validated_run_is_used_like_any_other(crossed, music, tmp_path):
    """predict and the exported model agree; evaluate without --split is the out-of-fold report again."""
    assert main(["predict", str(crossed), str(music / "q2" / "test"), "--out", str(tmp_path / "a.json")]) == 0
    assert main(["export", str(crossed), "--out", str(tmp_path / "export")]) == 0
    assert (
        main(["predict", str(tmp_path / "export"), str(music / "q2" / "test"), "--out", str(tmp_path / "b.json")]) == 0
    )
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    before = (crossed / "evaluation" / "report.json").read_bytes()
    assert main(["evaluate", str(crossed)]) == 0
    assert (crossed / "evaluation" / "report.json").read_bytes() == before


@pytest.mark.slow
def test_an_interrupted_cross_validation_goes_on_where_it_stood(crossed, dealt, tmp_path, monkeypatch, capsys):
    """Interrupted before the last fold and resumed: the same weights of the mean as undisturbed."""
    from tfmusic.training import experiment

    out, prepare = tmp_path / "run", experiment.Part.prepare

    def interrupted(part, *arguments, **options):
        if part.run.path.name == "fold2":
            raise KeyboardInterrupt
        return prepare(part, *arguments, **options)

    options = ("training.epochs=1", "training.select=last")
    monkeypatch.setattr(experiment.Part, "prepare", interrupted)
    assert fit_small("q2", dealt, out, THREE, *options, flags=("--folds", "3")) == 130
    assert f"go on with --resume --out {out}" in capsys.readouterr().out
    assert not RunDir(out).calibration.is_file()
    monkeypatch.setattr(experiment.Part, "prepare", prepare)
    assert main(["fit", "q2", "--resume", "--out", str(out), "--records", str(dealt)]) == 0
    mine, theirs = (
        keras.saving.load_model(RunDir(path).checkpoint("best"), compile=False).get_weights() for path in (out, crossed)
    )
    for one, other in zip(mine, theirs, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_ensemble_command(crossed, dealt, music, tmp_path, capsys):
    """Two cross-validations become one, fold by fold; the shorter window counts; export and run agree."""
    other = tmp_path / "other"
    arguments = ["fit", "q2", "--records", str(dealt), "--out", str(other), "--folds", "3", *SMALL_MODEL, THREE]
    short = ["model.name=cnn1d", "input.frames=40", "input.hop_frames=20", "training.batch_size=8", "training.epochs=1"]
    assert main([*arguments, *short]) == 0
    out = tmp_path / "joined"
    assert main(["ensemble", str(crossed), str(other), "--out", str(out)]) == 0
    assert "weight" in capsys.readouterr().out
    assert [run.path.name for run in RunDir(out).folds()] == [f"fold{i}" for i in range(3)]
    assert json.loads((out / "evaluation" / "report.json").read_text())["tracks"] == len(
        Manifest.read(dealt).track_ids([f"fold{i}" for i in range(3)])
    )
    known = [one["weight"] for one in json.loads((out / "fold2" / "ensemble.json").read_text())["members"]]
    assert len(known) == 2
    assert main(["export", str(out)]) == 0
    for model, name in ((out, "a"), (out / "export", "b")):
        assert main(["predict", str(model), str(music / "q2" / "test"), "--out", str(tmp_path / f"{name}.csv")]) == 0
    a, b = (pd.read_csv(tmp_path / f"{name}.csv").select_dtypes("number") for name in "ab")
    np.testing.assert_allclose(a, b, atol=1e-5)
    assert main(["ensemble", str(crossed), str(other), "--out", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err


def test_wrong_ensembles_are_refused(crossed, trained, tmp_path, capsys):
    """One run alone, the same twice, or a plain run with a cross-validation: one line, and nothing is written."""
    wrong = {
        "two different runs or more": [crossed],
        "two different runs": [crossed, crossed],
        "must all be cross-validations of as many folds, or none": [crossed, crossed / "fold0"],
    }
    for message, runs in wrong.items():
        assert main(["ensemble", *map(str, runs), "--out", str(tmp_path / "out")]) == 2
        assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_ensemble_has_no_embedding(crossed, music, tmp_path, capsys):
    """The mean of several models has no one vector before its last layer; its members have."""
    arguments = ["embed", str(crossed), str(music / "q2" / "test"), "--out", str(tmp_path / "e.npz")]
    assert main(arguments) == 2
    assert "fold0" in capsys.readouterr().err


def test_folds_must_be_those_of_the_records(dealt, tmp_path, capsys):
    """--folds 4 on records dealt into three says what to do."""
    assert main(["fit", "q2", "--records", str(dealt), "--out", str(tmp_path / "x"), "--folds", "4", THREE]) == 2
    assert "--folds must be 3" in capsys.readouterr().err


def test_report_compares_runs(crossed, trained, capsys):
    """A row a run with value, interval and folds; the same as Markdown; a run without evaluation is named."""
    assert main(["evaluate", str(trained)]) == 0
    capsys.readouterr()
    assert main(["report", str(crossed), str(trained)]) == 0
    shown = capsys.readouterr().out
    value = json.loads((crossed / "evaluation" / "report.json").read_text())["value"]
    assert f"{value:.3f}" in shown
    areas = json.loads((crossed / "evaluation" / "report.json").read_text())["metrics"]
    assert all(name in shown and f"{areas[name][0]:.3f}" in shown for name in ("ROC-AUC", "PR-AUC"))
    assert "cnn1d, a model a fold" in shown
    assert "±" in shown
    assert main(["report", "--markdown", str(trained)]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == 3
    assert len({line.count("|") for line in lines}) == 1
    assert main(["report", str(crossed / "fold0")]) == 2
    assert "has no evaluation. `tfmusic evaluate" in capsys.readouterr().err


@pytest.mark.slow
def test_a_config_with_partners_trains_all_and_joins_them(dealt, music, tmp_path, capsys):
    """Own model and partner's under one folder, fold by fold; interrupted and resumed, the whole is finished."""
    small = [*SMALL_MODEL, THREE, "training.batch_size=8", "training.epochs=1", "training.fold=all"]
    (tmp_path / "other.yaml").write_text(to_yaml(load_config(find_config("q2"), [*small, "model.name=cnn1d"])))
    out = tmp_path / "run"
    asked = ["fit", "q2", "--records", str(dealt), "--out", str(out), *small]
    partner = f"ensemble.partners=[{tmp_path / 'other.yaml'}]"
    assert main([*asked, partner, "--dry-run"]) == 0
    assert "6 models: own/fold0" in capsys.readouterr().out
    assert main([*asked, partner]) == 0
    assert {"own", "other", "fold2", "checkpoints"} <= {path.name for path in out.iterdir()}
    shares = capsys.readouterr().out.partition("alone, held out")[2].splitlines()[2:4]
    assert [line.split()[0] for line in shares] == ["own", "other"]
    assert all(0 <= float(line.split()[2]) <= 1 for line in shares)
    members = [one["run"] for one in json.loads((out / "fold0" / "ensemble.json").read_text())["members"]]
    assert len(members) == 2
    assert main(["predict", str(out), str(music / "q2" / "test"), "--out", str(tmp_path / "a.json")]) == 0
    before = RunDir(out).calibration.read_bytes()
    RunDir(out).calibration.unlink()
    RunDir(out / "other" / "fold2").calibration.unlink()
    assert main(["fit", "q2", "--resume", "--out", str(out), "--records", str(dealt)]) == 0
    assert RunDir(out).calibration.read_bytes() == before
    assert main([*asked[:-1], "training.fold=1", partner, "--overwrite"]) == 2
    assert "must have training.fold=1 and no partners of its own" in capsys.readouterr().err
    assert RunDir(out).calibration.is_file()


def test_runs_on_other_folds_or_unfinished_are_not_joined(crossed, trained, music, dealt, tmp_path, capsys):
    """Tracks dealt otherwise would leak; an unfinished training has no calibration."""
    other = tmp_path / "r"
    assert (
        main(["build-records", "q2", "--data", str(music), "--out", str(other), "--workers", "1", "data.seed=1"]) == 0
    )
    assert fit_small("q2", other, tmp_path / "other", "training.epochs=1", "data.seed=1") == 0
    capsys.readouterr()
    assert main(["ensemble", str(trained), str(tmp_path / "other"), "--out", str(tmp_path / "out"), "--equal"]) == 2
    assert "must have been trained on the tracks and folds of" in capsys.readouterr().err
    half = tmp_path / "half"
    shutil.copytree(crossed, half)
    RunDir(half).fold(2).calibration.unlink()
    for command in (["evaluate", str(half)], ["ensemble", str(crossed), str(half), "--out", str(tmp_path / "out")]):
        assert main(command) == 2
        assert (
            f"2 of 3 folds have ended. Finish it with tfmusic fit {half}/config.yaml --resume"
            in capsys.readouterr().err
        )
    assert not (tmp_path / "out").exists()


def test_records_of_another_scale_are_not_scored(crossed, music, tmp_path, capsys):
    """The same tracks and folds on another scale would be misread."""
    other = tmp_path / "r"
    assert (
        main(
            [
                "build-records",
                "q2",
                "--data",
                str(music),
                "--out",
                str(other),
                "--workers",
                "1",
                "record.scale=log10_1p10",
                THREE,
            ]
        )
        == 0
    )
    assert main(["evaluate", str(crossed), "--records", str(other)]) == 2
    assert "must keep the contract of the model" in capsys.readouterr().err


def test_what_cannot_be_trained_replaces_nothing(crossed, dealt, tmp_path, capsys):
    """--overwrite with weights that do not fit, or that lie in what is replaced: the old run stays whole."""
    old = tmp_path / "old"
    shutil.copytree(crossed, old)
    flags = ("--folds", "3", "--overwrite")
    for source, message in (
        (crossed, "an ensemble. Start from one of its members: fold0"),
        (old / "fold1", "lies in the run folder that is to be replaced"),
    ):
        assert fit_small("q2", dealt, old, THREE, f"model.init_from={source}", flags=flags) == 2
        assert message in capsys.readouterr().err
    assert fit_small("q2", dealt, old, THREE, f"model.init_from={crossed / 'fold1'}", "model.width=8", flags=flags) == 2
    assert main(["evaluate", str(old)]) == 0


def test_damaged_checkpoints_and_old_reports_give_one_line(crossed, tmp_path, capsys):
    """A truncated model of a fold, and a report from before intervals."""
    copy = tmp_path / "copy"
    shutil.copytree(crossed, copy)
    report = copy / "evaluation" / "report.json"
    fields = json.loads(report.read_text())
    del fields["interval"]
    report.write_text(json.dumps(fields))
    assert main(["report", str(copy)]) == 2
    assert "Run tfmusic evaluate" in capsys.readouterr().err
    RunDir(copy).fold(2).checkpoint("best").write_bytes(b"PK half a model")
    assert main(["evaluate", str(copy)]) == 2
    assert "best.keras: must be a Keras model of tfmusic" in capsys.readouterr().err


def test_partners_need_names_of_their_own(dealt, tmp_path, capsys):
    """A partner called own or like another would be lost."""
    text = to_yaml(load_config(find_config("q2"), ["training.fold=0"]))
    for name in ("own.yaml", "a/p.yaml", "b/p.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    for names in (["own.yaml"], ["a/p.yaml", "b/p.yaml"]):
        partners = ",".join(str(tmp_path / name) for name in names)
        assert fit_small("q2", dealt, tmp_path / "run", THREE, f"ensemble.partners=[{partners}]") == 2
        assert "their file names must differ" in capsys.readouterr().err


def test_runs_that_hold_out_nothing_in_common(crossed, tmp_path, capsys):
    """Two folds of a cross-validation: no weights can be fitted; equal ones can, with a note."""
    runs = [str(crossed / "fold0"), str(crossed / "fold1")]
    assert main(["ensemble", *runs, "--out", str(tmp_path / "out")]) == 2
    assert "hold out no track in common" in capsys.readouterr().err
    assert main(["ensemble", *runs, "--out", str(tmp_path / "out"), "--equal"]) == 0
    assert "not calibrated; score the whole on other tracks" in capsys.readouterr().out
    members = json.loads((tmp_path / "out" / "ensemble.json").read_text())["members"]
    assert (tmp_path / "out" / members[0]["run"]).resolve() == (crossed / "fold0").resolve()
