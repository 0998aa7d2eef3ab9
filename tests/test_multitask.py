"""Several tasks on one backbone: joined labels, missing labels, one score for each task."""

import json
import shutil
from dataclasses import replace

import keras
import numpy as np
import pytest

from tests.conftest import fit_small
from tests.test_pipeline import epoch_of, source_of
from tfmusic.cli import main
from tfmusic.config.sections import Config
from tfmusic.core.contract import Contract, Head
from tfmusic.core.feature import Feature
from tfmusic.core.rundir import RunDir
from tfmusic.core.scale import Scale
from tfmusic.core.track import Track
from tfmusic.datasets import airush, join
from tfmusic.datasets.splits import assign_folds
from tfmusic.errors import DataError
from tfmusic.evaluation.held_out import score_splits
from tfmusic.records.manifest import Manifest


@pytest.fixture(scope="session")
def half_labelled(music, tmp_path_factory):
    """The made-up music, where every third track has no tags."""
    folder = tmp_path_factory.mktemp("half")
    shutil.copytree(music, folder, dirs_exist_ok=True)
    path = folder / "q2" / "train" / "train_label"
    table = json.loads(path.read_text(encoding="utf-8"))
    kept = [key for i, key in enumerate(table["track_index"]) if i % 3]
    path.write_text(json.dumps({name: {key: column[key] for key in kept} for name, column in table.items()}))
    return folder


@pytest.fixture(scope="session")
def both_records(half_labelled, tmp_path_factory):
    """Folder of records with stations for all tracks and tags for two thirds."""
    out = tmp_path_factory.mktemp("records") / "q1_q2"
    assert main(["build-records", "q1_q2", "--data", str(half_labelled), "--out", str(out), "--workers", "1"]) == 0
    return out


@pytest.fixture(scope="session")
def both_trained(both_records, tmp_path_factory):
    """Run folder of a small model for both tasks."""
    out = tmp_path_factory.mktemp("runs") / "q1_q2"
    assert fit_small("q1_q2", both_records, out, "training.epochs=2", "augment.mixup_alpha=0.3") == 0
    return out


def datasets(music):
    return [airush.load(music, airush.Options(question=question), task=question) for question in ("q1", "q2")]


def test_join_keeps_every_track_once(half_labelled):
    """All tracks of either task, in order, with the labels of each that has some."""
    one, two = datasets(half_labelled)
    joined = join([one, two])
    assert [track.track_id for track in joined.tracks] == [track.track_id for track in one.tracks]
    tagged = {track.track_id: track.labels for track in two.tracks}
    for track, station in zip(joined.tracks, one.tracks, strict=True):
        expected = [f"q1:{station.labels[0]}", *(f"q2:{tag}" for tag in tagged.get(track.track_id, ()))]
        assert list(track.labels) == expected
    assert joined.task == "q1_q2"
    assert joined.kind == "tasks"
    assert [head.kind for head in joined.heads] == ["single", "multi"]
    assert len(joined.labels) == len(one.labels) + len(two.labels)


def test_join_refuses_what_is_not_one_track(music):
    """The same id with other artists or another file, or no track in common."""
    one, two = datasets(music)
    stranger = replace(two.tracks[0], metadata={"artists": ["somebody else"]})
    with pytest.raises(DataError, match=r"must be one track in all tasks"):
        join([one, replace(two, tracks=(stranger, *two.tracks[1:]))])
    longer = replace(two.tracks[0], feature_path=two.tracks[1].feature_path)
    with pytest.raises(DataError, match=r"must be one track in all tasks.*\.npy"):
        join([one, replace(two, tracks=(longer, *two.tracks[1:]))])
    apart = tuple(replace(track, track_id=f"other-{track.track_id}") for track in two.tracks)
    with pytest.raises(DataError, match=r"must share tracks\. Received: none in common"):
        join([one, replace(two, tracks=apart)])


def test_joined_artists_stay_in_one_fold(music):
    """Datasets number artists for themselves: numbers that agree say nothing, names and shared tracks link them."""
    tracks = {
        "q1": [("1", "#1", "A", None), ("2", "#2", "B", "#9"), ("3", "#3", "C", None)],
        "q2": [("1", "#7", "A", None), ("4", "#7", "A", None), ("5", "#2", "C", None), ("2", "#5", "B", "#4"),
               ("6", "#6", "D", "#4")],
    }  # fmt: skip
    one, two = datasets(music)
    parts = [
        replace(
            dataset,
            tracks=tuple(
                Track(name, music / "none", dataset.labels[:1], None, (key,), album, {"artists": [artist]})
                for name, key, artist, album in tracks[dataset.task]
            ),
        )
        for dataset in (one, two)
    ]
    joined = join(parts)
    folds = dict(
        zip(
            [track.track_id for track in joined.tracks],
            assign_folds(joined.tracks, joined.labels, n_folds=3, seed=0),
            strict=True,
        )
    )
    assert folds["1"] == folds["4"]  # A: by the number in q2, and by name
    assert folds["3"] == folds["5"]  # C: in no track of both, by name alone
    assert folds["2"] == folds["6"]  # B and D: by q2's album, though q1 numbers that album otherwise
    assert len({folds[name] for name in "123"}) == 3  # "#2" is B in q1 and C in q2


def test_contract_parts_and_json(tmp_path):
    """Each task has its columns; the file reads back the same; one task has no heads in its file."""
    heads = (Head("q1", "single", ("a", "b")), Head("q2", "multi", ("a", "c", "d")))
    labels = ("q1:a", "q1:b", "q2:a", "q2:c", "q2:d")
    contract = Contract(
        "q1_q2", "tasks", labels, Feature(n_bins=4), Scale("db", -60.0, 30.0), "uint8", 10, 5, heads=heads
    )
    parts = contract.parts()
    assert [(name, part.columns) for name, part in parts.items()] == [("q1", slice(0, 2)), ("q2", slice(2, 5))]
    assert parts["q2"].contract.labels == ("a", "c", "d")
    assert parts["q2"].contract.kind == "multi"
    contract.save(tmp_path / "c.json")
    assert Contract.load(tmp_path / "c.json") == contract
    assert "heads" not in parts["q1"].contract.to_dict()


def test_config_wants_a_question_for_each_task():
    """Lists of one length without repeats, or one name each."""
    config = Config.model_validate({"task": ["q1", "q2"], "data": {"question": ["q1", "q2"]}})
    assert {task: data.question for task, data in config.tasks.items()} == {"q1": "q1", "q2": "q2"}
    assert config.task_name == "q1_q2"
    for task, question in ((["q1", "q2"], "q1"), ("q1", ["q1"]), (["q1", "q1"], ["q1", "q2"]), ("q1", ["q1", "q2"])):
        with pytest.raises(ValueError, match=r"lists of the same length without repeats"):
            Config.model_validate({"task": task, "data": {"question": question}})


@pytest.mark.parametrize("mixup_alpha", [0.0, 0.5])
def test_targets_of_missing_labels_weigh_nothing(both_records, mixup_alpha):
    """A track without tags counts for the station alone; of a mixed pair both must have tags to count for them."""
    manifest = Manifest.read(both_records)
    splits = ("fold0", "fold1", "fold2", "fold3", "fold4")
    source = source_of(
        manifest, "training.batch_size=8", f"augment.mixup_alpha={mixup_alpha}", splits=splits, task="q1_q2", frames=64
    )
    shares = []
    for _, targets, weights in epoch_of(source):
        assert targets["q1"].shape == (8, 4)
        np.testing.assert_allclose(targets["q1"].numpy().sum(1), 1, rtol=1e-5)
        np.testing.assert_array_equal(weights["q1"], 1)
        has_tags = targets["q2"].numpy().sum(1) > 0
        counted = weights["q2"].numpy()
        assert set(counted.tolist()) <= {0.0, 1.0}
        assert not counted[~has_tags].any()
        if not mixup_alpha:
            np.testing.assert_array_equal(counted, has_tags)
        shares.append(counted.mean())
    assert 0.1 < np.mean(shares) < 0.95


@pytest.mark.slow
def test_missing_labels_give_no_gradient(both_trained, both_records):
    """A batch without tags leaves the last layer of the tags as it is."""
    model = keras.saving.load_model(RunDir(both_trained).checkpoint("best"), compile=False)
    heads = {task: model.get_layer(f"logits_{task}").output for task in ("q1", "q2")}
    training = keras.Model(model.input, heads)
    losses = {
        "q1": keras.losses.CategoricalCrossentropy(from_logits=True),
        "q2": keras.losses.BinaryCrossentropy(from_logits=True),
    }
    training.compile(keras.optimizers.SGD(0.1), losses, jit_compile=False)
    before = {task: model.get_layer(f"logits_{task}").get_weights() for task in heads}
    codes = np.random.default_rng(0).integers(0, 256, (4, 64, 128), np.uint8)
    targets = {"q1": np.eye(4, dtype=np.float32), "q2": np.zeros((4, heads["q2"].shape[1]), np.float32)}
    training.train_on_batch(codes, targets, {"q1": np.ones(4, np.float32), "q2": np.zeros(4, np.float32)})
    after = {task: model.get_layer(f"logits_{task}").get_weights() for task in heads}
    np.testing.assert_array_equal(after["q2"][0], before["q2"][0])
    assert not np.array_equal(after["q1"][0], before["q1"][0])


def test_training_reports_each_task(both_trained):
    """metrics.jsonl has the metric of every task and their mean, which chooses the epoch; calibration is by task."""
    lines = [json.loads(line) for line in RunDir(both_trained).metrics.read_text().splitlines()]
    for line in lines:
        assert line["validation"] == pytest.approx((line["validation_q1"] + line["validation_q2"]) / 2)
    calibration = json.loads(RunDir(both_trained).calibration.read_text())
    assert calibration["q1"]["window_shift"] == 0.0
    assert calibration["q2"]["window_shift"] != 0.0


@pytest.mark.slow
def test_each_task_is_scored_on_the_tracks_that_have_its_labels(both_trained, both_records, half_labelled, tmp_path):
    """evaluate, predict and the export of a task give the answers of its own head."""
    assert main(["evaluate", str(both_trained)]) == 0
    manifest, run = Manifest.read(both_records), RunDir(both_trained)
    model = keras.saving.load_model(run.checkpoint("best"), compile=False)
    scored = score_splits(
        manifest, ("fold0",), lambda codes: model(codes, training=False), Contract.load(run.contract), batch_size=16
    )
    q1, q2 = (json.loads((run.evaluation / task / "report.json").read_text()) for task in ("q1", "q2"))
    n_tagged = int(scored.targets[:, 4:].any(1).sum())
    assert (q1["tracks"], q2["tracks"]) == (len(scored.rows), n_tagged)
    assert q2["tracks"] < q1["tracks"]
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    best = max(lines, key=lambda line: line["validation"])
    assert q1["value"] == pytest.approx(best["validation_q1"], abs=1e-6)
    assert q2["value"] == pytest.approx(best["validation_q2"], abs=1e-6)
    for task in ("q1", "q2"):
        test = str(half_labelled / task / "test")
        export = tmp_path / f"export-{task}"
        assert main(["export", str(both_trained), "--task", task, "--out", str(export)]) == 0
        answers = [tmp_path / f"{task}-{i}.json" for i in (0, 1)]
        assert main(["predict", str(both_trained), test, "--task", task, "--out", str(answers[0])]) == 0
        assert main(["predict", str(export), test, "--out", str(answers[1])]) == 0
        assert answers[0].read_bytes() == answers[1].read_bytes()
        assert main(["score", task, str(answers[0]), str(half_labelled / "answers" / f"{task}.json")]) == 0


def test_which_task_must_be_clear(both_trained, half_labelled, trained, tmp_path, capsys):
    """predict and export want --task, and one that the model has; a model of one task takes only its own."""
    test = str(half_labelled / "q1" / "test")
    for arguments in (["predict", str(both_trained), test], ["export", str(both_trained)]):
        assert main(arguments) == 2
        assert "--task must be one of q1, q2, the tasks of the model. Received: none" in capsys.readouterr().err
    assert main(["predict", str(both_trained), test, "--task", "q3"]) == 2
    assert "--task must be one of q1, q2, the tasks of the model. Received: q3" in capsys.readouterr().err
    assert main(["predict", str(trained), test, "--task", "q1"]) == 2
    assert "--task must be one of q2, the tasks of the model. Received: q1" in capsys.readouterr().err
    assert main(["evaluate", str(both_trained), "--task", "q3"]) == 2
    assert "--task must be one that the model predicts (q1, q2)" in capsys.readouterr().err


@pytest.mark.slow
def test_one_task_on_records_of_its_own(both_trained, half_labelled, tmp_path, capsys):
    """Records of q1 alone, with the model's contract, score its q1 head."""
    out = tmp_path / "records"
    assert (
        main(["build-records", "q1", "--data", str(half_labelled), "--contract", str(both_trained), "--out", str(out)])
        == 0
    )
    every = [word for k in range(5) for word in ("--split", f"fold{k}")]
    assert main(["evaluate", str(both_trained), "--records", str(out), *every, "--out", str(tmp_path / "r")]) == 0
    report = json.loads((tmp_path / "r" / "report.json").read_text())
    assert (report["task"], report["tracks"]) == ("q1", 24)
    assert "TRAINED on" in capsys.readouterr().out


def test_class_weights_and_single_losses_are_refused(both_records, tmp_path, capsys):
    """What is for one kind of labels is not for both."""
    for override in ("training.loss=cross_entropy", "training.class_weights=balanced"):
        assert fit_small("q1_q2", both_records, tmp_path / "run", override) == 2
        assert "several tasks want training.loss=auto and training.class_weights=none" in capsys.readouterr().err


def test_a_fold_without_labels_of_a_task(half_labelled, tmp_path, capsys):
    """Known before training begins, and named."""
    path = half_labelled / "q2" / "train" / "train_label"
    table, whole = json.loads(path.read_text(encoding="utf-8")), path.read_bytes()
    kept = list(table["track_index"])[:2]
    records = tmp_path / "records"
    try:
        path.write_text(json.dumps({name: {key: column[key] for key in kept} for name, column in table.items()}))
        assert main(["build-records", "q1_q2", "--data", str(half_labelled), "--out", str(records)]) == 0
    finally:
        path.write_bytes(whole)
    messages = []
    for fold in range(5):
        assert fit_small("q1_q2", records, tmp_path / "run", f"training.fold={fold}", flags=("--dry-run",)) in (0, 2)
        messages.append(capsys.readouterr().err)
    assert sum("must have tracks with labels of q2. Received: none" in message for message in messages) >= 3
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_contract_of_a_model_for_several_tasks(both_trained, half_labelled, tmp_path, capsys):
    """Held-out tracks take labels and heads of the model, also where they lack some labels; other tasks are refused."""
    build = ["build-records", "q1_q2", "--data", str(half_labelled), "--contract", str(both_trained)]
    assert main([*build, "--out", str(tmp_path / "records")]) == 0
    assert Manifest.read(tmp_path / "records").contract.heads == Contract.load(RunDir(both_trained).contract).heads
    assert main(["build-records", "q3", *build[2:], "--out", str(tmp_path / "q3")]) == 2
    assert "--contract must be of the same task or tasks as the config, q3" in capsys.readouterr().err
