"""Descriptors of a spectrogram, and the linear head that L-BFGS solves on what a fixed backbone computes."""

import json

import keras
import numpy as np
import pytest
from scipy import stats
from sklearn.linear_model import LogisticRegression

from tfmusic.cli import main
from tfmusic.evaluation.held_out import TrackLogits
from tfmusic.models import build_model
from tfmusic.models.surgery import split_at_embedding
from tfmusic.training import linear

SOLVED = (
    "training.optimizer=lbfgs", "training.epochs=1", "training.freeze_epochs=1", "training.cache_frozen=true",
    "metadata.fields=[]", "augment.mixup_alpha=0", "training.label_smoothing=0", "training.ema_momentum=0",
    "training.tensorboard=false",
)  # fmt: skip


def tracks_of(x, y, n_windows=2):
    """Returns tracks whose windows lie around the rows of x [n_tracks, n_dims], with labels y [n_tracks, n_labels]."""
    rng = np.random.default_rng(1)
    windows = []
    for row in x:
        noise = rng.normal(0, 0.1, (n_windows, len(row)))
        windows.append((row + noise - noise.mean(0)).astype(np.float32))
    return TrackLogits(tuple(range(len(x))), tuple(map(str, range(len(x)))), tuple(windows), np.asarray(y, bool))


def head_of(n_dims, n_labels):
    embedding = keras.Input((n_dims,))
    x = keras.layers.BatchNormalization(center=False, scale=False)(embedding)
    return keras.Model(embedding, keras.layers.Dense(n_labels)(keras.layers.Dropout(0.5)(x)))


@pytest.mark.parametrize("kind", ["single", "multi"])
@pytest.mark.parametrize("n_dims", [5, 200])
def test_solution_is_that_of_scikit_learn(monkeypatch, kind, n_dims):
    """More tracks than dimensions or fewer: the logits of penalised logistic regression on standardised features."""
    rng = np.random.default_rng(0)
    x = rng.normal(0, 3, (60, n_dims)) + 7
    classes = (x[:, 0] > 7).astype(int) + (x[:, 1] > 8)
    y = np.eye(3)[classes] if kind == "single" else np.stack([classes > 0, classes > 1, x[:, 2] > 6], 1)
    monkeypatch.setattr(linear, "STRENGTHS", (0.1,))
    head = head_of(n_dims, 3)
    linear.solve_head(head, tracks_of(x, y), np.zeros(60, int), kind)
    z = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-3)
    options = {"C": 10 / 60, "tol": 1e-8, "max_iter": 5000}
    if kind == "single":
        wanted = LogisticRegression(**options).fit(z, classes).decision_function(z)
    else:
        wanted = np.stack([LogisticRegression(**options).fit(z, column).decision_function(z) for column in y.T], 1)
    found = head.predict(x.astype(np.float32), verbose=0)
    if kind == "single":  # a constant on all logits says nothing
        found, wanted = (logits - logits.mean(1, keepdims=True) for logits in (found, wanted))
    np.testing.assert_allclose(found, wanted, atol=5e-3)


def test_strength_suits_the_inner_folds(monkeypatch):
    """Weights of features that know the labels are held down little, those of labels by chance a lot."""
    rng = np.random.default_rng(0)
    x, folds = rng.normal(size=(200, 30)), np.arange(200) % 4
    chosen = {}
    for name, classes in (("known", (x[:, 0] + x[:, 1] > 0).astype(int)), ("chance", rng.integers(0, 2, 200))):
        monkeypatch.setattr(linear.console, "say", lambda line, name=name: chosen.setdefault(name, line))
        linear.solve_head(head_of(30, 2), tracks_of(x, np.eye(2)[classes]), folds, "single")
    strength = {name: float(line.split(" by ")[1].split(",")[0]) for name, line in chosen.items()}
    assert strength["known"] < 0.2
    assert strength["chance"] >= 3
    assert all("4 inner folds" in line for line in chosen.values())


def test_inner_folds_are_those_of_the_records():
    """Several splits are the inner folds; of one split, artists decide, and a track without artist by itself."""
    assert linear.inner_folds(["a", "c", "a"], [frozenset()] * 3, "xyz").tolist() == [0, 1, 0]
    groups = [frozenset({f"artist {n // 3}"}) for n in range(30)]
    folds = linear.inner_folds(["train"] * 30, groups, [str(n) for n in range(30)])
    assert all(len(set(folds[3 * n : 3 * n + 3])) == 1 for n in range(10))
    alone = linear.inner_folds(["train"] * 60, [frozenset()] * 60, [f"{n // 2}{'+copy1' * (n % 2)}" for n in range(60)])
    assert len(set(alone)) == 4
    assert (alone[::2] == alone[1::2]).all()


def test_descriptors_are_the_statistics_that_they_name():
    """Moments, extremes, steps and covariances of one band for each bin, and modulation where a band pulses."""
    frames, n_bins = 128, 16
    rng = np.random.default_rng(0)
    codes = rng.integers(100, 120, (1, frames, n_bins))
    codes[0, :, 3] = 110 + 60 * np.sin(2 * np.pi * 8 * np.arange(frames) / frames)
    model = build_model("descriptors", frames=frames, n_bins=n_bins, n_outputs=2)
    found = split_at_embedding(model)[0].predict(codes.astype(np.uint8), verbose=0)[0]
    x = codes[0].astype(np.uint8).astype(float)
    parts = np.split(found, np.cumsum([n_bins] * 8 + [16, 256, 16]))
    steps = np.diff(x, axis=0)
    for part, wanted in zip(
        parts[:8],
        (
            x.mean(0), np.log(x.var(0) + 1e-3), stats.skew(x), np.log(stats.kurtosis(x, fisher=False) + 1e-3),
            x.max(0), -x.min(0), np.log((steps**2).mean(0) + 1e-3), np.log(np.maximum(steps, 0).mean(0) + 1e-3),
        ),
        strict=True,
    ):  # fmt: skip
        np.testing.assert_allclose(part, wanted, rtol=2e-3, atol=2e-3)
    cosines = np.cos(np.pi / n_bins * np.outer(np.arange(n_bins) + 0.5, np.arange(n_bins))) / np.sqrt(n_bins)
    cepstra = x @ cosines
    np.testing.assert_allclose(parts[8], cepstra.mean(0), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(parts[9].reshape(16, 16), np.cov(cepstra.T, bias=True), rtol=1e-3, atol=0.05)
    rhythm = parts[11][: n_bins * 12].reshape(n_bins, 12)
    n_waves = int(0.32 * frames)
    edges = np.unique(np.round(np.geomspace(1, n_waves + 1, 13)))
    assert rhythm[3].argmax() == np.flatnonzero(edges <= 8)[-1]
    assert rhythm[3].max() > rhythm[[0, 1, 2, 4, 5]].max() + 3


@pytest.fixture(scope="module")
def solved(records, tmp_path_factory):
    """A run of descriptors on the fixture's records, one fold."""
    run = tmp_path_factory.mktemp("solved") / "run"
    words = ["model.name=descriptors", "model.width=8", "model.dropout=0", "input.normalize=none"]
    assert main(["fit", "q2", "--records", str(records), "--out", str(run), *words, *SOLVED, "training.fold=0"]) == 0
    return run


def test_run_is_like_any_other(solved, records, tmp_path, capsys):
    """Solved in one epoch and scored, it is evaluated and exported; the fixed matrices stay as they are."""
    lines = [json.loads(line) for line in (solved / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1]
    assert main(["evaluate", str(solved), "--records", str(records)]) == 0
    assert "micro-F1" in capsys.readouterr().out
    model = keras.saving.load_model(solved / "checkpoints" / "best.keras", compile=False)
    waves = np.asarray(model.get_layer("fixed_waves_of_rhythm").kernel)
    assert np.abs(waves).max() > 0
    assert np.abs(np.asarray(model.get_layer("logits").kernel)).max() > 0
    again = tmp_path / "again"
    words = ["model.name=descriptors", "model.width=8", "model.dropout=0", "input.normalize=none"]
    assert main(["fit", "q2", "--records", str(records), "--out", str(again), *words, *SOLVED, "training.fold=0"]) == 0
    other = keras.saving.load_model(again / "checkpoints" / "best.keras", compile=False)
    for one, two in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.name=descriptors", *SOLVED, "training.epochs=3"], "training.epochs=3"),
        (["model.name=descriptors", *SOLVED, "metadata.fields=[genres]"], "metadata.fields"),
        (["model.name=resnet18", *SOLVED], "freeze_epochs"),
        (["model.name=mlp", *SOLVED], "model.hidden=0"),
    ],
)
def test_what_cannot_be_solved_is_refused(records, tmp_path, capsys, words, message):
    """One line names the key; nothing is written."""
    run = tmp_path / "run"
    assert main(["fit", "q2", "--records", str(records), "--out", str(run), *words, "training.fold=0"]) == 2
    assert message in capsys.readouterr().err
    assert not run.exists()
