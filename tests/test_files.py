"""Files: written in one step, never through a link, locked for one process at a time."""

import os
import threading

import numpy as np
import pytest

from tfmusic.cli import main
from tfmusic.core.feature import Feature
from tfmusic.core.files import (  # fmt: skip
    check_target,
    check_target_file,
    held,
    is_temporary,
    parse_json,
    read_json_file,
    replacing,
    write_json,
    write_text,
)
from tfmusic.errors import UsageError
from tfmusic.features.embeddings import EmbeddingsWriter, read_embedding


def test_a_file_appears_when_it_is_complete(tmp_path):
    """Until then there is the old file; afterwards the new one, and nothing beside it."""
    path = tmp_path / "folder" / "a.json"
    write_text(path, "old")
    with replacing(path) as tmp:
        tmp.write_text("new")
        assert path.read_text() == "old"
        assert tmp.suffix == ".json"
        assert is_temporary(tmp)
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]
    assert not is_temporary(path)


def test_what_killed_processes_have_left_is_removed(tmp_path):
    """The next command removes it from the folder of its output; what is still written stays, and all other files."""
    for name in (".0123456789abcdef.tmp.npz", ".0123456789abcdee.tmp.json", ".0123456789abcded.tmp"):
        (tmp_path / name).write_text("half")
    kept = {".mine.tmp.npz", "0123456789abcdef.tmp.npz", ".0123456789abcdef.tmp.npz.mine", ".0123456789ABCDEF.tmp"}
    for name in kept:
        (tmp_path / name).write_text("precious")
    (tmp_path / ".fedcba9876543210.tmp.npz").symlink_to(tmp_path / ".mine.tmp.npz")
    (tmp_path / ".fedcba9876543211.tmp").mkdir()
    feature = Feature(name="embedding", n_bins=5, source="x")
    with replacing(tmp_path / "a.json") as tmp, EmbeddingsWriter(tmp_path / "a.npz", feature) as writer:
        tmp.write_text("{}")
        assert main(["predict", "none", __file__, "--out", str(tmp_path / "a.csv")]) == 2
        writer.add("a", np.ones((1, 5)), np.zeros(1))
        writer.finish()
    names = {path.name for path in tmp_path.iterdir()} - {".fedcba9876543210.tmp.npz", ".fedcba9876543211.tmp"}
    assert names == kept | {"a.json", "a.npz"}
    assert read_embedding(tmp_path / "a.npz", "a", 5).shape == (5, 1)


def test_an_error_leaves_the_old_file(tmp_path):
    """The temporary file goes, the old one stays."""
    path = tmp_path / "a"
    write_text(path, "old")
    with pytest.raises(ZeroDivisionError, match="ours"), replacing(path) as tmp:
        tmp.write_text("half")
        raise ZeroDivisionError("ours")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_is_written_through_a_link(tmp_path, monkeypatch):
    """A link under the temporary name is an error; a link under the final name is replaced."""
    victim, path = tmp_path / "victim", tmp_path / "a"
    victim.write_text("precious")
    path.symlink_to(victim)
    write_text(path, "new")
    assert not path.is_symlink()
    monkeypatch.setattr("tfmusic.core.files.secrets.token_hex", lambda n: "guessed")
    (tmp_path / ".guessed.tmp").symlink_to(victim)
    with pytest.raises(FileExistsError, match="guessed"):
        write_text(path, "newer")
    assert victim.read_text() == "precious"


def test_a_lock_file_is_no_link(tmp_path):
    """A link in place of a lock file is an error, and the file that it names stays as it is."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "lock").symlink_to(victim)
    with pytest.raises(OSError, match="lock"), held(tmp_path / "lock", "busy"):
        pass
    assert victim.read_text() == "precious"


def test_a_lock_file_of_another_process_stays(tmp_path):
    """Where the lock file was removed and made again by another process, the first leaves it alone."""
    path = tmp_path / "lock"
    with held(path, "busy"):
        path.unlink()
        path.touch()
    assert path.is_file()


def test_a_lock_is_held_by_one(tmp_path):
    """Another one is refused, or waits until the lock is free; in the end the file is gone."""
    path, order = tmp_path / "lock", []

    def wait():
        with held(path):
            order.append("second")

    with held(path, "busy"):
        with pytest.raises(UsageError, match="busy"), held(path, "busy"):
            pass
        thread = threading.Thread(target=wait)
        thread.start()
        thread.join(0.05)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert not path.exists()


def test_a_file_is_replaced_with_permission_only(tmp_path):
    """An existing file needs --overwrite; a folder is never replaced by a file."""
    path = tmp_path / "a"
    check_target_file(path, overwrite=False)
    path.touch()
    with pytest.raises(UsageError, match=r"a: exists already.*--overwrite"):
        check_target_file(path, overwrite=False)
    check_target_file(path, overwrite=True)
    with pytest.raises(UsageError, match="must be the name of a file"):
        check_target_file(tmp_path, overwrite=True)


def test_names_that_are_not_utf8(tmp_path):
    """A path in a JSON file comes back as it was; a folder that TensorFlow could not read is refused with its name."""
    path = tmp_path / os.fsdecode(b"caf\xe9")
    write_json(tmp_path / "a.json", {"folder": str(path)})
    assert read_json_file(tmp_path / "a.json") == {"folder": str(path)}
    with pytest.raises(UsageError, match=r"caf\\xe9: the name of a folder .* must be UTF-8"):
        check_target(path, overwrite=False, marker="manifest.json", what="records")


def test_json_is_read_as_written(tmp_path):
    """Hangul stays readable, and a value comes back as it was."""
    write_json(tmp_path / "a.json", {"label": "휴식", "scores": [0.1, None]})
    assert "휴식" in (tmp_path / "a.json").read_text(encoding="utf-8")
    assert read_json_file(tmp_path / "a.json") == {"label": "휴식", "scores": [0.1, None]}


@pytest.mark.parametrize(
    ("text", "message"),
    [('{"a": 1, "a": 2}', "key 'a' appears twice"), ("[" * 100_000, "nested too deeply"), ("{", "line 1")],
)
def test_json_that_is_refused(text, message):
    """A repeated key, great depth, and what is no JSON are ValueErrors."""
    with pytest.raises(ValueError, match=message):
        parse_json(text)


def test_a_pipe_is_no_json_file(tmp_path):
    """It would keep the reader waiting."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="must be a file"):
        read_json_file(tmp_path / "pipe")
