"""Losses for several tags that Keras does not have, on logits [batch, n_tags]."""

from typing import Any

import keras

from tfmusic.models import ops


class AsymmetricLoss(keras.losses.Loss):
    """Binary cross-entropy that lets easy negatives go (Ridnik et al. 2021, arXiv 2009.14119).

    Of a negative with probability p the loss is weighted by (p - margin)^focus, and is 0 below the margin; positives
    keep theirs.
    """

    def __init__(self, *, focus: float = 4.0, margin: float = 0.05, label_smoothing: float = 0.0) -> None:
        super().__init__(name="asymmetric")
        self.focus, self.margin, self.label_smoothing = focus, margin, label_smoothing

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Returns the loss of every example, [batch]."""
        y_true = _smooth(ops.cast(y_true, "float32"), self.label_smoothing)
        z = ops.cast(y_pred, "float32")
        shifted = ops.maximum(ops.sigmoid(z) - self.margin, 0.0)
        negative = ops.power(shifted, self.focus) * ops.log(ops.maximum(1.0 - shifted, 1e-7))
        return -ops.mean(y_true * ops.log_sigmoid(z) + (1.0 - y_true) * negative, axis=-1)


class SoftF1Loss(keras.losses.Loss):
    """1 - micro-F1 of a batch with scores in place of decisions, and half of binary cross-entropy to start it off.

    Alone it stays where all scores are near 0, since there its gradient is.
    """

    def __init__(self, *, label_smoothing: float = 0.0) -> None:
        super().__init__(name="soft_f1")
        self.label_smoothing = label_smoothing

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Returns the loss of every example, [batch]; the part of F1 is the same for all."""
        y_true = _smooth(ops.cast(y_true, "float32"), self.label_smoothing)
        z = ops.cast(y_pred, "float32")
        scores = ops.sigmoid(z)
        f1 = 2.0 * ops.sum(y_true * scores) / (ops.sum(y_true) + ops.sum(scores) + 1e-7)
        entropy = -ops.mean(y_true * ops.log_sigmoid(z) + (1.0 - y_true) * ops.log_sigmoid(-z), axis=-1)
        return 1.0 - f1 + 0.5 * entropy


def _smooth(targets: Any, share: float) -> Any:
    return targets * (1.0 - share) + 0.5 * share if share else targets
