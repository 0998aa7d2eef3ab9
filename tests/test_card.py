"""The model card of every export."""

import json
import re
import shutil

import numpy as np
import pytest
import yaml

from tfmusic.cli import main
from tfmusic.core.contract import Contract
from tfmusic.core.feature import Feature
from tfmusic.export.card import _computed_as, card_markdown
from tfmusic.features.read import compute_from_samples
from tfmusic.scoring.ranking import NAMES


def export(run, out):
    assert main(["export", str(run), "--out", str(out)]) == 0
    return json.loads((out / "model_card.json").read_text(encoding="utf-8")), (out / "README.md").read_text(
        encoding="utf-8"
    )


@pytest.fixture(scope="module")
def evaluated(trained, tmp_path_factory):
    """An evaluated run, its card and the card's text."""
    folder = tmp_path_factory.mktemp("card")
    shutil.copytree(trained, folder / "run")
    assert main(["evaluate", str(folder / "run")]) == 0
    return folder / "run", *export(folder / "run", folder / "export")


@pytest.mark.slow
def test_card_says_what_the_evaluation_said(evaluated):
    """Task, labels, contract, data, metrics with intervals, versions; no folder of the machine; both forms agree."""
    run, card, text = evaluated
    report = json.loads((run / "evaluation" / "report.json").read_text(encoding="utf-8"))
    contract = Contract.load(run / "contract.json")
    used = json.loads((run / "records.json").read_text(encoding="utf-8"))
    assert card["labels"] == list(contract.labels)
    assert card["input"]["feature"] == contract.feature.model_dump()
    assert card["data"]["training_tracks"] == len(used["training_tracks"])
    assert card["evaluation"]["metrics"] == report["metrics"]
    assert set(card["evaluation"]["metrics"]) == {"micro-F1", "precision", "recall", "macro-F1", *NAMES}
    assert card["prediction"] == {"aggregator": "mean", "threshold": 0.5, "min_tags": 0, "max_tags": None}
    assert card["versions"]["trained_with"]["packages"]["tfmusic"] == card["versions"]["exported_with"]["tfmusic"]
    value, low, high = report["metrics"]["micro-F1"]
    assert f"| micro-F1 | {value:.3f} | {low:.3f} to {high:.3f} |" in text
    assert all(label in text for label in contract.labels)
    for folder in (str(run.parent), used["folder"]):
        assert folder not in text + json.dumps(card)


@pytest.mark.slow
def test_card_of_a_run_without_evaluation_says_so(trained, tmp_path):
    """No metric is made up."""
    run = tmp_path / "run"
    shutil.copytree(trained, run, ignore=shutil.ignore_patterns("evaluation"))
    card, text = export(run, tmp_path / "export")
    assert card["evaluation"] is None
    assert "Not evaluated." in text
    assert any("not been evaluated" in limit for limit in card["limits"])


@pytest.mark.parametrize("label", ["<b>x</b>", "a|b", "[x](y)", "가요곡/엔카\n# x"])
def test_labels_cannot_change_the_page(evaluated, label):
    """Signs of Markdown and HTML in a label are shown, not followed."""
    text = card_markdown(evaluated[1] | {"labels": [label]})
    assert "<b>" not in text.replace("\\<b\\>", "")
    assert "\n# x" not in text
    assert "a|b" not in text
    assert "[x](y)" not in text.replace("\\[x\\](y)", "")


def test_the_card_begins_with_the_front_matter_of_the_hub(evaluated):
    """YAML that a model hub reads: task, tags, and every metric with its value."""
    _, card, text = evaluated
    _, front, body = text.split("---\n", 2)
    values = yaml.safe_load(front)
    assert values["pipeline_tag"] == "audio-classification" and values["library_name"] == "keras"
    metrics = {one["name"]: one["value"] for one in values["model-index"][0]["results"][0]["metrics"]}
    assert metrics == {name: pytest.approx(value[0], abs=1e-4) for name, value in card["evaluation"]["metrics"].items()}
    assert body.lstrip().startswith("# q2: model card")


def test_the_call_of_the_card_gives_the_spectrogram():
    """The librosa call that the card states computes what the model takes."""
    librosa = pytest.importorskip("librosa")
    rng = np.random.default_rng(0)
    for name, n_bins in (("mel", 40), ("log-mel", 40), ("stft", 257)):
        sizes = {"sample_rate_hz": 8000, "n_fft": 512, "hop_length": 200, "n_bins": n_bins}
        feature = Feature.model_validate({"name": name, **sizes})
        y = rng.normal(0, 0.1, 9000).astype(np.float32)
        text = _computed_as(feature)
        call = re.search(r"(?:librosa|abs)[\w.]*\(.*\)(?:\*\*2)?(?= of librosa)", text)[0]
        ours, theirs = compute_from_samples(y, 8000, feature), eval(call, {"librosa": librosa, "y": y, "abs": np.abs})
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3 if name == "log-mel" else 1e-6)
