"""Why a model answers so: occlusion finds what the answer rests on, and the answer is that of `predict`."""

import json

import numpy as np
import pytest

from tests.test_report import check_stands_alone
from tfmusic.cli import main
from tfmusic.core.contract import Contract
from tfmusic.core.feature import Feature
from tfmusic.core.scale import Scale
from tfmusic.inference.explain import explain, n_passes
from tfmusic.inference.predictor import TrackModelPredictor
from tfmusic.scoring.aggregate import to_scores
from tfmusic.scoring.track_scorer import TrackScorer


def listener(frames=16, hop=8, *, kind="single"):
    """A model that hears one thing: the power of bins 48 to 63 speaks for `high`, that of bins 0 to 15 for `low`."""
    contract = Contract(
        "t", kind, ("low", "high", "가"), Feature(n_bins=64),
        Scale("db", -60.0, 30.0), "uint8", frames, hop,
    )  # fmt: skip

    def scores(mel, tokens):
        last = max(mel.shape[1] - frames, 0)
        starts = np.unique(np.append(np.arange(0, last + 1, hop), last))
        heard = np.stack([mel[:, start : start + frames].mean(1) for start in starts])
        logits = np.stack([heard[:, :16].sum(1), heard[:, 48:].sum(1), np.full(len(starts), -3.0)], 1)
        segments = to_scores(logits / 16, kind)
        return {"track_scores": segments.mean(0), "window_scores": segments, "window_starts": starts}

    return TrackModelPredictor(contract, TrackScorer(kind=kind), scores)


def test_occlusion_finds_the_band_and_the_moment():
    """A loud chord in the highest quarter, in the second half alone, is what the label rests on."""
    mel = np.ones((64, 100), np.float32)
    mel[48:, 60:70] = 30.0
    predictor, passes = listener(), []
    found = explain(predictor, mel, "a", (), lambda: passes.append(1))
    importance = found.importance
    assert importance.labels == (1,)
    assert set(np.flatnonzero(importance.bands[0] > 0.05)) == {6, 7}
    middle = (importance.slice_edges[:-1] + importance.slice_edges[1:]) / 2
    is_loud = (middle > 60) & (middle < 70)
    assert importance.slices[0, is_loud].min() > 0.1
    np.testing.assert_allclose(importance.slices[0, ~is_loud], 0.0, atol=1e-6)
    assert len(passes) == n_passes(100, predictor.contract) == 1 + 8 + 16


def test_parts_name_what_changes():
    """Low music, then high music: two parts, whose border is within a window of the change."""
    mel = np.ones((64, 100), np.float32)
    mel[:16, :50], mel[48:, 50:] = 9.0, 9.0
    found = explain(listener(), mel, "a", (), lambda: None)
    told = found.to_dict()["parts"]
    assert [next(iter(part["labels"])) for part in told] == ["low", "high"]
    assert abs(told[0]["end_s"] - 50 * 0.032) <= 16 * 0.032
    assert (told[0]["begin_s"], told[-1]["end_s"]) == (0, 3.2)


def test_short_tracks_are_explained():
    """A track shorter than a window, of one frame even, has one part and finite weights."""
    for n_frames in (1, 7):
        found = explain(listener(kind="multi"), np.ones((64, n_frames), np.float32), "a", (), lambda: None)
        assert [(part["begin_s"], part["end_s"]) for part in found.to_dict()["parts"]] == [(0, n_frames * 0.032)]
        assert np.isfinite(found.importance.slices).all()


@pytest.fixture(scope="module")
def mel(music):
    return min((music / "q2/test/test_data/mel_spectrogram").glob("*.npy"))


@pytest.mark.slow
def test_explain_gives_the_answer_of_predict(trained, mel, tmp_path, capsys):
    """JSON, page and picture of one track; scores as `predict` has them, times that cover the track."""
    out = tmp_path / "a.json"
    assert main(["explain", str(trained), str(mel), "--out", str(out)]) == 0
    told = json.loads(out.read_text(encoding="utf-8"))
    assert main(["predict", str(trained), str(mel), "--out", str(tmp_path / "p.csv")]) == 0
    row = (tmp_path / "p.csv").read_text(encoding="utf-8").splitlines()[1]
    assert told["track_id"] == mel.stem
    expected = [float(value) for value in row.split(",")[-1 - len(told["scores"]) : -1]]
    np.testing.assert_allclose(list(told["scores"].values()), expected, atol=1e-5)
    n_frames = np.load(mel).shape[-1]
    assert told["timeline"]["edges_s"][-1] == pytest.approx(n_frames * 512 / 16000, abs=1e-3)
    assert told["parts"][0]["begin_s"] == 0
    assert told["aggregator"] == "mean"
    assert "occlusion" in told["importance"]["method"]
    for name in ("a.html", "a.png"):
        assert main(["explain", str(trained), str(mel), "--out", str(tmp_path / name)]) == 0
    page = check_stands_alone((tmp_path / "a.html").read_text(encoding="utf-8"))
    assert next(iter(told["parts"][0]["labels"])) in page.text
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_explained_is_said(trained, music, tmp_path, capsys):
    """Another ending, a folder of many tracks, a track that is not there."""
    folder = str(music / "q2" / "test")
    assert main(["explain", str(trained), folder, "--out", "a.pdf"]) == 2
    assert "--out must end in .html or .png or .json" in capsys.readouterr().err
    assert main(["explain", str(trained), folder]) == 2
    assert "name one with --track" in capsys.readouterr().err
    assert main(["explain", str(trained), folder, "--track", "x"]) == 2
    assert "no track x" in capsys.readouterr().err
