"""Which segments are stored, how often each comes in an epoch, and soft targets."""

import json
from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from tests import miniatures
from tests.test_loaders import config_of
from tests.test_pipeline import epoch_of, source_of
from tests.test_serve import post, running
from tfmusic.cli import main
from tfmusic.config.sections import BalanceSection, Config, RecordSection
from tfmusic.core.windows import Segments, segment_starts, window_starts
from tfmusic.inference.explain import explain
from tfmusic.inference.predictor import load_predictor
from tfmusic.inputs.balance import Balance
from tfmusic.models import ops
from tfmusic.records.build.shard import stored_starts
from tfmusic.records.manifest import Manifest
from tfmusic.records.reader import iterate, iterate_tracks
from tfmusic.records.segments import Index
from tfmusic.records.segments import Segments as StoredSegments

OVERRIDES = ("record.segment_frames=20", "record.hop_frames=20", "input.frames=20", "input.hop_frames=10")


def build(data, tmp_path, loader, *overrides, out="records", **keys):
    place = tmp_path / out
    arguments = [config_of(loader, tmp_path, **keys), "--data", str(data), "--out", str(place), "--workers", "1"]
    assert main(["build-records", *arguments, *OVERRIDES, *overrides]) == 0
    return Manifest.read(place)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """Records of a folder with 8 tracks of one class and 2 of another in training, five segments each."""
    folder = tmp_path_factory.mktemp("uneven")
    rng = np.random.default_rng(0)
    for name, part, count in (("often", "train", 8), ("rare", "train", 2), ("often", "valid", 2), ("rare", "test", 1)):
        for n in range(count):
            path = folder / "data" / part / name / f"{part}{n}.npy"
            miniatures.write_sound(path, 0 if name == "often" else 4, rng, seconds=3.2)
    miniatures.write_sound(folder / "data/valid/rare/v.npy", 4, rng, seconds=3.2)
    return build(folder / "data", folder, "folder")


def balance_of(manifest, **options):
    return Balance.of(manifest, ("train",), BalanceSection(**options), seed=3)


def source(manifest, *overrides, batch_size=5, **changes):
    overrides = (*overrides, *OVERRIDES, f"training.batch_size={batch_size}")
    return source_of(manifest, *overrides, splits=("train",), **changes)


# --- Stored segments -------------------------------------------------------------------------------------------


def record_of(segments, count, seed):
    return RecordSection(segment_frames=10, hop_frames=10, segments=segments, segments_per_track=count, seed=seed)


@pytest.mark.parametrize(
    ("choice", "count", "expected"),
    [
        ("all", 1, [0, 10, 20, 30, 35]),
        ("first", 2, [0, 10]),
        ("even", 3, [0, 20, 35]),
        ("even", 2, [0, 35]),
        ("even", 1, [20]),
        ("first", 5, [0, 10, 20, 30, 35]),
        ("random", 9, [0, 10, 20, 30, 35]),
    ],
)
def test_stored_starts(choice, count, expected):
    """Of five windows: all, the first, or even ones; a track of fewer windows than asked for gives all."""
    assert stored_starts(45, record_of(choice, count, 0)) == expected


def test_random_starts_depend_on_seed_and_length():
    """The same length and seed give the same windows; over seeds and lengths every place is drawn as often."""
    assert stored_starts(45, record_of("random", 2, 0)) == stored_starts(45, record_of("random", 2, 0))
    drawn = [stored_starts(50, record_of("random", 2, seed)) for seed in range(200)]
    assert all(len(set(some)) == 2 and some == sorted(some) for some in drawn)
    counts = np.bincount(np.concatenate(drawn))[::10]
    assert len(counts) == 5
    assert counts.min() > 50  # 80 each are expected, with a standard deviation of 7
    firsts = [stored_starts(10 * n, record_of("random", 1, 0))[0] / (10 * n) for n in range(20, 220)]
    np.testing.assert_allclose(np.histogram(firsts, 4, (0, 1))[0], 50, atol=25)


@pytest.mark.parametrize("choice", ["first", "random", "even"])
def test_window_starts_of_segments(choice):
    """The windows are those of the frames that the stored segments cover, stretch by stretch, and nothing else."""
    for n_frames, count, hop in product(range(1, 61), range(1, 10, 2), (1, 3, 6, 7)):
        segments = Segments(choice, count, frames=7, hop_frames=hop, seed=3)
        covered = np.zeros(n_frames, bool)
        for start in segments.starts(n_frames):
            covered[start : start + 7] = True
        edges = np.flatnonzero(np.diff(np.r_[False, covered, False])).reshape(-1, 2).tolist()
        expected = [begin + segment_starts(end - begin, frames=4, hop_frames=3) for begin, end in edges]
        found = window_starts(n_frames, frames=4, hop_frames=3, segments=segments)
        np.testing.assert_array_equal(found, np.concatenate(expected))


def test_chosen_segments_are_stored_and_noted(tmp_path):
    """Only those segments are in the records, statistics are theirs, and the manifest says how they were chosen."""
    miniatures.write_folder(tmp_path / "data", ".npy", splits=(), seconds=3.2)  # 100 frames, five windows
    whole = build(tmp_path / "data", tmp_path, "folder", out="whole")
    few = build(
        tmp_path / "data", tmp_path, "folder", "record.segments=even", "record.segments_per_track=2",
        "training.fold=0",
    )  # fmt: skip
    assert few.settings["segments"] == "even"
    assert few.settings["segments_per_track"] == 2
    assert (whole.has_whole_tracks, few.has_whole_tracks) == (True, False)
    assert "segments" not in whole.settings
    for split in whole.splits:
        assert (whole.splits[split].segments, few.splits[split].segments) == (20, 8)
        assert few.splits[split].statistics.frames == 4 * 40
        tracks = {track.row: track.codes for track in iterate_tracks(whole, split)}
        stretches = [(track.row, track.codes) for track in iterate_tracks(few, split)]
        assert len(stretches) == 8
        for (row, first), (same_row, last) in zip(stretches[::2], stretches[1::2], strict=True):
            assert row == same_row
            np.testing.assert_array_equal(first, tracks[row][:20])
            np.testing.assert_array_equal(last, tracks[row][80:])
        headers = [header for header, _ in iterate(few, split)]
        assert {header.start for header in headers} == {0, 80}


def test_touching_segments_are_one_stretch(tmp_path):
    """The first two windows stand side by side: they are scored as one piece of music, over their border as well."""
    miniatures.write_folder(tmp_path / "data", ".npy", splits=(), seconds=3.2)
    few = build(tmp_path / "data", tmp_path, "folder", "record.segments=first", "record.segments_per_track=2")
    assert [len(track.codes) for track in iterate_tracks(few, "fold0")] == [40] * 4


def test_older_records_of_some_segments_are_refused(tmp_path, capsys):
    """Records whose contract does not say which segments they hold are read, but nothing is trained on them."""
    miniatures.write_folder(tmp_path / "data", ".npy", splits=(), seconds=3.2)
    few = build(tmp_path / "data", tmp_path, "folder", "record.segments=even")
    records = ["--records", str(few.folder), "--out", str(tmp_path / "run"), *OVERRIDES]
    assert main(["fit", config_of("folder", tmp_path), *records]) == 2
    assert "record.segments must be all as the config says. Received: even" in capsys.readouterr().err
    replace(few, contract=replace(few.contract, segments=None)).write()
    assert main(["fit", config_of("folder", tmp_path), *records, "record.segments=even"]) == 2
    assert f"{few.folder}: the contract must say which segments are stored" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("choice", ["first", "even", "random"])
def test_every_way_scores_what_is_stored(choice, tmp_path):
    """evaluate, predict, serve, explain and the exports score the same part of a track, to 1e-5."""
    miniatures.write_folder(tmp_path / "data", ".npy", seconds=3.2)
    chosen = (f"record.segments={choice}", "record.segments_per_track=2", "record.seed=1")
    few = build(tmp_path / "data", tmp_path, "folder", *chosen)
    run = fit(tmp_path, "folder", few, *chosen, split="test")
    report = json.loads((run / "evaluation" / "report.json").read_text())
    assert report["tracks"] == 4
    evaluated = pd.read_csv(run / "evaluation" / "predictions.csv", dtype={"track_id": str})
    columns = [name for name in evaluated if name.startswith("score:")]
    paths = sorted(str(path) for path in (tmp_path / "data/test").rglob("*.npy"))

    def predict(model):
        out = tmp_path / f"{model.name}.csv"
        assert main(["predict", str(model), *paths, "--out", str(out)]) == 0
        return pd.read_csv(out)[columns]

    np.testing.assert_allclose(predict(run), evaluated[columns], atol=1e-5)
    formats = ["saved_model", *(["onnx"] if ops.IS_KERAS_3 and choice == "random" else [])]
    for form in formats:
        out = tmp_path / form
        assert main(["export", str(run), "--out", str(out), "--format", form]) == 0
        assert "2 segments of 20 frames" in (out / "README.md").read_text()
        np.testing.assert_allclose(predict(out), evaluated[columns], atol=1e-5)
    predictor, mel, expected = load_predictor(run), np.load(paths[0])[0], evaluated[columns].iloc[0]
    explained = explain(predictor, mel, "a", (), lambda: None).to_dict()
    json.dumps(explained, allow_nan=False)
    assert main(["explain", str(run), paths[0], "--out", str(tmp_path / "page.html")]) == 0  # drawn with its gaps
    np.testing.assert_allclose(list(explained["scores"].values()), expected, atol=1e-5)
    assert explained["windows"] == len(window_starts(mel.shape[1], **predictor.contract.windows)) < report["windows"]
    with running(predictor) as port:
        status, served, _ = post(port, [("a.npy", Path(paths[0]).read_bytes())])
    assert status == 200
    np.testing.assert_allclose(list(served["tracks"][0]["scores"].values()), expected, atol=1e-5)


def fit(tmp_path, loader, manifest, *overrides, name="run", split=None):
    run = tmp_path / name
    small = (
        "training.epochs=2",
        "model.name=cnn1d",
        "model.width=4",
        "training.batch_size=8",
        "training.warmup_epochs=0.0",
    )
    records = ["--records", str(manifest.folder), "--out", str(run), *OVERRIDES, *small]
    assert main(["fit", config_of(loader, tmp_path), *records, "training.fold=official", *overrides]) == 0
    assert main(["evaluate", str(run), *(["--split", split] if split else [])]) == 0
    return run


# --- Balance ---------------------------------------------------------------------------------------------------


def test_no_balance_without_keys(uneven):
    """The defaults leave the stream as it is."""
    assert balance_of(uneven) is None
    assert balance_of(uneven, rare_share=0.1) is None


def test_three_positions_against_one(uneven):
    """As the FMA project had it: a common track gives one segment an epoch, a rare one three; epochs differ."""
    balance = balance_of(uneven, common_segments=1, rare_segments=3)
    assert balance.n_tracks.tolist() == [8, 2]
    assert balance.is_rare.tolist() == [False, True]
    assert balance.label_counts.tolist() == [8, 6]
    for epoch in range(5):
        times = balance.times(epoch)
        assert set(times.tolist()) == {0, 1}
        per_track = np.bincount(balance.track, times)
        label_of = dict(zip(balance.track.tolist(), balance.label.tolist(), strict=True))
        assert all(per_track[track] == (3 if label else 1) for track, label in label_of.items())
    assert (balance.times(0) == balance.times(0)).all()
    assert (balance.times(0) != balance.times(1)).any()


def test_oversampling_reaches_the_share(uneven):
    """Ten rare segments against forty: at .5 each comes twice, at .6 some three times; no segment is left out."""
    assert balance_of(uneven, oversample=0.5).label_counts.tolist() == [40, 20]
    balance = balance_of(uneven, oversample=0.6)
    assert balance.label_counts.tolist() == [40, 24]
    assert sorted(balance.times(0)[balance.label == 1].tolist()) == [2] * 6 + [3] * 4
    assert (balance.times(0)[balance.label == 0] == 1).all()
    assert balance_of(uneven, oversample=0.2).label_counts.tolist() == [40, 10]


def test_both_rules_together(uneven):
    """First segments are drawn, then the drawn ones of rare classes are repeated."""
    balance = balance_of(uneven, common_segments=2, rare_segments="all", oversample=1.0)
    assert balance.label_counts.tolist() == [16, 16]
    assert balance.n_segments == 32


def test_named_labels_are_common_whatever_their_count(uneven):
    """balance.common in place of rare_share: all labels that are not named are rare."""
    wanted = {"common_segments": 1, "rare_segments": 3}
    labels = balance_of(uneven, **wanted).labels
    balance = balance_of(uneven, common=[labels[1]], **wanted)
    assert balance.is_rare.tolist() == [True, False]
    balance = balance_of(uneven, common=list(labels), **wanted)
    assert (np.bincount(balance.track, balance.times(0)) == 1).all()


def tagged(has, per_track=2, **options):
    """A balance of tracks with tags, a row of `has` each, of as many segments each."""
    has = np.array(has, bool)
    track = np.repeat(np.arange(len(has)), per_track)
    names = tuple("abc"[: has.shape[1]])
    return Balance(BalanceSection(**options), names, track, has, seed=0)


def test_several_tags_count_by_the_rarest():
    """Tags a, b of eight, three tracks and c of one: a track of a and c counts as c's, one of a alone as a's."""
    has = [[1, 0, 0]] + [[1, 1, 0]] * 2 + [[1, 0, 1]] + [[1, 0, 0]] * 4 + [[0, 1, 0]]
    balance = tagged(has, common_segments=1, rare_segments=2)
    assert balance.n_tracks.tolist() == [8, 3, 1]
    assert balance.is_rare.tolist() == [False, False, True]  # fewer than half of the mean of four
    assert balance.label[::2].tolist() == [0, 1, 1, 2, 0, 0, 0, 0, 1]
    assert np.bincount(balance.track, balance.times(0)).tolist() == [1, 1, 1, 2, 1, 1, 1, 1, 1]
    assert balance.label_counts.tolist() == [9, 3, 2]


def test_a_common_tag_that_seldom_stands_alone_is_not_rare():
    """Ten tracks have a, nine of them with b, too: the one that has a alone is not repeated on that account."""
    balance = tagged([[1, 1]] * 9 + [[1, 0]], oversample=1.0, rare_segments=1, rare_share=0.9)
    assert balance.is_rare.tolist() == [False, False]
    per_track = np.bincount(balance.track, balance.times(0))
    assert per_track[9] == 2
    assert per_track[:9].sum() == 20  # b's segments, eighteen, are brought to a's twenty


def test_stream_is_what_the_balance_says(uneven):
    """Every segment comes through tf.data exactly as often as it should, in whole batches, the same twice."""
    balance = balance_of(uneven, common_segments=2, oversample=1.0)
    made_from = source(uneven, "balance.common_segments=2", "balance.oversample=1.0", batch_size=1)
    key_of = {}
    for header, cells in iterate(uneven, "train"):
        key_of[cells.tobytes()] = (header.track, header.start)
    for epoch in range(2):
        batches = list(epoch_of(made_from, epoch))
        assert len(batches) == balance.n_segments == 32
        keys = [key_of[codes.numpy()[0].tobytes()] for codes, _ in batches]
        seen = {key: keys.count(key) for key in set(keys)}
        order = [header for header, _ in iterate(uneven, "train")]
        wanted = {(h.track, h.start): int(n) for h, n in zip(order, balance.times(epoch), strict=True) if n}
        assert seen == wanted
    again = list(epoch_of(made_from, 1))
    assert all((a[0].numpy() == b[0].numpy()).all() for a, b in zip(batches, again, strict=True))


def test_two_processes_share_what_the_balance_says(uneven):
    """Each makes its half of every batch; in both together every segment comes as often as it should."""
    balance = balance_of(uneven, common_segments=2, oversample=1.0)
    seen = Counter()
    for process in range(2):
        half = source(
            uneven, "balance.common_segments=2", "balance.oversample=1.0", batch_size=4, process=process, n_processes=2
        )
        batches = [codes.numpy() for codes, _ in epoch_of(half)]
        assert len(batches) == balance.n_segments // 4 == 8
        assert all(len(codes) == 2 for codes in batches)
        seen.update(codes.tobytes() for codes in np.concatenate(batches))
    cells = [cells.tobytes() for _, cells in iterate(uneven, "train")]
    assert seen == {some: int(n) for some, n in zip(cells, balance.times(0), strict=True) if n}


def test_stream_is_balanced_only_when_asked(uneven):
    """Without balance every segment comes once; the number of whole batches is known beforehand."""
    ds = epoch_of(source(uneven, batch_size=8))
    assert int(ds.cardinality()) == len(list(ds)) == 50 // 8
    ds = epoch_of(source(uneven, "balance.common_segments=1"))
    assert int(ds.cardinality()) == len(list(ds)) == 18 // 5


@pytest.mark.slow
def test_fit_prints_the_counts(uneven, tmp_path, capsys):
    """The table of classes says what there is and what comes; class weights are those of the balanced stream."""
    (tmp_path / "x").mkdir()
    fit(
        tmp_path / "x", "folder", uneven, "balance.common_segments=1", "balance.rare_segments=3",
        "training.class_weights=balanced",
    )  # fmt: skip
    out = capsys.readouterr().out
    assert "balance: 14 segments an epoch of 50 stored" in out
    lines = [line.split() for line in out.splitlines()]
    assert ["often", "8", "40", "8"] in lines
    assert ["rare", "2", "10", "6", "rare"] in lines


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.target=soft_top", "training.target=soft_top is for one label a track"),
        ("training.class_weights=balanced", "class_weights=balanced is for one label a track"),
    ],
)
def test_what_is_not_for_several_tags(tmp_path, capsys, override, message):
    """Soft targets and class weights need one label a track."""
    miniatures.write_jamendo(tmp_path / "data", ".npy", splits=(0,))
    manifest = build(tmp_path / "data", tmp_path, "jamendo")
    records = ["--records", str(manifest.folder), "--out", str(tmp_path / "run"), *OVERRIDES]
    config = config_of("jamendo", tmp_path)
    assert main(["fit", config, *records, "training.fold=official", override]) == 2
    assert message in capsys.readouterr().err


# --- Soft targets ----------------------------------------------------------------------------------------------


def test_soft_target_by_hand():
    """.75 for the first of three labels, .125 for each other; of two .75 and .25; one label alone has all."""
    columns = (np.zeros(4), np.arange(4), np.array([3, 2, 0, 1]), np.array([2, 0, 3, 1, 2, 3]))

    def targets(kind, numbers, *share):
        contract = SimpleNamespace(kind=kind, labels="abcd")
        segments = StoredSegments(SimpleNamespace(contract=contract), ())
        segments.__dict__["table"] = Index(*columns)  # a cached property
        return segments.targets(np.array(numbers), *share)

    wanted = np.array([[0.125, 0, 0.75, 0.125], [0, 0.75, 0.25, 0], [0, 0, 0, 0], [0, 0, 0, 1]])
    np.testing.assert_allclose(targets("single", range(4), 0.75), wanted)
    np.testing.assert_allclose(targets("single", [3, 1], 0.75), wanted[[3, 1]])
    np.testing.assert_allclose(targets("single", range(4)), [[0, 0, 1, 0], [0, 1, 0, 0], [0] * 4, [0, 0, 0, 1]])
    np.testing.assert_allclose(targets("multi", range(4)), wanted > 0)


@pytest.mark.slow
def test_records_keep_the_top_genre_first(tmp_path):
    """FMA with all genres behind the top one: stored in that order, scored on the first, trained softly if asked."""
    miniatures.write_fma(tmp_path / "data", ".npy", leak=False)
    manifest = build(tmp_path / "data", tmp_path, "fma", genres="top_first")
    names = manifest.contract.labels
    stored = {header.track_id: header.label for header, _ in iterate(manifest, "train")}
    assert [names[i] for i in stored["000562"]] == ["Rock", "Hardcore", "Punk"]
    _, targets = next(iter(epoch_of(source(manifest, "training.target=soft_top", batch_size=4))))
    np.testing.assert_allclose(targets.numpy().sum(1), 1.0)
    run = fit(tmp_path, "fma", manifest, "training.target=soft_top", split="test")
    report = json.loads((run / "evaluation" / "report.json").read_text())
    assert report["metric"] == "accuracy"
    assert {name for name, entry in report["labels"].items() if entry["support"]} == {"Rock", "Jazz", "Folk", "Blues"}


# --- Official splits in training -------------------------------------------------------------------------------


@pytest.mark.slow
def test_test_tracks_are_left_alone(tmp_path, capsys):
    """Training reads train, validates on validation; with none on both; test is scored when asked for, and noted."""
    miniatures.write_folder(tmp_path / "data", ".npy")
    manifest = build(tmp_path / "data", tmp_path, "folder")
    ids = {split: set(manifest.track_ids([split])) for split in ("train", "validation", "test")}
    for fold, trained, validated in (("official", ["train"], ["validation"]), ("none", ["train", "validation"], [])):
        run = fit(tmp_path, "folder", manifest, f"training.fold={fold}", name=fold, split="test")
        used = json.loads((run / "records.json").read_text())
        assert (used["training"], used["validation"]) == (trained, validated)
        assert not set(used["training_tracks"]) & ids["test"]
        assert "none of these tracks was trained on" in capsys.readouterr().out
    assert main(["evaluate", str(tmp_path / "official")]) == 0
    assert "tracks of validation" in capsys.readouterr().out
    for fold in ("0", "all"):
        records = ["--records", str(manifest.folder), "--out", str(tmp_path / "new"), *OVERRIDES]
        assert main(["fit", config_of("folder", tmp_path), *records, f"training.fold={fold}"]) == 2
        err = capsys.readouterr().err
        assert "training.fold must be official or none, as the records have splits of their own" in err
        assert not (tmp_path / "new").exists()


def test_folds_are_not_official(records, tmp_path, capsys):
    """Records that are assigned to folds refuse training.fold=official."""
    arguments = ["--records", str(records), "--out", str(tmp_path / "run"), "training.fold=official"]
    assert main(["fit", "q2", *arguments]) == 2
    assert "training.fold must be a number or all or none" in capsys.readouterr().err


def test_scale_is_not_measured_on_test_tracks(tmp_path):
    """A test track a thousand times louder than all others does not move the scale."""
    miniatures.write_folder(tmp_path / "data", ".npy")
    quiet = build(tmp_path / "data", tmp_path, "folder", out="quiet").contract.scale
    path = tmp_path / "data/test/rock/test0.npy"
    np.save(path, np.load(path) * 1000)
    assert build(tmp_path / "data", tmp_path, "folder", out="loud").contract.scale == quiet


def test_defaults_of_the_sections():
    """A config without the new keys is as it was."""
    config = Config.model_validate({"task": "q1", "data": {"question": "q1"}})
    assert (config.record.segments, config.training.target, config.balance.is_on) == ("all", "labels", False)
