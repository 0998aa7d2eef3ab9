"""The model card of every export."""

import json
import shutil

import pytest

from tfmusic.cli import main
from tfmusic.core.contract import Contract
from tfmusic.export.card import card_markdown


def export(run, out):
    assert main(["export", str(run), "--out", str(out)]) == 0
    return json.loads((out / "model_card.json").read_text(encoding="utf-8")), (out / "MODEL_CARD.md").read_text(
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
    assert set(card["evaluation"]["metrics"]) == {"micro-F1", "precision", "recall", "macro-F1"}
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
