"""The shipped configs for audio, each on a miniature of its data set: checked, built, trained, scored, asked."""

import json

import pytest

from tests import miniatures
from tfmusic.cli import main
from tfmusic.records.manifest import Manifest

SMALL = ("training.epochs=1", "training.batch_size=4", "training.warmup_epochs=0.0")
CASES = {
    "gtzan": (
        miniatures.write_gtzan,
        {"genres": ("jazz", "pop", "rock"), "clips": 5, "seconds": 5.0},
        ("model.width=4", "record.num_shards=1"),
    ),
    "fma_small": (
        miniatures.write_fma,
        {},
        ("data.min_s=1.0", "record.segment_frames=192", "record.hop_frames=192", "input.frames=192",
         "input.hop_frames=192", "model.width=8", "record.num_shards=1"),
    ),
    "fma_cqt": (
        miniatures.write_fma,
        {"subset": "large"},
        ("data.min_s=1.0", "record.segment_frames=43", "record.hop_frames=43", "input.frames=43",
         "input.hop_frames=43", "augment.time_warp_frames=4", "augment.time_mask_frames=4", "model.width=4",
         "record.num_shards=1"),
    ),
    "jamendo_mood": (
        miniatures.write_jamendo,
        {"splits": (0,)},
        ("data.min_s=1.0", "record.segment_frames=32", "record.hop_frames=32", "input.frames=24",
         "input.hop_frames=24", "model.width=4", "record.num_shards=1"),
    ),
    "folder": (
        miniatures.write_folder,
        {},
        ("record.segment_frames=64", "record.hop_frames=64", "input.frames=48", "input.hop_frames=24",
         "model.width=4", "record.num_shards=1", "training.fold=official"),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Folder of the miniature of a config."""
    places = {}

    def place(name):
        if name not in places:
            write, options, _ = CASES[name]
            places[name] = tmp_path_factory.mktemp(name)
            write(places[name] / "data", **options)
        return places[name] / "data"

    return place


@pytest.mark.parametrize("name", CASES)
def test_dry_run(data, tmp_path, name, capsys):
    """The config as it is shipped finds the tracks of the data set in its true layout, and writes nothing."""
    out = tmp_path / "records"
    assert main(["build-records", name, "--data", str(data(name)), "--out", str(out), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert f"dry run: would write {out}" in said
    assert f"\n{name}: " in f"\n{said}"
    assert not out.exists()


@pytest.mark.slow
@pytest.mark.parametrize(  # fma_cqt reads the same data set as fma_small
    "name", [pytest.param(name, marks=pytest.mark.torture if name == "fma_small" else ()) for name in CASES]
)
def test_build_fit_evaluate_predict(data, tmp_path, name, capsys):
    """A short training on audio: official splits, one epoch, the test split scored, an answer for a sound file."""
    records, run, small = tmp_path / "records", tmp_path / "run", (*CASES[name][2], *SMALL)
    source = data(name)
    assert main(["build-records", name, "--data", str(source), "--out", str(records), "--workers", "1", *small]) == 0
    manifest = Manifest.read(records)
    assert manifest.skipped == ()
    assert set(manifest.splits) - {"train_copies"} == {"train", "validation", "test"}
    assert ("train_copies" in manifest.splits) == (name == "gtzan")
    assert main(["fit", name, "--records", str(records), "--out", str(run), *small]) == 0
    assert ("balance: " in capsys.readouterr().out) == (name in ("fma_cqt", "jamendo_mood"))
    assert main(["evaluate", str(run), "--split", "test"]) == 0
    report = json.loads((run / "evaluation" / "report.json").read_text(encoding="utf-8"))
    assert report["tracks"] == manifest.splits["test"].tracks
    assert report["tracks_trained_on"] == 0
    sound = miniatures.audio_files(source)[0]
    assert sound.suffix in (".wav", ".mp3")
    out = tmp_path / "answers.json"
    assert main(["predict", str(run), str(sound), "--out", str(out)]) == 0
    (answer,) = json.loads(out.read_text(encoding="utf-8"))
    labels = set(manifest.contract.labels)
    assert set(answer) <= labels if isinstance(answer, list) else answer in labels
