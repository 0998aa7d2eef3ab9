"""Metadata tokens of tracks as rows of numbers, and which of them a model knows."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tfmusic.core.contract import Contract, rare_token
from tfmusic.records.manifest import Manifest


def known_tokens(manifest: Manifest, splits: Sequence[str], fields: Sequence[str], min_count: int) -> tuple[str, ...]:
    """Returns the tokens of some fields that at least `min_count` tracks of some splits have, sorted.

    A field with rarer values as well has one more token, `field=?`, for all of those.
    """
    tokens, rows = manifest.read_tokens(), manifest.track_rows(splits)
    counts = Counter(token for row in rows for token in (tokens[row] if tokens else ()))
    mine = {token: count for token, count in counts.items() if token.partition("=")[0] in fields}
    often = {token for token, count in mine.items() if count >= min_count}
    return tuple(sorted(often | {rare_token(token) for token in mine if token not in often}))


def metadata_table(manifest: Manifest, contract: Contract) -> np.ndarray | None:
    """Returns the input [n_rows, n_tokens] of every track of the records, or None for a model without metadata."""
    if not contract.metadata:
        return None
    tokens = manifest.read_tokens() or [()] * manifest.n_rows
    return np.array([contract.encode_metadata(some) for some in tokens], np.float32)


@dataclass(frozen=True)
class Metadata:
    """The metadata of all tracks for training.

    Attributes:
        table: [n_rows, n_tokens].
        field: which field each token is of, int [n_tokens].
        dropout: probability that a field is hidden from an example.
    """

    table: np.ndarray
    field: np.ndarray
    dropout: float

    @classmethod
    def of(cls, manifest: Manifest, contract: Contract, dropout: float) -> "Metadata | None":
        """Returns the metadata of the records, or None for a model without."""
        table = metadata_table(manifest, contract)
        if table is None:
            return None
        names = [token.partition("=")[0] for token in contract.metadata]
        return cls(table, np.unique(names, return_inverse=True)[1], dropout)

    def draw(self, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Returns the tokens [batch, n_tokens] of tracks, some fields hidden."""
        shown = rng.random((len(rows), int(self.field.max()) + 1)) >= self.dropout
        return np.asarray(self.table[rows] * shown[:, self.field], np.float32)
