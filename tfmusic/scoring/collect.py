"""Batches of windows through a model to the logits of every track."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np


def collect_logits(batches: Iterable[Any], predict_fn: Callable[[Any], Any]) -> dict[int, np.ndarray]:
    """Returns logits [n_segments, n_labels] by row of the track; padding (row -1) is left out.

    Args:
        batches: objects with `inputs`, what the model takes, and `track` [batch].
        predict_fn: inputs to logits [batch, n_labels].
    """
    parts: dict[int, list[np.ndarray]] = defaultdict(list)
    for batch in batches:
        logits = np.asarray(predict_fn(batch.inputs), np.float32)
        for row, segment in zip(batch.track.tolist(), logits, strict=True):
            if row >= 0:
                parts[row].append(segment)
    return {row: np.stack(segments) for row, segments in parts.items()}
