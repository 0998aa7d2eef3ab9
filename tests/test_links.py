"""Nothing is written outside: links, pipes and second names in folders of others, links as outputs, several writers."""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tfmusic
from tests.conftest import fit_small
from tests.golden import GOLDEN
from tfmusic.cli import main
from tfmusic.config.loading import load_config
from tfmusic.core.feature import EMBEDDING, Feature
from tfmusic.core.files import (
    append_line,
    check_target,
    foreign_entries,
    replacing_folder,
    write_checksums,
    write_text,
)
from tfmusic.core.rundir import RunDir
from tfmusic.errors import ConfigError, RecordsError, RunError, UsageError
from tfmusic.features.embeddings import EmbeddingsWriter, read_embedding, read_index
from tfmusic.integrity import verify
from tfmusic.records.manifest import Manifest

PLACES = (
    "log.txt", "metrics.jsonl", ".export.lock", ".export.partial", "evaluation", "evaluation/.report.json.tmp", "tb",
    "tb/train", "checkpoints/last.keras", "fold0", "export", "backup/deep/er",
)  # fmt: skip


@pytest.fixture
def victim(tmp_path):
    """A folder with a file that no command may touch."""
    folder = tmp_path / "victim"
    folder.mkdir()
    (folder / "profile").write_text("safe")
    yield folder
    assert [path.name for path in folder.iterdir()] == ["profile"]
    assert (folder / "profile").read_text() == "safe"


def run_of_others(folder):
    """A folder that every command takes for a run, until it reads what is in the files."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "backup").mkdir()
    for name in ("contract.json", "config.yaml", "checkpoints/best.keras", "backup/state.npz"):
        (folder / name).write_text("{}")
    return folder


def put(place, kind, target):
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(place)
    else:
        place.symlink_to(target / {"file": "profile", "folder": "", "dangling": "new"}[kind])


@pytest.mark.parametrize("kind", ["file", "folder", "dangling", "pipe"])
@pytest.mark.parametrize("place", PLACES)
def test_no_command_writes_a_run_with_links(tmp_path, victim, capsys, place, kind):
    """evaluate, export and fit --resume name the link, the pipe and the dangling link, and write nothing."""
    run = run_of_others(tmp_path / "run")
    put(run / place, kind, victim)
    before = sorted(run.rglob("*"))
    for command in (["evaluate"], ["export"]):
        assert main([*command, str(run)]) == 2
        assert str(run / place) in capsys.readouterr().err
    assert main(["fit", "q2", "--records", str(GOLDEN), "--resume", "--out", str(run)]) == 2
    assert str(run / place) in capsys.readouterr().err
    assert sorted(run.rglob("*")) == before
    assert main(["verify", str(run)]) == 2
    assert f"{run / place}: " in capsys.readouterr().out


def test_outputs_in_a_run_are_no_links(tmp_path, victim, capsys):
    """A file or folder that a user names in a run is refused where a link in the run leads out of it."""
    run = run_of_others(tmp_path / "run")
    (run / "evaluation").symlink_to(victim)
    for out in ("evaluation/report.html", "evaluation"):
        with pytest.raises(RunError, match="evaluation: must not be a link"):
            check_target(run / out, overwrite=True, marker="x", what="x")
    assert main(["report", str(run), "--out", str(run / "evaluation/page.html"), "--overwrite"]) == 2
    assert "evaluation: must not be a link" in capsys.readouterr().err


def test_lines_are_added_to_own_files_only(tmp_path, victim):
    """A log is neither a link nor a second name of another file, nor a pipe, which would wait for a reader."""
    append_line(tmp_path / "log.txt", "가")
    append_line(tmp_path / "log.txt", "b")
    assert (tmp_path / "log.txt").read_text(encoding="utf-8") == "가\nb\n"
    (tmp_path / "link").symlink_to(victim / "profile")
    (tmp_path / "dangling").symlink_to(victim / "new")
    os.link(tmp_path / "log.txt", tmp_path / "hard")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "dangling", "hard", "pipe"):
        with pytest.raises((OSError, RunError), match=name):
            append_line(tmp_path / name, "x")
    assert foreign_entries(tmp_path) == [tmp_path / name for name in ("dangling", "link", "pipe")]


@pytest.mark.parametrize("name", ["tracks.csv", "golden-fold0.tfrecord-00000-of-00002"])
def test_pipes_in_records(tmp_path, name):
    """A pipe in place of a file of records is refused; reading it would wait for ever."""
    records = tmp_path / "records"
    shutil.copytree(GOLDEN, records)
    (records / name).unlink()
    os.mkfifo(records / name)
    with pytest.raises(RecordsError, match=f"{name}: must be a file"):
        Manifest.read(records)


def test_pipes_as_configs(tmp_path):
    """The same for the config of a run."""
    os.mkfifo(tmp_path / "config.yaml")
    with pytest.raises(ConfigError, match=r"config\.yaml: must be a file"):
        load_config(tmp_path / "config.yaml")


def test_verify_names_what_it_has_not_compared(tmp_path, capsys):
    """Files that no checksum covers are named; without checksums nothing is called whole."""
    records = tmp_path / "records"
    shutil.copytree(GOLDEN, records)
    (records / "more.txt").write_text("x")
    assert "more.txt" in str(verify(records).notes)
    run = run_of_others(tmp_path / "run")
    assert not verify(run).is_compared
    write_checksums(run, ["contract.json"])
    assert "config.yaml" in str(verify(run).notes)
    export = tmp_path / "export"
    export.mkdir()
    (export / "model.onnx").write_bytes(b"")
    write_checksums(export, ["model.onnx"])
    (export / "evil.bin").write_bytes(b"x")
    assert "evil.bin" in str(verify(export).faults)
    main(["verify", str(run)])
    assert "compared: whole" not in capsys.readouterr().out


@pytest.mark.slow
def test_trained_runs_with_links(trained, records, tmp_path, victim, capsys):
    """The same for a run that could be evaluated, exported and trained further; without the link all of it works."""
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    (run / "log.txt").unlink()
    (run / "log.txt").symlink_to(victim / "profile")
    assert main(["evaluate", str(run), "--records", str(records)]) == 2
    assert main(["export", str(run)]) == 2
    assert fit_small("q2", records, run, "training.epochs=4", flags=["--resume"]) == 2
    assert capsys.readouterr().err.count(f"{run / 'log.txt'}: ") == 3
    (run / "log.txt").unlink()
    assert fit_small("q2", records, run, "training.epochs=4", flags=["--resume"]) == 0
    assert "epoch   4/4" in (run / "log.txt").read_text(encoding="utf-8")


def test_an_output_that_is_a_link_stays_one(tmp_path):
    """The new folder is made beside the one that the link leads to, and the link leads to it."""
    (tmp_path / "disk" / "records").mkdir(parents=True)
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "records")
    with replacing_folder(tmp_path / "out") as folder:
        assert folder.parent == tmp_path / "disk"
        (folder / "a").write_text("new")
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "disk/records/a").read_text() == "new"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "disk", "out", "records"]


def test_nothing_beside_an_output_is_removed(tmp_path, victim, monkeypatch):
    """Folders, files and links beside it stay, whatever their names; what a killed process has left goes."""
    monkeypatch.setattr("tfmusic.core.files.secrets.token_hex", lambda n: "f" * 2 * n)
    (tmp_path / ".out.0123456789abcdef.partial").mkdir()
    (tmp_path / ".out.0123456789abcdef.partial" / "half").write_text("half")
    kept = [".out.partial/mine", ".out.tmp/mine", ".outer.0123456789abcdef.partial/mine", ".out.0.partial/mine"]
    for name in (*kept, "out/old"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("precious")
    (tmp_path / ".out.fedcba9876543210.partial").symlink_to(victim)
    with replacing_folder(tmp_path / "out") as folder:
        (folder / "new").write_text("new")
    left = [path for path in tmp_path.rglob("*") if path.is_symlink() or not path.is_dir()]
    found = sorted(path.relative_to(tmp_path).as_posix() for path in left)
    assert found == sorted([*kept, ".out.fedcba9876543210.partial", "out/new", f"{victim.name}/profile"])
    (tmp_path / f".out.{'f' * 16}.partial").symlink_to(victim)
    with pytest.raises(FileExistsError), replacing_folder(tmp_path / "out"):
        pass
    (tmp_path / ".out.lock").write_text("my own file")
    with pytest.raises(UsageError, match=r"\.out\.lock: must be empty"), replacing_folder(tmp_path / "out"):
        pass
    assert (tmp_path / ".out.lock").read_text() == "my own file"


@pytest.mark.parametrize("name", ["profile", "lock/x", "q2.tfrecord-00000-of-00001", "manifest.json"])
def test_builds_remove_their_own_files_only(music, tmp_path, victim, capsys, name):
    """A hidden folder that is a link, or holds files, folders or links of others, is refused; all of it stays."""
    arguments = ["build-records", "q2", "--data", str(music), "--out", str(tmp_path / "q2"), "--workers", "1"]
    partial = tmp_path / ".q2.partial"
    partial.symlink_to(victim)
    assert main(arguments) == 2
    assert f"{partial}: " in capsys.readouterr().err
    partial.unlink()
    (partial / name).parent.mkdir(parents=True)
    if name in ("profile", "lock/x"):
        (partial / name).write_text("foreign")
    else:
        (partial / name).symlink_to(victim / "profile")
    assert main(arguments) == 2
    assert f"{partial / name.split('/')[0]}: is no file of a build" in capsys.readouterr().err
    assert os.path.lexists(partial / name)
    assert not (tmp_path / "q2").exists()


def test_records_through_a_link(music, tmp_path):
    """--out is resolved once: the records stand where the link leads, again with --overwrite."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "q2").symlink_to(tmp_path / "disk" / "q2")
    arguments = ["build-records", "q2", "--data", str(music), "--out", str(tmp_path / "q2"), "--workers", "1"]
    for flags in ([], ["--overwrite"]):
        assert main([*arguments, *flags]) == 0
        assert (tmp_path / "q2").is_symlink()
        assert (tmp_path / "disk" / "q2" / "manifest.json").is_file()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "q2"]
        assert [path.name for path in (tmp_path / "disk").iterdir()] == ["q2"]


def test_mount_points_are_refused_before_the_work(tmp_path, monkeypatch):
    """A mount point cannot be replaced: one line before anything is done."""
    (tmp_path / "manifest.json").write_text("{}")
    monkeypatch.setattr(os.path, "ismount", lambda path: True)
    with pytest.raises(UsageError, match="must not be a mount point"):
        check_target(tmp_path, overwrite=True, marker="manifest.json", what="records")


LISTS = {
    "itself": {"a": ["."]},
    "a circle": {"a": ["../b"], "b": ["../c"], "c": ["../a"]},
    "one run twice": {"a": ["../b", "../c/../b"]},
}


@pytest.mark.parametrize("lists", LISTS.values(), ids=LISTS)
def test_ensembles_name_other_runs(tmp_path, lists):
    """An ensemble that names itself, directly or through its members, is refused in one line."""
    (tmp_path / "c").mkdir()
    for name, members in lists.items():
        (tmp_path / name).mkdir(exist_ok=True)
        listed = [{"run": member, "weight": 0.5} for member in members]
        (tmp_path / name / "ensemble.json").write_text(json.dumps({"members": listed}))
    with pytest.raises(RunError, match=r"ensemble\.json: must name other runs"):
        RunDir(tmp_path / "a").members()


WRITER = """
import sys
from pathlib import Path
import numpy as np
from tests.test_links import write_embeddings
from tfmusic.core.files import write_text
folder, mark = Path(sys.argv[1]), sys.argv[2]
print("ready", flush=True)
sys.stdin.readline()
for _ in range(40):
    write_text(folder / "report.json", mark * 200_000)
    write_embeddings(folder / "all.npz", float(mark))
"""


def write_embeddings(path, value):
    with EmbeddingsWriter(path, Feature(name=EMBEDDING, source="x", n_bins=8, hop_length=16000)) as writer:
        for number in range(20):
            writer.add(str(number), np.full((4, 8), value, np.float32), np.arange(4.0))
        writer.finish()


def test_the_last_of_several_writers_wins(tmp_path):
    """Processes that write the same files at once: every reader finds one whole, and in the end one is there, whole."""
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    writers = [
        subprocess.Popen([*command, mark], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for mark in "123"
    ]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.stdin.write("\n")
        writer.stdin.flush()
    n_read = 0
    while any(writer.poll() is None for writer in writers):
        if (tmp_path / "report.json").exists():
            text = (tmp_path / "report.json").read_text()
            assert len(text) == 200_000
            assert len(set(text)) == 1
            n_read += 1
    assert [writer.communicate() and writer.returncode for writer in writers] == [0, 0, 0]
    assert n_read
    index = read_index(tmp_path / "all.npz")
    values = {float(read_embedding(tmp_path / "all.npz", name, 8).mean()) for name in index.track_ids}
    assert len(index.track_ids) == 20
    assert len(values) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.npz", "report.json"]


# In a hidden folder whose entries are checked, or in a temporary one; synthetic music goes into a new folder.
WRITES_ITSELF = {
    "core/files.py", "records/descriptions.py", "records/manifest.py", "records/build/places.py",
    "records/build/build.py", "records/build/survey.py", "pretrained/musicnn.py", "datasets/synthetic.py",
    "reports/inspection.py", "server/app.py",
}  # fmt: skip


def test_files_are_written_in_one_step():
    """Files are opened for writing in core/files.py, which makes temporary ones of random names, and nowhere else."""
    package, found = Path(tfmusic.__file__).parent, set()
    for path in package.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        temporary = {
            item.optional_vars.id
            for node in ast.walk(tree)
            if isinstance(node, ast.With)
            for item in node.items
            if isinstance(item.optional_vars, ast.Name) and "replacing" in ast.unparse(item.context_expr)
        }
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            modes = [ast.unparse(value).strip("'\"") for value in (*node.args, *(k.value for k in node.keywords))]
            opens = node.func.attr == "open" and {"w", "wb", "a", "x", "xb"} & set(modes[:2])
            if (opens or node.func.attr in ("write_text", "write_bytes")) and ast.unparse(node.func.value) not in (
                temporary | {"archive", "self._archive", "files"}
            ):
                found.add(path.relative_to(package).as_posix())
    assert found <= WRITES_ITSELF


def test_folders_with_links_are_not_written(tmp_path, victim):
    """A link in place of a file is replaced and not followed."""
    (tmp_path / "a.json").symlink_to(victim / "profile")
    write_text(tmp_path / "a.json", "new")
    assert not (tmp_path / "a.json").is_symlink()
