"""Metadata beside the spectrogram: tokens, who may teach them, the same answer everywhere, and none at all."""

import json
import shutil

import keras
import numpy as np
import pandas as pd
import pytest

from tests.conftest import fit_small
from tfmusic.cli import main
from tfmusic.config.sections import MetadataSection
from tfmusic.core.contract import Contract
from tfmusic.core.feature import Feature
from tfmusic.core.rundir import RunDir
from tfmusic.core.scale import Scale
from tfmusic.datasets import airush
from tfmusic.datasets.metadata import FIELDS, tokens_of
from tfmusic.inputs.metadata import Metadata, known_tokens, metadata_table
from tfmusic.models import build_model
from tfmusic.models.ensemble import build_ensemble, join_metadata
from tfmusic.records.manifest import Manifest

WINDOW = (Feature(), Scale("db", -60.0, 30.0), "uint8", 4, 4)
FOLDS = ("fold0", "fold1", "fold2", "fold3", "fold4")
ASKED = ("metadata.fields=[country,gender,album_year]", "metadata.min_count=2", "training.epochs=1")


@pytest.fixture(scope="module")
def told(records, tmp_path_factory):
    """Run folder of a small q2 model that reads metadata."""
    out = tmp_path_factory.mktemp("told") / "run"
    assert fit_small("q2", records, out, *ASKED) == 0
    return out


def test_tokens_of_a_track():
    """Names as they are but for case, years by the decade, words of titles, flags; nothing of what is missing."""
    metadata = {
        "title": "Don't Stop  Believin' 2", "artists": ["ABBA", "가수 6"], "genres": ["Pop/Rock"], "album_year": 1981,
        "is_overseas": True, "duration_s": 240, "country": None,
    }  # fmt: skip
    assert tokens_of(metadata) == (
        "album_year=1980s", "artists=abba", "artists=가수 6", "genres=pop/rock", "is_overseas=yes", "title=believin",
        "title=don", "title=stop",
    )  # fmt: skip
    assert tokens_of({}) == ()
    assert len(tokens_of({"lyric": " ".join(f"word{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(600))})) == 200


def test_fields_of_the_config_are_those_of_the_tokens():
    """Every field that tokens are made of can be asked for."""
    section = MetadataSection(fields=list(FIELDS))
    assert tuple(section.fields) == FIELDS


def test_a_model_learns_tokens_of_its_training_folds_alone(records):
    """Counts are over the training folds; rare values are one token of their field; other fields are left out."""
    manifest = Manifest.read(records)
    tokens = manifest.read_tokens()
    assert len(tokens) == manifest.n_rows
    known = known_tokens(manifest, FOLDS[1:], ["artists", "country"], 6)
    counts = pd.Series([token for row in manifest.track_rows(FOLDS[1:]) for token in tokens[row]]).value_counts()
    assert {token for token in known if not token.endswith("=?")} == {
        token for token, count in counts.items() if count >= 6 and token.split("=")[0] in ("artists", "country")
    }
    assert "artists=?" in known
    held_out = {token for row in manifest.track_rows(FOLDS[:1]) for token in tokens[row]} - set(counts.index)
    assert not held_out & set(known)


def test_no_label_of_the_test_list_becomes_a_token(music):
    """Test tracks have the metadata of their own files; the label column is none of it."""
    tracks = airush.load_test(music / "q2", question="q2")
    assert any(track.metadata for track in tracks)
    assert all(not track.labels for track in tracks)


def test_unknown_values_count_as_rare():
    """A value that training has not seen is `field=?` where that is known, and nothing where it is not."""
    contract = Contract("q1", "single", ("a",), *WINDOW, metadata=("country=?", "country=kr", "genres=x"))
    assert contract.encode_metadata(["country=kr", "genres=y"]) == [0.0, 1.0, 0.0]
    assert contract.encode_metadata(["country=us", "genres=x"]) == [1.0, 0.0, 1.0]
    assert contract.encode_metadata([]) == [0.0, 0.0, 0.0]


def test_whole_fields_are_hidden_in_training(records):
    """A field is hidden as a whole, from about the share of examples that dropout says."""
    manifest = Manifest.read(records)
    tokens = known_tokens(manifest, FOLDS, ["country", "gender"], 1)
    contract = Contract("q2", "multi", (), *WINDOW, metadata=tokens)
    metadata = Metadata.of(manifest, contract, 0.4)
    rows = np.arange(manifest.n_rows).repeat(50)
    drawn = metadata.draw(rows, np.random.default_rng(1))
    full = metadata_table(manifest, contract)[rows]
    for field in (0, 1):
        columns = metadata.field == field
        hidden = ~(drawn[:, columns] > 0).any(1)
        np.testing.assert_array_equal(drawn[~hidden][:, columns], full[~hidden][:, columns])
        assert 0.3 < hidden[full[:, columns].any(1)].mean() < 0.5


def test_without_metadata_the_audio_alone_answers():
    """No token, no contribution: the logits are those of the layer on the audio."""
    model = build_model("cnn1d", frames=64, n_bins=16, n_outputs=3, width=4, n_tokens=5)
    codes = np.random.default_rng(0).integers(0, 256, (4, 64, 16), np.uint8)
    audio = keras.Model(model.inputs, model.get_layer("logits").output)
    nothing, something = np.zeros((4, 5), np.float32), np.ones((4, 5), np.float32)
    np.testing.assert_array_equal(model.predict_on_batch([codes, nothing]), audio.predict_on_batch([codes, nothing]))
    assert np.abs(model.predict_on_batch([codes, something]) - model.predict_on_batch([codes, nothing])).max() > 1e-3


def test_ensemble_of_models_that_know_different_tokens(tmp_path):
    """Each member reads what it knows; what it does not know is rare to it; one without metadata is not told."""
    known = (("g=?", "g=a"), ("g=a", "g=b"), ())
    members = [build_model("cnn1d", frames=64, n_bins=16, n_outputs=3, width=4, n_tokens=len(some)) for some in known]
    assert join_metadata(known) == ("g=?", "g=a", "g=b")
    whole = build_ensemble(members, [0.2, 0.3, 0.5], member_metadata=known)
    whole.save(tmp_path / "whole.keras")
    whole = keras.saving.load_model(tmp_path / "whole.keras", compile=False, safe_mode=True)
    codes = np.random.default_rng(0).integers(0, 256, (2, 64, 16), np.uint8)
    told = np.array([[0, 1, 0], [0, 0, 1]], np.float32)  # a; b, which the first calls rare
    first, second = np.array([[0, 1], [1, 0]], np.float32), np.array([[1, 0], [0, 1]], np.float32)
    want = (
        0.2 * members[0].predict_on_batch([codes, first])
        + 0.3 * members[1].predict_on_batch([codes, second])
        + 0.5 * members[2].predict_on_batch(codes)
    )
    np.testing.assert_allclose(whole.predict_on_batch([codes, told]), want, atol=1e-5)


def test_run_and_export_give_the_same_answer_with_metadata(told, music, tmp_path):
    """Tokens of the track go through numpy and through the graph to the same scores; and they matter."""
    assert main(["export", str(told), "--out", str(tmp_path / "export")]) == 0
    tables = {}
    for name, model, source in (
        ("run", told, music / "q2" / "test"),
        ("export", tmp_path / "export", music / "q2" / "test"),
        ("plain", told, music / "q2" / "test" / "test_data" / "mel_spectrogram"),
    ):
        assert main(["predict", str(model), str(source), "--out", str(tmp_path / f"{name}.csv")]) == 0
        tables[name] = pd.read_csv(tmp_path / f"{name}.csv", index_col=0).select_dtypes("number").sort_index()
    np.testing.assert_allclose(tables["run"], tables["export"], atol=1e-5)
    assert np.abs(tables["run"].to_numpy() - tables["plain"].to_numpy()).max() > 1e-4  # plain files have no metadata


def test_evaluate_and_predict_agree_and_metadata_can_be_left_out(told, records, capsys):
    """evaluate reads the records' tokens; --without-metadata scores as if there were none."""
    assert main(["evaluate", str(told)]) == 0
    with_it = json.loads((told / "evaluation" / "report.json").read_text())
    scores = pd.read_csv(told / "evaluation" / "predictions.csv").select_dtypes("number")
    assert main(["evaluate", str(told), "--without-metadata"]) == 0
    without = pd.read_csv(told / "evaluation-without-metadata" / "predictions.csv").select_dtypes("number")
    assert json.loads((told / "evaluation" / "report.json").read_text()) == with_it  # the run's own report stays
    assert with_it["tracks"] == len(scores) == len(without)
    assert np.abs(scores.to_numpy() - without.to_numpy()).max() > 1e-4
    assert "metadata left out" in capsys.readouterr().out


def test_the_contract_says_what_a_model_knows(told, records):
    """The run's contract lists the tokens; that of the records, and of models without metadata, has no such key."""
    known = json.loads(RunDir(told).contract.read_text())["metadata"]
    assert {token.split("=")[0] for token in known} <= {"country", "gender", "album_year"}
    assert "metadata" not in json.loads((Manifest.read(records).folder / "manifest.json").read_text())["contract"]


def test_metadata_that_is_not_there_is_done_without(tmp_path, music, capsys):
    """Records of tracks without metadata: a note, and a model on spectrograms alone."""

    data = tmp_path / "data"
    shutil.copytree(music / "q2", data / "q2")
    shutil.rmtree(data / "q2" / "train" / "train_data" / "meta")
    assert main(["build-records", "q2", "--data", str(data), "--out", str(tmp_path / "r")]) == 0
    assert not (tmp_path / "r" / "tokens.jsonl").exists()
    run = tmp_path / "run"
    assert fit_small("q2", tmp_path / "r", run, "metadata.fields=[genres]", "training.epochs=1") == 0
    assert "no training track has metadata of genres" in capsys.readouterr().out
    assert "metadata" not in json.loads(RunDir(run).contract.read_text())


def test_damaged_tokens_are_noticed(records, tmp_path, capsys):
    """The token file is compared with its checksum before a training."""

    copy = tmp_path / "r"
    shutil.copytree(Manifest.read(records).folder, copy)
    (copy / "tokens.jsonl").write_text('["country=x"]\n')
    assert fit_small("q2", copy, tmp_path / "run", *ASKED) == 2
    assert "tokens.jsonl: damaged" in capsys.readouterr().err
