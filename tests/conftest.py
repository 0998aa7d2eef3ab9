"""Data that the tests share: made-up music in the AI Rush layout, its records, and one trained model."""

import gc
import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from tfmusic.cli import main
from tfmusic.datasets import synthetic

SMALL_MODEL = (
    "model.name=cnn1d", "model.width=4", "input.frames=64", "input.hop_frames=32", "metadata.fields=[]",
    "training.fold=0", "training.select=best", "evaluation.baseline=false",
)  # fmt: skip


def pytest_collection_modifyitems(config, items):
    """Leaves the tests marked torture out, unless the expression of -m names the mark."""
    if "torture" in config.option.markexpr:
        return
    long = [item for item in items if item.get_closest_marker("torture")]
    config.hook.pytest_deselected(items=long)
    items[:] = [item for item in items if not item.get_closest_marker("torture")]


@pytest.fixture(scope="module", autouse=True)
def _forget_models():
    """Gives the graphs of a test file's models back: Keras keeps every one, some 10 GB over all files.

    What is there before, such as the modules of TensorFlow, stays: the collector need not look at it for each test.
    """
    gc.freeze()
    yield
    keras = sys.modules.get("keras")  # most files never import it
    if keras is not None:
        keras.backend.clear_session()
        gc.unfreeze()
        gc.collect()


@pytest.fixture(autouse=True)
def _same_weights_each_time():
    """Seeds the weights of models that a test builds: some draws are odd, and would fail one run in many."""
    keras = sys.modules.get("keras")
    if keras is not None:
        keras.utils.set_random_seed(0)


@pytest.fixture(scope="session")
def music(tmp_path_factory):
    """Folder with q1, q2, q3 and answers of 30 made-up tracks."""
    folder = tmp_path_factory.mktemp("music")
    synthetic.write(folder, n_tracks=30, seed=7, on_track=lambda: None)
    return folder


@pytest.fixture(scope="session")
def records(music, tmp_path_factory):
    """Folder of the q2 records of the made-up music."""
    out = tmp_path_factory.mktemp("records") / "q2"
    assert main(["build-records", "q2", "--data", str(music), "--out", str(out), "--workers", "1"]) == 0
    return out


@pytest.fixture(autouse=True)
def _no_index(request):
    """Removes what earlier tests that read windows have left beside the shards: the records are as they were built."""
    if "records" in request.fixturenames:
        for path in request.getfixturevalue("records").glob("*.index"):
            path.unlink()


@pytest.fixture(scope="session")
def trained(records, tmp_path_factory):
    """Run folder of a small q2 model after three epochs."""
    out = tmp_path_factory.mktemp("runs") / "q2"
    assert fit_small("q2", records, out, "training.epochs=3") == 0
    return out


def fit_small(task, records, out, *overrides, flags=()):
    """Returns the exit code of a short training of a small model."""
    arguments = ["fit", task, "--records", str(records), "--out", str(out), *flags]
    return main([*arguments, *SMALL_MODEL, "training.batch_size=8", "training.warmup_epochs=0.5", *overrides])


@pytest.fixture(scope="session")
def shared_data():
    """The folder of real music; tests that need it are skipped where it is absent."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("TFMUSIC_REAL_DATA", default))
    if not (folder / "unpack.py").is_file():
        pytest.skip(f"no real music at {folder}; set TFMUSIC_REAL_DATA to its folder to run this test")
    return folder
