"""Predictions as a table: one row a track."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from tfmusic.folders import text_cell


def predictions_table(
    track_ids: Sequence[str],
    answers: Sequence[Any],
    scores: np.ndarray,
    labels: Sequence[str],
    targets: Sequence[Any] | None = None,
) -> pd.DataFrame:
    """Returns the columns track_id, answer, target where known, and `score:LABEL` for every label.

    Several tags stand as a JSON list in their cell. A track without an answer, None, has empty cells.
    What a spreadsheet would run as a formula, in a name of a file as well, has a quote before it.
    """
    columns: dict[str, Any] = {
        "track_id": [text_cell(name) for name in track_ids],
        "answer": [_cell(answer) for answer in answers],
    }
    if targets is not None:
        columns["target"] = [_cell(target) for target in targets]
    columns |= {f"score:{label}": scores[:, i].round(6) for i, label in enumerate(labels)}
    return pd.DataFrame(columns)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return text_cell(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
