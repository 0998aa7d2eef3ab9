"""Pages of evaluations: what they say, and that they say it without anything beside them."""

import json
import re
from html.parser import HTMLParser
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from sklearn import metrics as sk

from tfmusic.cli import main
from tfmusic.core.feature import Feature
from tfmusic.evaluation.evaluate import Audit, _note
from tfmusic.features.filterbanks import bin_hz
from tfmusic.records.manifest import Manifest
from tfmusic.reports.page import clock, render, without_paths
from tfmusic.reports.svg import Line, line_chart, name_bins, name_times
from tfmusic.scoring.metrics import metric_intervals, reliability, threshold_curve
from tfmusic.scoring.ranking import curves
from tfmusic.scoring.timeline import Timeline, parts, timeline


class Page(HTMLParser):
    """What a page loads, and its text."""

    def __init__(self, text):
        super().__init__()
        self.loads, self.tags, self.text = [], set(), ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        """Notes what the tag loads."""
        self.tags.add(tag)
        self.loads += [value for name, value in attrs if name in ("src", "href", "xlink:href", "action", "data")]

    def handle_data(self, data):
        """Adds to the text."""
        self.text += data


def check_stands_alone(text):
    """Checks that a page loads nothing but its own parts, runs no script, and repeats no id."""
    page = Page(text)
    assert "script" not in page.tags
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in page.loads)
    assert not re.search(r"url\((?!#)|@import|/(?:tmp|home|root|Users)/", text)
    ids = re.findall(r'\sid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    return page


@pytest.fixture(scope="session")
def evaluated(trained):
    assert main(["evaluate", str(trained)]) == 0
    return trained


def test_report_stands_alone_and_says_the_numbers(evaluated):
    """report.html has the headline, every label, threshold and calibration, tracks and config; nothing from outside."""
    folder = evaluated / "evaluation"
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    page = check_stands_alone((folder / "report.html").read_text(encoding="utf-8"))
    assert f"{report['value']:.3f}" in page.text
    assert all(label in page.text for label in report["labels"])
    for part in ("Threshold", "Calibration", "Tracks with the worst", "Training loss", "Splits and leakage"):
        assert part in page.text
    assert "name: cnn1d" in page.text
    assert f"{report['audit']['scored']}" in page.text


def test_report_is_the_same_again(evaluated):
    """Same scores, same bytes."""
    path = evaluated / "evaluation" / "report.html"
    before = path.read_bytes()
    assert main(["evaluate", str(evaluated)]) == 0
    assert path.read_bytes() == before


def test_audit_finds_leaks(evaluated, capsys):
    """Validation tracks share nothing with training tracks; training tracks do, and it is said."""
    report = json.loads((evaluated / "evaluation" / "report.json").read_text(encoding="utf-8"))
    assert report["audit"] | {"ungrouped": 0} == {
        "scored": report["tracks"], "trained_on": 0, "in_backbone": 0, "shared_group": 0, "ungrouped": 0,
        "duplicates": 0,
    }  # fmt: skip
    out = evaluated.parent / "on-training"
    assert main(["evaluate", str(evaluated), "--split", "fold1", "--out", str(out)]) == 0
    audit = json.loads((out / "report.json").read_text(encoding="utf-8"))["audit"]
    assert audit["trained_on"] == audit["scored"] > 0
    assert audit["shared_group"] == audit["scored"] - audit["ungrouped"]
    assert 'class="note bad"' in (out / "report.html").read_text(encoding="utf-8")


def test_the_note_says_what_was_chosen_on_validation_tracks():
    """Tracks that the model was trained on are the graver note; without them comes what was chosen."""
    clean, leaky = Audit(4, 0, 0, 0, 0), Audit(4, 2, 0, 2, 0)
    assert "some of these tracks are validation tracks" in _note(clean, chosen="best epoch")
    assert "best epoch" in _note(clean, chosen="best epoch")
    assert "validation tracks" not in _note(clean, chosen="")
    assert "TRAINED on 2" in _note(leaky, chosen="best epoch")
    assert "same music as 3 of these tracks" in _note(Audit(4, 0, 0, 0, 0, 3), chosen="best epoch")


def test_runs_are_compared_in_one_page(evaluated, tmp_path, capsys):
    """`report --out` writes a page that stands alone and prints the table as before."""
    out = tmp_path / "runs.html"
    assert main(["report", str(evaluated), str(evaluated), "--out", str(out)]) == 0
    assert "micro_f1" in capsys.readouterr().out
    page = check_stands_alone(out.read_text(encoding="utf-8"))
    assert "2 runs compared" in page.text
    assert main(["report", str(evaluated), "--out", str(tmp_path / "runs.pdf")]) == 2
    assert "--out must end in .html" in capsys.readouterr().err


def test_strange_names_are_escaped():
    """A label or a run that looks like a tag is text."""
    row = ["<script>alert(1)</script>", *["x"] * 10]
    text = render(
        "comparison.html", names=['"><img src=x>'], header=["run"] * 11, table=[row], tasks=[], learning=[], n_series=5,
        n_labels=20, differences=[],
    )  # fmt: skip
    page = check_stands_alone(text)
    assert "img" not in page.tags
    assert "<script>alert(1)</script>" in page.text


def test_charts_take_the_colours_of_the_page_and_any_script():
    """No fixed colour is left in a chart, Korean text stays text, and the same chart gives the same bytes."""
    lines = [Line([0, 1], [0.2, 0.4], "집중할때")]
    svg = line_chart("a", lines, x_label="x", y_label="<y>")
    assert svg == line_chart("a", lines, x_label="x", y_label="<y>")
    assert not re.search(r"#[0-9a-f]{6}\b", svg)
    assert "var(--series1)" in svg
    assert "집중할때" in svg
    assert "&lt;y&gt;" in svg


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("init_from: /home/someone/runs/q2/resnet18-1", "init_from: resnet18-1"),
        ("a C:\\Users\\someone\\x.h5 b", "a x.h5 b"),
        ("~/weights/m.keras", "m.keras"),
        ("runs/q2/resnet18-1 rock/pop R&B 1/2", "runs/q2/resnet18-1 rock/pop R&B 1/2"),
        ("https://example.org/a/b", "https://example.org/a/b"),
    ],
)
def test_paths_of_the_machine_are_left_out(text, expected):
    """Paths from the root lose their folders; relative ones, labels with a slash and addresses stay."""
    assert without_paths(text) == expected


def test_curves_are_those_of_scikit_learn():
    """ROC and precision-recall of scores with ties: every point of scikit-learn's, from the highest score down."""
    rng = np.random.default_rng(0)
    scores, truth = rng.integers(0, 12, 80) / 12, rng.random(80) < 0.3
    found = curves(scores, truth)
    false_share, recall, _ = sk.roc_curve(truth, scores, drop_intermediate=False)
    np.testing.assert_allclose((found.false_share, found.recall), (false_share, recall), atol=1e-12)
    precision, recall, _ = sk.precision_recall_curve(truth, scores)
    np.testing.assert_allclose((found.precision, found.recall), (precision[::-1], recall[::-1]), atol=1e-12)


def test_curves_and_classes_stand_on_the_page(evaluated):
    """Both curves of the most frequent labels, and how many tracks of each label trained the model."""
    text = (evaluated / "evaluation" / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert "ROC and precision-recall" in page.text
    assert "false positive rate" in page.text
    used = json.loads((evaluated / "records.json").read_text())
    counts = Manifest.read(Path(used["folder"])).count_labels(used["training"])
    rows = dict(re.findall(r'<th scope="row">([^<]+)</th><td class="number">(\d+)</td><td><span class="bar"', text))
    assert {name: int(count) for name, count in rows.items()}.items() >= dict(counts.most_common(3)).items()


@pytest.mark.parametrize(
    ("feature", "hz"),
    [
        (
            "airush",
            (23.383, 7809.4),
        ),  # librosa.mel_frequencies(130, fmin=0, fmax=8000), the second and the last but one
        ("fma-cqt", (32.703, 3951.07)),
        ({"name": "stft"}, (0, 8000)),
        ({"name": "tempogram"}, None),
    ],
)
def test_bins_have_their_frequencies(feature, hz):
    """Mel, STFT and CQT say Hz, others the number of the bin."""
    found = bin_hz(Feature.model_validate(feature))
    if hz is None:
        assert found is None
    else:
        np.testing.assert_allclose((found[0], found[-1]), hz, rtol=1e-4)


def test_spectrograms_say_hz_and_minutes():
    """The axes of a picture of 90 seconds: frequencies that are apart, times as m:ss."""
    figure = Figure()
    axes = figure.subplots()
    axes.set(xlim=(0, 90), ylim=(0, 128))
    name_bins(axes, Feature())
    name_times(axes)
    figure.canvas.draw()
    assert [text.get_text() for text in axes.get_yticklabels()] == ["4k", "2k", "1k", "500", "200"]
    times = [text.get_text() for text in axes.get_xticklabels()]
    assert {"0:00", "0:30", "1:30"} <= set(times)


def test_clock_rounds_to_seconds():
    """Minutes may have any number of digits, seconds have two."""
    assert [clock(s) for s in (0, 41.6, 59.6, 3600)] == ["0:00", "0:42", "1:00", "60:00"]


def some_answers(n=200, n_labels=6):
    rng = np.random.default_rng(0)
    scores = rng.random((n, n_labels)).round(2)  # with ties
    return scores, rng.random((n, n_labels)) < scores * 0.6


def test_threshold_curve_agrees_with_scikit_learn():
    """Precision, recall and F1 at each threshold, ties included, empty answers as 0."""
    scores, targets = some_answers()
    thresholds = np.array([0.0, 0.25, 0.5, 0.99, 1.0])
    curve = threshold_curve(scores, targets, thresholds)
    for i, threshold in enumerate(thresholds):
        predicted = scores >= threshold
        found = sk.precision_recall_fscore_support(targets, predicted, average="micro", zero_division=0)
        np.testing.assert_allclose((curve.precision[i], curve.recall[i], curve.f1[i]), found[:3], atol=1e-12)


def test_reliability_counts_every_answer_once():
    """Bins by hand: 0 and 1 have a place, empty bins none."""
    found = reliability(np.array([0.0, 0.05, 0.31, 0.35, 1.0]), np.array([False, False, True, False, True]))
    np.testing.assert_array_equal(found.count, [2, 2, 1])
    np.testing.assert_allclose(found.score, [0.025, 0.33, 1.0])
    np.testing.assert_allclose(found.share, [0.0, 0.5, 1.0])
    assert found.error == pytest.approx((2 * 0.025 + 2 * 0.17 + 0.0) / 5)


@pytest.mark.parametrize("kind", ["single", "multi"])
def test_metrics_agree_with_scikit_learn_and_lie_in_their_intervals(kind):
    """Values to 1e-12; the interval is around the value and repeatable."""
    scores, targets = some_answers()
    if kind == "single":
        true, said = scores.argmax(1), (scores + np.random.default_rng(1).random(scores.shape)).argmax(1)
        targets, predicted = np.eye(6, dtype=bool)[true], np.eye(6, dtype=bool)[said]
        expected = {
            "accuracy": sk.accuracy_score(true, said),
            "macro recall": sk.balanced_accuracy_score(true, said),
            "macro-F1": sk.f1_score(true, said, average="macro"),
        }
    else:
        predicted = scores >= 0.5
        expected = {
            "micro-F1": sk.f1_score(targets, predicted, average="micro"),
            "precision": sk.precision_score(targets, predicted, average="micro"),
            "recall": sk.recall_score(targets, predicted, average="micro"),
            "macro-F1": sk.f1_score(targets, predicted, average="macro"),
        }
    found = metric_intervals(predicted, targets, kind, samples=200)
    assert found == metric_intervals(predicted, targets, kind, samples=200)
    assert list(found) == list(expected)
    for name, (value, low, high) in found.items():
        assert value == pytest.approx(expected[name], abs=1e-12)
        assert low < value < high


def test_timeline_is_the_mean_of_the_windows_that_cover():
    """Half-overlapping windows, the last one aligned to the end; a track shorter than its window has one stretch."""
    line = timeline(np.array([[0.0], [0.6], [0.9]]), np.array([0, 5, 7]), frames=10, n_frames=17)
    np.testing.assert_array_equal(line.edges, [0, 5, 7, 10, 15, 17])
    np.testing.assert_allclose(line.scores[:, 0], [0.0, 0.3, 0.5, 0.75, 0.9])
    apart = timeline(np.array([[0.1], [0.9]]), np.array([3, 30]), frames=10, n_frames=99)
    np.testing.assert_array_equal(apart.edges, [3, 13, 30, 40])
    np.testing.assert_array_equal(apart.scores[:, 0], [0.1, np.nan, 0.9])
    assert [(part.begin, part.end) for part in parts(apart, n_named=1)] == [(3, 13), (30, 40)]
    short = timeline(np.array([[0.4]]), np.array([0]), frames=10, n_frames=3)
    np.testing.assert_array_equal(short.edges, [0, 3])


def test_parts_follow_the_music_and_not_one_odd_window():
    """A lasting change makes a part, a slight one of one stretch does not; parts cover the track without gaps."""
    scores = np.array([[0.8, 0.1]] * 5 + [[0.4, 0.5]] + [[0.8, 0.1]] * 3 + [[0.1, 0.9]] * 4)
    found = parts(Timeline(np.arange(len(scores) + 1) * 10, scores), n_named=2)
    assert [(part.begin, part.end, part.labels) for part in found] == [(0, 90, (0, 1)), (90, 130, (1, 0))]
    assert found[1].scores == pytest.approx((0.9, 0.1))
    assert found[0].scores[0] == pytest.approx((0.8 * 8 + 0.4) / 9)


def test_parts_are_the_best_of_all_sequences():
    """Compared with every sequence of labels there is, on random scores."""
    rng = np.random.default_rng(3)
    for _ in range(20):
        scores = rng.dirichlet(np.ones(3), 5)
        gains = np.log(scores)
        best = max(
            product(range(3), repeat=5),
            key=lambda path: (
                sum(gains[i, k] for i, k in enumerate(path)) - 0.7 * sum(a != b for a, b in pairwise(path))
            ),
        )
        found = parts(Timeline(np.arange(6), scores), n_named=1, change_cost=0.7)
        assert [part.labels[0] for part in found for _ in range(part.end - part.begin)] == list(best)
