"""Every example that a reader meets works: README.md, the README of the Python API, and the ends of `--help`."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tfmusic import cli
from tfmusic.cli import COMMANDS, main

ROOT = Path(__file__).parents[1]
READMES = [path for path in ROOT.glob("**/*.md") if not any(part.startswith(".venv") for part in path.parts)]
SMALL = ["data.folds=2", "model.width=4", "training.epochs=1", "training.warmup_epochs=0", "training.batch_size=8"]
# Those of `weights` and `embed` need a download, `serve` does not end, and `models --measure` measures every model.
ELSEWHERE = {"weights", "embed", "serve", "models"}


def commands_of(text):
    """Returns the tfmusic commands in the shell blocks of a README, as words."""
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("tfmusic ")]


@pytest.mark.parametrize("readme", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_of_every_readme_are_parsed(readme):
    """No README has a command or an option that there is not."""
    for words in commands_of(readme.read_text(encoding="utf-8")):
        words = words[: next((i for i, word in enumerate(words) if word in ("|", ">", "&&", ";")), None)]
        if "--help" not in words and "--completion" not in words:
            assert cli._parse([word for word in words if word != "..."]).command == words[0], words


@pytest.fixture
def place(music, tmp_path, monkeypatch, capsys):
    """A folder with what the examples name, and shipped configs for small models, in which they run."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(music, "DATA")
    shutil.copy(next(Path("DATA").rglob("*.npy")), "song.npy")
    rng = np.random.default_rng(0)
    names = [f"MUSIC/{label}/{i}.wav" for label in ("happy", "sad") for i in range(10)]
    for name in [*names, "SONGS/1.mp3", "SONGS/2.mp3", "song.mp3", "other.mp3"]:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(name, rng.normal(0, 0.1, 8 * 16000), 16000)
    Path("configs").mkdir()
    records = [word for word in SMALL if word.startswith(("data.", "record."))]
    for name, words in (("folder", SMALL), ("q2", SMALL), ("folder-descriptors", records)):
        capsys.readouterr()
        assert main(["config", "show", name, *words]) == 0
        (tmp_path / "configs" / f"{name}.yaml").write_text(capsys.readouterr().out, encoding="utf-8")
    return tmp_path


@pytest.mark.slow
def test_readme_and_its_python(place):
    """README.md from mp3s to a SavedModel, then the Python blocks of both READMEs, one after the other."""
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "tfmusic/README.md")]
    commands = [words for words in commands_of(texts[0]) if "musicnn" not in words]  # its weights need a download
    assert [words[0] for words in commands].count("fit") == 3
    for words in commands:
        assert main(words) == 0, words
    assert (place / "runs/folder/resnet18-2/export/saved_model.pb").is_file()
    code = "\n".join(re.findall(r"```python\n(.*?)```", "\n".join(texts), re.DOTALL))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (place / "runs/quick/export/saved_model.pb").is_file()


@pytest.mark.slow
def test_examples_of_help(place):
    """The examples that end `tfmusic COMMAND --help` run in the order of the commands."""
    shutil.rmtree("DATA")
    for name, (_, example) in COMMANDS.items():
        words = shlex.split(example.replace("400", "30"))[1:]
        if name not in ELSEWHERE:
            assert main(words) == 0, example
        if name == "fit":  # a second model to join it with
            assert main(words) == 0
    assert (place / "runs.html").is_file() and (place / "models/q2/1/saved_model.pb").is_file()
