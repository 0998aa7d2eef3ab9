"""Losses for several tags, and how many tags an answer may have."""

import keras
import numpy as np
import pytest

from tfmusic.cli import main
from tfmusic.scoring.metrics import decide
from tfmusic.training.optimizer import AsymmetricLoss, SoftF1Loss

LOGITS = np.array([[2.0, -1.0, -4.0], [-3.0, 0.5, 1.0]], np.float32)
TARGETS = np.array([[1, 0, 0], [0, 1, 0]], np.float32)


def test_asymmetric_loss_is_the_papers():
    """Positives as in cross-entropy; negatives weighted by (p - m)^4, nothing below the margin."""
    p = 1 / (1 + np.exp(-LOGITS.astype(np.float64)))
    shifted = np.maximum(p - 0.05, 0)
    want = -(TARGETS * np.log(p) + (1 - TARGETS) * shifted**4 * np.log(1 - shifted)).mean()
    assert float(AsymmetricLoss()(TARGETS, LOGITS)) == pytest.approx(want, rel=1e-5)
    entropy = float(keras.losses.BinaryCrossentropy(from_logits=True)(TARGETS, LOGITS))
    assert float(AsymmetricLoss(focus=0.0, margin=0.0)(TARGETS, LOGITS)) == pytest.approx(entropy, rel=1e-5)


def test_soft_f1_is_f1_where_scores_are_decisions():
    """With scores of 0 and 1 the part of F1 is 1 - F1, and perfect answers have no loss."""
    sure = np.where(TARGETS > 0, 60.0, -60.0).astype(np.float32)
    assert float(SoftF1Loss()(TARGETS, sure)) == pytest.approx(0.0, abs=1e-5)
    wrong = sure.copy()
    wrong[1, 2] = 60.0  # 2 hits, 3 marked, 2 true: F1 .8; the entropy of one cell of three is 60 / 3 of one example
    assert float(SoftF1Loss()(TARGETS, wrong)) == pytest.approx(0.2 + 0.5 * 60 / 6, rel=1e-4)


def test_limits_fill_up_and_cut_off_by_score():
    """Fewer than min_tags: the highest scores; more than max_tags: the highest of them; ties go to the first."""
    scores = np.array([[0.1, 0.4, 0.3], [0.9, 0.6, 0.7], [0.2, 0.2, 0.2]])
    np.testing.assert_array_equal(decide(scores, "multi"), scores >= 0.5)
    assert decide(scores, "multi", min_tags=1).tolist() == [[False, True, False], [True] * 3, [True, False, False]]
    assert decide(scores, "multi", max_tags=2).tolist() == [[False] * 3, [True, False, True], [False] * 3]


@pytest.mark.parametrize("loss", ["asymmetric", "soft_f1"])
def test_losses_train(records, music, tmp_path, loss):
    """An epoch with each ends with a model whose every answer has at least a tag, in the run and in the export."""
    import json

    from tests.conftest import fit_small

    out = tmp_path / "run"
    assert fit_small("q2", records, out, f"training.loss={loss}", "training.epochs=1", "evaluation.min_tags=2") == 0
    assert main(["export", str(out)]) == 0
    for model, name in ((out, "a"), (out / "export", "b")):
        assert main(["predict", str(model), str(music / "q2" / "test"), "--out", str(tmp_path / f"{name}.json")]) == 0
        assert min(map(len, json.loads((tmp_path / f"{name}.json").read_text()))) >= 2
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_contradicting_limits_are_refused(capsys):
    """max_tags below min_tags names both."""
    assert main(["config", "validate", "q2", "evaluation.min_tags=3", "evaluation.max_tags=2"]) == 2
    assert "evaluation.max_tags must be at least min_tags=3" in capsys.readouterr().err
