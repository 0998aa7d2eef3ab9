"""musicnn behind a frontend inside the model, its weights from the store, its frozen backbone."""

import hashlib
import json
from types import SimpleNamespace
from unittest.mock import MagicMock

import keras
import numpy as np
import pandas as pd
import pytest

from tests.conftest import fit_small
from tests.test_pretrained import as_wheel, checkpoint  # noqa: F401 - a fixture
from tfmusic.cli import main
from tfmusic.core.feature import Feature
from tfmusic.core.rundir import RunDir
from tfmusic.core.scale import Encoder, Scale
from tfmusic.features.filterbanks import filterbank_map, map_filterbank
from tfmusic.models.frontends import MusicnnFrontend, Pcen, codes_to_image, set_frontend, smoothing
from tfmusic.models.musicnn import FEATURE
from tfmusic.pretrained import musicnn
from tfmusic.training import job
from tfmusic.training.frozen import split_backbone

AIRUSH = Feature(name="mel")
ASKED = (
    "model.name=musicnn_mlp", "model.width=64", "model.weights=musicnn", "model.hidden=16", "input.frontend=musicnn",
    "input.frames=94", "input.hop_frames=94", "training.freeze_epochs=2", "training.epochs=2",
    "training.cache_frozen=true", "record.segments=first", "evaluation.batch_size=16",
)  # fmt: skip


@pytest.fixture(scope="module")
def short(music, tmp_path_factory):
    """Folder of q2 records with the first segment of every track: musicnn's network takes its time."""
    out = tmp_path_factory.mktemp("records") / "q2"
    build = ["build-records", "q2", "--data", str(music), "--out", str(out), "--workers", "1"]
    assert main([*build, "record.segments=first"]) == 0
    return out


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("uint8", 0.05)])
def test_pcen_in_the_graph_is_that_of_librosa(dtype, tolerance, tmp_path):
    """Codes become PCEN of their power, begun with the first frame as its past; saved and loaded."""
    librosa = pytest.importorskip("librosa")
    mel = np.random.default_rng(0).gamma(0.4, 2.0, (128, 157)).astype(np.float32)
    measured = Scale.measure("db", [mel])
    codes = Encoder(measured, dtype).encode(mel)
    made = Pcen(smoothing(157, 31.25), measured)
    inputs, image = codes_to_image((157, 128), dtype=dtype, frontend=made)
    model = keras.Model(inputs, image)
    set_frontend(model, made.matrix)
    model.save(tmp_path / "m.keras")
    model = keras.saving.load_model(tmp_path / "m.keras", compile=False, safe_mode=True)
    power = 10.0 ** (measured.apply(mel.astype(np.float64)) / 10.0) * 2**31  # what lies 90 dB down is cut off
    share = made.matrix[1, 1]
    want = librosa.pcen(power, sr=16000, hop_length=512, zi=(1 - share) * power[:, :1]).T
    np.testing.assert_allclose(np.asarray(model(codes[None]))[0, :, :, 0], want, atol=tolerance)


@pytest.fixture
def stored(checkpoint, tmp_path, monkeypatch):  # noqa: F811
    """The store with a checkpoint that the test made, in the place of the published one."""
    folder = tmp_path / "weights" / "musicnn-0.1.0"
    folder.mkdir(parents=True)
    (folder / "MSD_musicnn").symlink_to(checkpoint[0])
    monkeypatch.setenv("TFMUSIC_WEIGHTS", str(tmp_path / "weights"))


@pytest.mark.parametrize(
    ("scale", "dtype", "tolerance"),
    [
        ("db", "uint8", 0.03),  # half a code step is .18 dB
        ("db", "float32", 2e-3),
        ("identity", "float32", 1e-4),
        ("log10_1p10", "float32", 1e-4),
        ("log10_1p10000", "float32", 1e-4),
        ("log10_1p10000", "uint8", 0.03),
    ],
)
def test_frontend_in_the_graph_is_the_frontend_in_numpy(scale, dtype, tolerance, tmp_path):
    """Codes of every scale become the spectrogram that `features.frontend` makes of the power, saved and loaded."""
    mel = np.random.default_rng(0).gamma(0.4, 2.0, (128, 94)).astype(np.float32)
    want = np.log10(10000.0 * map_filterbank(mel, AIRUSH, FEATURE) + 1.0).T
    measured = Scale.measure(scale, [mel])
    codes = Encoder(measured, dtype).encode(mel)
    made = MusicnnFrontend(filterbank_map(AIRUSH, FEATURE), 2, 10000.0, measured)
    inputs, image = codes_to_image((94, 128), dtype=dtype, frontend=made)
    model = keras.Model(inputs, image)
    set_frontend(model, made.matrix)
    model.save(tmp_path / "m.keras")
    model = keras.saving.load_model(tmp_path / "m.keras", compile=False, safe_mode=True)
    got = model.predict_on_batch(codes[None])[0, ..., 0]
    assert got.shape == (187, 96)
    np.testing.assert_allclose(got, want, atol=tolerance)
    assert not model.trainable_weights


def test_fit_on_a_frozen_backbone_and_export(stored, short, music, tmp_path, capsys):
    """The head learns, the backbone and the frontend stay; run and SavedModel give the same answers."""
    out = tmp_path / "run"
    assert fit_small("q2", short, out, *ASKED) == 0
    assert "layers loaded" in capsys.readouterr().out
    best = keras.saving.load_model(RunDir(out).checkpoint("best"), compile=False)
    from tfmusic.pretrained.musicnn import musicnn_weights

    theirs = musicnn_weights(musicnn.stored_musicnn())
    for name in ("timbral1_conv", "mid3_bn", "input_bn"):
        for mine, their in zip(best.get_layer(name).get_weights(), theirs[name], strict=True):
            np.testing.assert_array_equal(mine, their)
    np.testing.assert_array_equal(best.get_layer("frontend").get_weights()[0], filterbank_map(AIRUSH, FEATURE).T)
    losses = [json.loads(line)["loss"] for line in RunDir(out).metrics.read_text().splitlines()]
    assert losses[1] < losses[0]
    assert main(["export", str(out)]) == 0
    for model, name in ((out, "a"), (out / "export", "b")):
        assert main(["predict", str(model), str(music / "q2" / "test"), "--out", str(tmp_path / f"{name}.csv")]) == 0
    a, b = (pd.read_csv(tmp_path / f"{name}.csv").select_dtypes("number") for name in "ab")
    np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.slow
def test_cached_and_live_validation_agree_and_resume_goes_on(stored, short, tmp_path):
    """The metric on cached embeddings is that of the whole model; stopped after an epoch and resumed, the same end."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    asked = [*ASKED, "training.select=last", "training.schedule=constant"]
    assert fit_small("q2", short, whole, *asked) == 0
    assert fit_small("q2", short, parts, *asked, "training.epochs=1") == 0
    assert fit_small("q2", short, parts, *asked, flags=("--resume",)) == 0
    last = [keras.saving.load_model(RunDir(out).checkpoint("last"), compile=False) for out in (whole, parts)]
    for one, other in zip(*(model.get_weights() for model in last), strict=True):
        np.testing.assert_array_equal(one, other)
    logged = json.loads(RunDir(whole).metrics.read_text().splitlines()[-1])["validation"]
    assert main(["evaluate", str(whole)]) == 0
    assert json.loads((whole / "evaluation" / "report.json").read_text())["value"] == pytest.approx(logged, abs=0.02)


@pytest.mark.slow
def test_the_backbone_is_freed_after_its_rest(stored, short, tmp_path):
    """After the frozen epochs on cached embeddings the backbone learns, on windows again."""
    out = tmp_path / "run"
    assert fit_small("q2", short, out, *ASKED, "training.freeze_epochs=1") == 0
    from tfmusic.pretrained.musicnn import musicnn_weights

    theirs = musicnn_weights(musicnn.stored_musicnn())["mid1_conv"][0]
    mine = (
        keras.saving.load_model(RunDir(out).checkpoint("last"), compile=False).get_layer("mid1_conv").get_weights()[0]
    )
    assert np.abs(mine - theirs).max() > 0
    assert np.abs(mine - theirs).max() < 0.1


def test_a_cached_head_is_made_under_the_precision_of_the_config(monkeypatch):
    """A head made under mixed_float16 scales its loss, as the whole model after it does."""
    policies = []
    monkeypatch.setattr(job, "FrozenBackbone", lambda *_, **__: policies.append(keras.mixed_precision.global_policy()))
    config = SimpleNamespace(training=SimpleNamespace(precision="mixed_float16"))
    job.Job._freeze(MagicMock(config=config))
    assert [policy.name for policy in policies] == ["mixed_float16"]


def test_a_backbone_that_must_learn_cannot_rest():
    """A model without a pooled vector, or with new layers before it, is refused with the key to change."""
    from tfmusic.errors import ConfigError
    from tfmusic.models import build_model

    model = build_model("crnn", frames=64, n_bins=32, n_outputs=3, width=8, pooling="last")
    with pytest.raises(ConfigError, match=r"training\.cache_frozen is for models that pool"):
        split_backbone(model, [])
    model = build_model("resnet18", frames=64, n_bins=32, n_outputs=3, width=4)
    with pytest.raises(ConfigError, match=r"pretrained to its last layer\. Not loaded: stem_conv"):
        split_backbone(model, [])


def test_weights_must_be_the_published_ones(checkpoint, tmp_path, monkeypatch, capsys):  # noqa: F811
    """Another checkpoint, no file, no argument: one line, and the store stays empty."""
    monkeypatch.setenv("TFMUSIC_WEIGHTS", str(tmp_path / "weights"))
    wheel = as_wheel(checkpoint[0], tmp_path / "musicnn-0.1.0-py3-none-any.whl")
    for arguments, message in (
        ([str(wheel)], "musicnn 0.1.0, sha256"),
        ([str(tmp_path / "none.whl")], "pip download --no-deps --only-binary=:all: musicnn==0.1.0"),
        ([], "or --download"),
        ([str(wheel), "--download"], "either the wheel"),
    ):
        assert main(["weights", "musicnn", *arguments]) == 2
        assert message in capsys.readouterr().err
    assert not list((tmp_path / "weights").glob("*"))
    with pytest.raises(musicnn.RunError, match="`tfmusic weights musicnn`"):
        musicnn.stored_musicnn()


def test_weights_are_stored_with_their_licence(tmp_path, monkeypatch, capsys):
    """Files with the right sha256 are copied, from the wheel and from a folder."""
    content = {name: name.encode() for name in musicnn.FILES}
    monkeypatch.setattr(musicnn, "FILES", {name: hashlib.sha256(data).hexdigest() for name, data in content.items()})
    for name, data in content.items():
        (tmp_path / "got" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "got" / name).write_bytes(data)
    monkeypatch.setenv("TFMUSIC_WEIGHTS", str(tmp_path / "weights"))
    assert main(["weights", "musicnn", str(tmp_path / "got")]) == 0
    assert "ISC licence" in capsys.readouterr().out
    folder = musicnn.stored_musicnn()
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == set(content)


def test_musicnn_wants_the_frontend_or_its_own_spectrogram(stored, short, tmp_path, capsys):
    """Without the frontend the weights would misread 128 bins; the line names the key."""
    arguments = [one for one in ASKED if not one.startswith("input.frontend")]
    assert fit_small("q2", short, tmp_path / "run", *arguments) == 2
    assert "or set input.frontend=musicnn" in capsys.readouterr().err


def test_options_of_other_models_are_refused(records, tmp_path, capsys):
    """hidden and stochastic_depth are for the models that have them."""
    assert fit_small("q2", records, tmp_path / "run", "model.hidden=16") == 2
    assert (
        "model.hidden must be left out for model.name=cnn1d; models that take it: musicnn_mlp"
        in capsys.readouterr().err
    )
    assert fit_small("q2", records, tmp_path / "run", "model.name=cnn1d", "model.stochastic_depth=0.1") == 2
    assert "model.stochastic_depth must be left out for model.name=cnn1d" in capsys.readouterr().err


def test_a_frozen_backbone_beside_metadata(stored, short, music, tmp_path):
    """The head reads metadata while the backbone rests; the model is saved after every epoch and answers whole."""
    out = tmp_path / "run"
    assert fit_small("q2", short, out, *ASKED, "metadata.fields=[country,gender]", "augment.mixup_alpha=0.3") == 0
    logged = json.loads(RunDir(out).metrics.read_text().splitlines()[-1])["validation"]
    assert main(["predict", str(out), str(music / "q2" / "test"), "--out", str(tmp_path / "a.csv")]) == 0
    assert main(["evaluate", str(out)]) == 0
    assert 0 <= logged <= 1


def test_cached_embeddings_are_those_of_the_very_backbone(trained, records):
    """Backbones that differ only in the statistics of their input, or in their window, have their own embeddings."""
    from dataclasses import replace

    from tfmusic.core.contract import Contract
    from tfmusic.models import build_model
    from tfmusic.training.frozen import _digest

    contract = Contract.load(RunDir(trained).contract)
    digests = set()
    for mean in (100.0, 101.0):
        statistics = {"mean": np.full(8, mean), "variance": np.full(8, 400.0)}
        keras.utils.set_random_seed(0)
        model = build_model("cnn1d", frames=32, n_bins=8, n_outputs=2, width=4, **statistics)
        digests |= {_digest(model, contract), _digest(model, replace(contract, hop_frames=7))}
    assert len(digests) == 4
    unnamed = [keras.Model(model.inputs, model.outputs) for _ in range(2)]
    assert unnamed[0].name != unnamed[1].name  # Keras numbers them
    assert _digest(unnamed[0], contract) == _digest(unnamed[1], contract)


def test_class_weights_do_not_go_with_cached_embeddings(stored, tmp_path, music, capsys):
    """The pair is refused before anything is written."""
    assert main(["build-records", "q1", "--data", str(music), "--out", str(tmp_path / "r")]) == 0
    asked = [*ASKED, "training.class_weights=balanced"]
    assert fit_small("q1", tmp_path / "r", tmp_path / "run", *asked) == 2
    assert "does not go with training.class_weights=balanced" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
