"""A model that moves between the two stacks: `python -m tests.stacks save|load FOLDER`, run by the other stack."""

import sys
from pathlib import Path

import keras
import numpy as np

from tfmusic.models import build_model
from tfmusic.pretrained.transplant import keras_file_weights, transplant

CODES = np.random.default_rng(0).integers(0, 256, (3, 64, 32), np.uint8)


def a_model(seed):
    """Returns a small model whose weights, normalisation included, are all of its own."""
    keras.utils.set_random_seed(seed)
    model = build_model("resnet18", frames=64, n_bins=32, n_outputs=3, width=4)
    rng = np.random.default_rng(seed)
    model.set_weights([weight + rng.uniform(0, 0.1, weight.shape) for weight in model.get_weights()])
    return model


def save(folder):
    """Writes a model, and beside it what it answers."""
    model = a_model(seed=5)
    model.save(folder / "model.keras")
    np.save(folder / "logits.npy", np.asarray(model(CODES, training=False)))


def load(folder):
    """Takes over the weights of a saved model by name, and compares the answers."""
    model = a_model(seed=9)
    moved = transplant(model, keras_file_weights(folder / "model.keras"), with_head=True)
    assert not moved.skipped
    np.testing.assert_allclose(np.asarray(model(CODES, training=False)), np.load(folder / "logits.npy"), rtol=1e-5)


if __name__ == "__main__":
    {"save": save, "load": load}[sys.argv[1]](Path(sys.argv[2]))
