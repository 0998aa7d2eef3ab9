"""Metrics against scikit-learn, aggregators by hand, calibration by brute force."""

import json
from typing import get_args

import numpy as np
import pytest
from sklearn import metrics as reference

from tfmusic.core.contract import Contract
from tfmusic.core.feature import Feature
from tfmusic.core.scale import Scale
from tfmusic.errors import RunError
from tfmusic.scoring import metrics
from tfmusic.scoring.aggregate import AGGREGATORS, AggregatorName, aggregate, to_logits, to_scores
from tfmusic.scoring.ranking import area_intervals, label_areas
from tfmusic.scoring.track_scorer import TrackScorer, best_threshold, save_scorers


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_single_label_metrics_agree_with_scikit_learn(rng):
    """Accuracy, confusion and per-class numbers, one class missing from the answers."""
    targets, predicted = rng.integers(0, 4, 200), rng.integers(0, 3, 200)
    assert abs(metrics.accuracy(predicted, targets) - reference.accuracy_score(targets, predicted)) < 1e-12
    expected = reference.confusion_matrix(targets, predicted, labels=range(4))
    np.testing.assert_array_equal(metrics.confusion(predicted, targets, 4), expected)
    ours = metrics.per_label(metrics.one_hot(predicted, 4), metrics.one_hot(targets, 4))
    theirs = reference.precision_recall_fscore_support(targets, predicted, labels=range(4), zero_division=0)
    for name, values in zip(("precision", "recall", "f1", "support"), theirs, strict=True):
        np.testing.assert_allclose(ours[name], values, atol=1e-12)


def test_multi_label_metrics_agree_with_scikit_learn(rng):
    """Global micro-F1 and per-tag numbers, with tags that nobody has or predicts."""
    targets, predicted = rng.random((50, 20)) < 0.1, rng.random((50, 20)) < 0.1
    targets[:, 3] = predicted[:, 5] = False
    expected = reference.f1_score(targets, predicted, average="micro")
    assert abs(metrics.micro_f1(predicted, targets) - expected) < 1e-12
    theirs = reference.precision_recall_fscore_support(targets, predicted, zero_division=0)
    for name, values in zip(("precision", "recall", "f1", "support"), theirs, strict=True):
        np.testing.assert_allclose(metrics.per_label(predicted, targets)[name], values, atol=1e-12)


def test_weighted_metrics_agree_with_scikit_learn(rng):
    """Rows may weigh differently, as the windows of long and short tracks do."""
    weights = rng.random(60)
    scores, targets = rng.random((60, 4)), metrics.one_hot(rng.integers(0, 4, 60), 4)
    expected = reference.accuracy_score(targets.argmax(1), scores.argmax(1), sample_weight=weights)
    assert abs(metrics.headline(metrics.decide(scores, "single"), targets, "single", weights) - expected) < 1e-12
    expected = reference.f1_score(targets, scores >= 0.5, average="micro", sample_weight=weights)
    assert abs(metrics.headline(scores >= 0.5, targets, "multi", weights) - expected) < 1e-12


def test_f1_of_nothing_is_zero():
    """No tag predicted and none true."""
    nothing = np.zeros((3, 4), bool)
    assert metrics.micro_f1(nothing, nothing) == 0.0


def test_metric_of_names():
    """Exact match, or global micro-F1 where a repeated or empty answer counts as what it is."""
    assert metrics.metric_of_names(["a", "b"], ["a", "c"], "single") == 0.5
    assert metrics.metric_of_names([["a", "b"], []], [["a"], ["c"]], "multi") == 2 * 1 / (2 + 2)
    assert metrics.metric_of_names([["a", "a"]], [["a"]], "multi") == 1.0
    assert metrics.metric_of_names([[]], [[]], "multi") == 0.0


def test_majority_baseline():
    """The most common class; the best number of most common tags, by trying all."""
    assert metrics.majority_baseline(["a", "b", "b"], "single") == 2 / 3
    answers = [["a", "b"], ["a"], ["a", "c"], ["d"]]
    tried = [metrics.metric_of_names([tags] * 4, answers, "multi") for tags in ([], ["a"], ["a", "b"], ["a", "b", "c"])]
    assert metrics.majority_baseline(answers, "multi") == max(tried) == 2 * 3 / (4 + 6)


def test_decide():
    """The best class; every tag from .5 on."""
    scores = np.array([[0.2, 0.5, 0.49]])
    assert metrics.decide(scores, "single").tolist() == [[False, True, False]]
    assert metrics.decide(scores, "multi").tolist() == [[False, True, False]]


@pytest.mark.parametrize("kind", ["single", "multi"])
@pytest.mark.parametrize("name", AGGREGATORS)
def test_one_segment_is_its_own_answer(name, kind, rng):
    """With one segment every aggregator leads to the segment's answer."""
    logits = rng.normal(size=(1, 5))
    scores = aggregate(logits, kind=kind, aggregator=name, top_k=3)
    own = to_scores(logits, kind)
    np.testing.assert_array_equal(metrics.decide(scores[None], kind), metrics.decide(own, kind))
    assert scores.shape == (5,)
    assert ((scores >= 0) & (scores <= 1)).all()


def test_aggregators_by_hand():
    """Three segments, two classes, worked out on paper."""
    scores = np.array([[0.9, 0.1], [0.4, 0.6], [0.3, 0.7]])
    logits = np.log(scores)
    expected = {
        "mean": [1.6 / 3, 1.4 / 3],
        "median": [0.4, 0.6],
        "max": [0.9, 0.7],
        "vote": [(1 + 1.6 / 3) / 4, (2 + 1.4 / 3) / 4],
        "logit_mean": np.array([0.108, 0.042]) ** (1 / 3) / (np.array([0.108, 0.042]) ** (1 / 3)).sum(),
        "top_k_mean": [0.65, 0.65],
    }
    for name, values in expected.items():
        np.testing.assert_allclose(aggregate(logits, kind="single", aggregator=name, top_k=2), values, atol=1e-12)


def test_votes_that_tie_go_to_the_higher_mean():
    """One vote each: the surer one wins."""
    logits = np.log(np.array([[0.9, 0.1], [0.45, 0.55]]))
    assert aggregate(logits, kind="single", aggregator="vote", top_k=1).argmax() == 0


def test_scores_and_logits_do_not_overflow():
    """Logits of any size give finite scores."""
    logits = np.array([[1e4, -1e4, 0.0]])
    assert np.isfinite(to_scores(logits, "single")).all()
    np.testing.assert_allclose(to_scores(logits, "multi"), [[1, 0, 0.5]])
    np.testing.assert_allclose(to_scores(to_logits(np.array([0.2, 0.7])), "multi"), [0.2, 0.7], atol=1e-12)
    assert np.isfinite(to_logits(np.array([0.0, 1.0]))).all()


@pytest.mark.parametrize("ties", [False, True])
def test_best_threshold_is_the_best(rng, ties):
    """No threshold gives a higher micro-F1, by trying all, with and without equal scores."""
    scores = rng.random((30, 6))
    scores = scores.round(1) if ties else scores
    targets = rng.random((30, 6)) < scores * 0.4
    threshold, value = best_threshold(scores, targets)
    tried = [reference.f1_score(targets, scores >= t, average="micro", zero_division=0) for t in np.unique(scores)]
    assert abs(value - max(tried)) < 1e-12
    assert abs(metrics.micro_f1(scores >= threshold, targets) - value) < 1e-12


def test_calibration_makes_half_the_best_threshold(rng):
    """After the shifts .5 is the best threshold, for windows and for tracks under every aggregator."""
    targets = rng.random((40, 10)) < 0.15
    logits = [rng.normal(size=(rng.integers(1, 6), 10)) - 2.5 + 2.0 * row for row in targets]
    scorer = TrackScorer(kind="multi").fit(logits, targets)
    for name in AGGREGATORS:
        scores = np.stack([scorer.track_scores(x, name) for x in logits])
        assert abs(metrics.micro_f1(scores >= 0.5, targets) - best_threshold(scores, targets)[1]) < 1e-12
    windows = np.concatenate([scorer.window_scores(x) for x in logits])
    repeated = np.repeat(targets, [len(x) for x in logits], axis=0)
    assert abs(metrics.micro_f1(windows >= 0.5, repeated) - best_threshold(windows, repeated)[1]) < 1e-12


def contract_of(kind):
    """A contract of which the scorer reads the task and the kind."""
    return Contract("t", kind, ("a", "b"), Feature(n_bins=64), Scale("db", -60.0, 30.0), "uint8", 16, 8)


def test_scorer_round_trip(tmp_path):
    """A scorer with limits and shifts is the same after saving and loading, and another task is not found."""
    scorer = TrackScorer(
        kind="multi", aggregator="vote", top_k=2, window_shift=0.25, track_shifts={"vote": -1.5}, min_tags=1, max_tags=5
    )
    save_scorers({"other": TrackScorer(kind="single"), "t": scorer}, tmp_path / "c.json")
    assert TrackScorer.load(tmp_path / "c.json", contract_of("multi")) == scorer
    with pytest.raises(RunError, match=r"c\.json: .* task t.*kind must be single"):
        TrackScorer.load(tmp_path / "c.json", contract_of("single"))
    save_scorers({"other": scorer}, tmp_path / "c.json")
    with pytest.raises(RunError, match=r"c\.json: .* task t"):
        TrackScorer.load(tmp_path / "c.json", contract_of("multi"))


def test_an_aggregator_that_was_not_calibrated_is_not_compared(tmp_path):
    """A file that names the shifts of some aggregators, or of one that is gone, is read; a missing shift is 0."""
    fields = {"kind": "multi", "aggregator": "max", "window_shift": 0.5, "track_shifts": {"mean": 0.2, "gone": 1.0}}
    (tmp_path / "c.json").write_text(json.dumps({"t": fields}))
    scorer = TrackScorer.load(tmp_path / "c.json", contract_of("multi"))
    assert scorer.aggregators == ("mean",)
    logits = np.array([[0.3, -2.0], [0.1, 1.0]])
    np.testing.assert_allclose(scorer.track_scores(logits), to_scores(logits - 0.5, "multi").max(0))


@pytest.mark.parametrize(
    ("key", "value"),
    [("aggregator", "foo"), ("aggregator", ["mean"]), ("aggregator", None), ("max_tags", -1), ("extra", 1)]
    + [("top_k", value) for value in (0, True, 2.5, "3")]
    + [("track_shifts", value) for value in (3, {"mean": "x"}, [1])],
)
def test_a_scorer_with_a_wrong_value_is_refused(tmp_path, key, value):
    """One line names the file and the key."""
    (tmp_path / "c.json").write_text(json.dumps({"t": {"kind": "multi", key: value}}))
    with pytest.raises(RunError, match=rf"c\.json: .*{key}"):
        TrackScorer.load(tmp_path / "c.json", contract_of("multi"))


def test_without_calibration_scores_stay():
    """A scorer without shifts changes nothing, and compares all aggregators."""
    logits, scorer = np.array([[0.3, -2.0]]), TrackScorer(kind="multi")
    np.testing.assert_array_equal(scorer.track_scores(logits), to_scores(logits, "multi")[0])
    assert scorer.aggregators == tuple(AGGREGATORS) == get_args(AggregatorName)


def test_bootstrap_interval_is_as_wide_as_theory_says(rng):
    """Of 400 tracks with accuracy .7: 1.96 standard errors of a share either way; the same seed, the same numbers."""
    right = np.arange(400) < 280
    low, high = metrics.bootstrap_interval(np.column_stack([right, np.ones(400)]))
    error = 1.96 * np.sqrt(0.7 * 0.3 / 400)
    np.testing.assert_allclose([low, high], [0.7 - error, 0.7 + error], atol=0.006)
    assert (low, high) == metrics.bootstrap_interval(np.column_stack([right, np.ones(400)]))
    assert metrics.bootstrap_interval(np.zeros((5, 2))) == (0.0, 0.0)


# --- Areas under curves ----------------------------------------------------------------------------------------


@pytest.fixture(params=["distinct", "ties"])
def ranked(request):
    """Scores and targets of 60 tracks and 7 labels; none has the last label, all have the one before."""
    rng = np.random.default_rng(3)
    targets = rng.random((60, 7)) < [0.1, 0.3, 0.5, 0.7, 0.02, 1.1, -0.1]
    targets[0, 4] = True
    scores = np.clip(rng.random((60, 7)) + 0.3 * targets, 0, 1)
    return (scores.round(1) if request.param == "ties" else scores), targets


def test_areas_are_those_of_scikit_learn(ranked):
    """Macro, micro and of every label; labels that no track or every track has are left out."""
    scores, targets = ranked
    roc, pr = label_areas(scores, targets)
    for i in range(5):
        assert roc[i] == pytest.approx(reference.roc_auc_score(targets[:, i], scores[:, i]), abs=1e-12)
        assert pr[i] == pytest.approx(reference.average_precision_score(targets[:, i], scores[:, i]), abs=1e-12)
    assert np.isnan(roc[5:]).all() and pr[5] == pytest.approx(1.0) and np.isnan(pr[6])
    values = area_intervals(scores[:, :5], targets[:, :5], samples=100)
    for name, average in (("", "macro"), ("micro ", "micro")):
        expected = reference.roc_auc_score(targets[:, :5], scores[:, :5], average=average)
        assert values[f"{name}ROC-AUC"][0] == pytest.approx(expected, abs=1e-12)
        expected = reference.average_precision_score(targets[:, :5], scores[:, :5], average=average)
        assert values[f"{name}PR-AUC"][0] == pytest.approx(expected, abs=1e-12)


def test_intervals_of_areas_are_those_of_drawn_tracks(ranked):
    """The same draws of tracks through scikit-learn; many draws are cut into parts without changing them."""
    scores, targets = (values[:, 1:4] for values in ranked)
    rng, drawn = np.random.default_rng(5), []
    for _ in range(100):
        rows = rng.integers(0, 60, 60)
        drawn.append(reference.roc_auc_score(targets[rows], scores[rows], average="micro"))
    value, low, high = area_intervals(scores, targets, samples=100, seed=5)["micro ROC-AUC"]
    np.testing.assert_allclose([low, high], np.percentile(drawn, [2.5, 97.5]), atol=1e-12)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tfmusic.scoring.ranking._VALUES_AT_ONCE", 400)
        assert area_intervals(scores, targets, samples=100, seed=5)["micro ROC-AUC"] == pytest.approx(
            (value, low, high)
        )


def test_areas_without_a_label_that_has_some():
    """Nothing to say, and no warning."""
    assert area_intervals(np.ones((3, 2)), np.zeros((3, 2), bool)) == {}
