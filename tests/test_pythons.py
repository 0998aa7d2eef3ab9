"""Records have the same bytes whichever Python and packages have built them.

TFMUSIC_OTHER_PYTHONS names the others, interpreters with spaces between: `make test-addons` that of the default stack,
`make test-pythons` some small environments of Python 3.11 to 3.13.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import golden, miniatures
from tests.kill import hashes

ROOT = Path(__file__).parents[1]
OTHERS = os.environ.get("TFMUSIC_OTHER_PYTHONS", "").split()
GOLDEN = """
import sys
from pathlib import Path
from tests import golden
golden.build(Path(sys.argv[1]) / "format-1", Path(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Folder of made-up sound in another sample rate than the records', so that it is resampled."""
    folder = tmp_path_factory.mktemp("sound")
    miniatures.write_folder(folder, suffix=".flac", splits=None)
    return folder


def builds(music, sound, out):
    """Returns the arguments of builds that differ in scale, feature and dtype; by name."""
    spectrograms = ["build-records", "q2", "--data", str(music)]
    sounds = ["build-records", "folder", "--data", str(sound), "data.on_error=stop", "data.folds=2"]
    wanted = {
        "db": spectrograms,
        "float16": [*spectrograms, "record.dtype=float16", "record.scale=log10_1p10000"],
        "mel": sounds,
        "cqt": [*sounds, "feature=fma-cqt"],
        "perturbed": [*sounds, "offline_augment.copies=1"],
    }
    return {name: [*words, "--out", str(out / name), "--num-shards", "3"] for name, words in wanted.items()}


def build_all(python, music, sound, out, workers):
    """Returns the sha256 of every file that an interpreter builds, the golden records included."""
    out.mkdir()
    for words in builds(music, sound, out).values():
        call(python, "-m", "tfmusic", *words, "--workers", str(workers))
    (out / "golden").mkdir()
    call(python, "-c", GOLDEN, str(out / "golden"))
    return hashes(out)


def call(python, *words):
    done = subprocess.run([python, *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"{python} {' '.join(words)}: {done.stderr[-2000:]}"


@pytest.fixture(scope="module")
def ours(music, sound, tmp_path_factory):
    return build_all(sys.executable, music, sound, tmp_path_factory.mktemp("ours") / "out", 1)


@pytest.mark.slow
@pytest.mark.skipif(not OTHERS, reason="no other interpreter: name some by TFMUSIC_OTHER_PYTHONS")
@pytest.mark.parametrize("python", OTHERS)
def test_bytes_of_another_python(music, sound, ours, tmp_path, python):
    """Spectrograms and sound, in every kind of scale, are the same files; so are the golden records."""
    theirs = build_all(python, music, sound, tmp_path / "out", 2)
    assert theirs.keys() == ours.keys()
    assert [name for name in ours if theirs[name] != ours[name]] == []
    written = {path.name: path.read_bytes() for path in (tmp_path / "out/golden/format-1").iterdir()}
    assert written.pop("croissant.json")
    assert written == {path.name: path.read_bytes() for path in golden.GOLDEN.iterdir()}
    assert np.load(tmp_path / "out/golden/0.npy").shape == (1, golden.N_BINS, golden.N_FRAMES[0])
