"""The command line: exit codes, help without heavy imports, score, config, synth."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import tfmusic
from tfmusic import cli
from tfmusic.cli import COMMANDS, main
from tfmusic.console import format_table
from tfmusic.errors import UsageError
from tfmusic.models import BUILDERS

HEAVY = ("tensorflow", "keras", "numpy", "pandas", "pydantic", "rich", "yaml")


def run(*arguments, code=""):
    command = [sys.executable, "-c", f"import sys; sys.argv[0] = 'tfmusic'\n{code}", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["help"],
        ["help", "fit"],
        ["fit", "--help"],
        ["fit"],
        ["nonsense"],
        ["fit", "q2", "--wrong"],
        ["-x"],
        [],
    ],
)
def test_help_and_wrong_arguments_import_nothing_heavy(arguments):
    """No large package is loaded to print help or refuse an argument; exit codes are 0 and 2."""
    code = f"""
from tfmusic.cli import main
try:
    result = main(sys.argv[1:])
except SystemExit as end:
    result = end.code
assert not set({HEAVY!r}) & set(sys.modules), sorted(set({HEAVY!r}) & set(sys.modules))
sys.exit(result)
"""
    done = run(*arguments, code=code)
    assert done.returncode == (0 if not arguments or {"help", "--help"} & set(arguments) else 2), done.stderr
    assert "Traceback" not in done.stderr
    assert "usage: tfmusic" in done.stdout + done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    """`tfmusic COMMAND --help` and `tfmusic help COMMAND` explain its arguments and end with an example."""
    pages = []
    for arguments in ([command, "--help"], ["help", command]):
        with pytest.raises(SystemExit, match="0"):
            main(arguments)
        pages.append(capsys.readouterr().out)
    assert pages[0] == pages[1]
    assert pages[0].startswith(f"usage: tfmusic {command}")
    assert f"example: tfmusic {command} " in pages[0].splitlines()[-1]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_example_is_parsed(command):
    """The example of a command is one that it takes."""
    arguments = COMMANDS[command].example.split()
    assert arguments[0] == "tfmusic"
    assert cli._parse(arguments[1:]).command == command


@pytest.mark.parametrize("arguments", [[], ["help"], ["--help"]])
def test_the_commands_are_listed(arguments, capsys):
    """Bare `tfmusic`, `tfmusic help` and `tfmusic --help` list every command."""
    try:
        assert main(arguments) == 0
    except SystemExit as end:
        assert end.code == 0
    out = capsys.readouterr().out
    assert all(f"\n    {name}" in out for name in COMMANDS)


@pytest.mark.parametrize("option", ["-V", "--version"])
def test_version(option, capsys):
    """Both options print the version."""
    with pytest.raises(SystemExit, match="0"):
        main([option])
    assert capsys.readouterr().out == f"tfmusic {tfmusic.__version__}\n"


def test_a_bug_keeps_its_trace():
    """What is not the user's to mend ends with a trace and exit code 1."""
    code = """
from tfmusic import cli
from tfmusic.commands import score
def broken(args): raise ZeroDivisionError("ours")
score.run = broken
cli.entry_point()
"""
    done = run("score", "q1", "a", "b", code=code)
    assert done.returncode == 1
    assert "ZeroDivisionError: ours" in done.stderr


def test_ctrl_c_is_130(monkeypatch, capsys):
    """An interrupt gives one word and 130."""
    from tfmusic.commands import score

    def interrupted(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(score, "run", interrupted)
    assert main(["score", "q1", "a", "b"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_errors_of_the_machine_name_the_file(monkeypatch, capsys):
    """An OSError is one line with file and reason, exit code 2."""
    from tfmusic.commands import score

    def denied(args):
        raise PermissionError(13, "Permission denied", "/some/file")

    monkeypatch.setattr(score, "run", denied)
    assert main(["score", "q1", "a", "b"]) == 2
    assert capsys.readouterr().err == "tfmusic: /some/file: Permission denied\n"


def test_overrides_may_stand_anywhere(capsys):
    """`key.path=value` is taken before and after options; anything else that is left over is refused."""
    args = cli._parse(["fit", "q2", "training.epochs=1", "--resume", "training.seed=2"])
    assert args.overrides == ["training.epochs=1", "training.seed=2"]
    for wrong in (["fit", "q2", "--resume", "oops"], ["evaluate", "run", "a=b"], ["fit", "q2", "--x=1"]):
        with pytest.raises(UsageError, match="unrecognized arguments"):
            cli._parse(wrong)
        assert capsys.readouterr().err.startswith("usage: tfmusic")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fitt", "q1"], "no command 'fitt'. Did you mean 'fit'?"),
        (["fit", "q11"], "no config named 'q11'. Did you mean 'q1'?"),
        (
            ["fit", "q1", "--epochs", "3"],
            "unrecognized arguments: --epochs 3. A key of the config is written without --",
        ),
        (["fit", "q1", "--resme"], "unrecognized arguments: --resme. Did you mean '--resume'?"),
        (["predict", "a", "b", "--ouput=x"], "unrecognized arguments: --ouput=x. Did you mean '--out'?"),
        (["--js", "fit", "q1"], "unrecognized arguments: --js. Did you mean '--json'?"),
        (["FIT", "q1"], "no command 'FIT'. Did you mean 'fit'?"),
        (["help", "fitt"], "no command 'fitt'. Did you mean 'fit'?"),
        (["--bogus"], "unrecognized arguments: --bogus. Options follow the command"),
        (["--vers"], "unrecognized arguments: --vers. Did you mean '--version'?"),
        (["--out", "x", "predict", "a", "b"], "options follow the command. Received: --out"),
        (["fit", "q1", "--run-dir", "x"], "unrecognized arguments: --run-dir x. The option is --out now"),
        (["synth", "data"], "--out must name the folder to write: tfmusic synth --out data"),
        (["synth"], "--out must name the folder to write: tfmusic synth --out FOLDER"),
        (["benchmark", "converter"], "benchmarks are no command now. In the repository: make benchmark"),
        (["predict"], "the following arguments are required: model, inputs"),
    ],
)
def test_a_slip_is_answered_with_what_was_meant(arguments, message, capsys):
    """One line for people; one JSON document for programs that ask for it, wherever they say so."""
    assert main(arguments) == 2
    assert f"tfmusic: {message}" in capsys.readouterr().err
    for asked in (["--json", *arguments], [*arguments, "--json"]):
        assert main(asked) == 2
        document = json.loads(capsys.readouterr().out)
        assert document["exit_code"] == 2
        assert document["error"].startswith(message)


@pytest.mark.parametrize(
    ("command", "ending"),
    [
        (["predict", "run", "a.npy"], ".json"), (["explain", "run", "a.npy"], ".html"), (["report", "run"], ".html"),
        (["embed", "run", "a.npy"], ".npz"),
    ],
)  # fmt: skip
def test_out_is_checked_before_any_work(tmp_path, capsys, command, ending):
    """A file that exists needs --overwrite, another ending or a folder is refused, and the file stays as it is."""
    out = tmp_path / f"a{ending}"
    out.write_text("precious")
    assert main([*command, "--out", str(out)]) == 2
    assert f"{out}: exists already" in (error := capsys.readouterr().err)
    assert "--overwrite" in error
    assert out.read_text() == "precious"
    assert main([*command, "--out", str(tmp_path / "a.x")]) == 2
    assert "--out must end in " in (error := capsys.readouterr().err)
    assert ending in error
    (tmp_path / f"b{ending}").mkdir()
    assert main([*command, "--out", str(tmp_path / f"b{ending}"), "--overwrite"]) == 2
    assert "must be the name of a file" in capsys.readouterr().err


def test_a_report_folder_is_replaced_with_permission_only(tmp_path, capsys):
    """`evaluate --out` refuses a folder that holds something, and a file, before any work."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").touch()
    assert main(["evaluate", "run", "--out", str(tmp_path / "out")]) == 2
    assert "out: exists already" in (error := capsys.readouterr().err)
    assert "--overwrite" in error
    assert main(["evaluate", "run", "--out", str(tmp_path / "out" / "precious"), "--overwrite"]) == 2
    assert "must be the name of a folder" in capsys.readouterr().err
    assert main(["evaluate", "run", "--out", str(tmp_path / "out"), "--overwrite"]) == 2
    assert "run: no such folder" in capsys.readouterr().err


def test_an_error_that_nobody_reads():
    """The JSON document of an error may meet a closed pipe as well: exit code 2, no trace."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "tfmusic", "--json", "fitt"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert done.returncode == 2
    assert "no command 'fitt'" in done.stderr
    assert "Traceback" not in done.stderr


def test_output_that_nobody_reads():
    """`| head` ends the command without a word."""
    command = f"{sys.executable} -m tfmusic config show q3 | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stdout.startswith("task: q3 ")
    assert done.stderr == ""


def test_config_show_and_validate(capsys, tmp_path):
    """`config show` prints every key with overrides applied; `validate` finds faults."""
    assert main(["config", "show", "q2", "training.epochs=3"]) == 0
    assert "epochs: 3" in capsys.readouterr().out
    assert main(["config", "validate", "q3"]) == 0
    assert "valid" in capsys.readouterr().out
    (tmp_path / "x.yaml").write_text("task: q2\n")
    assert main(["config", "validate", str(tmp_path / "x.yaml")]) == 2
    assert "key 'data' is missing" in capsys.readouterr().err


def write(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return str(path)


def test_score(tmp_path, capsys):
    """The official metric of two files, and how good one answer for all would be."""
    predictions = write(tmp_path / "p", [["a", "b"], []])
    answers = write(tmp_path / "a", [["a"], ["c"]])
    assert main(["score", "multi", predictions, answers]) == 0
    assert capsys.readouterr().out.startswith("multi: micro_f1")
    assert main(["score", "q2", predictions, answers]) == 0
    out = capsys.readouterr().out
    assert "q2: micro_f1 0.5000 (95 % interval 0.000 to 0.667) on 2 tracks (the majority baseline: 0.6667)" in out
    assert f"predictions {predictions}, labels {answers}" in out


def test_score_of_tracks_without_answer(tmp_path, capsys):
    """They count as wrong, for one label a track and for several, and it is said."""
    for task, right, share in (("q1", "a", "accuracy 0.5000"), ("q2", ["a"], "micro_f1 0.6667")):
        answers = write(tmp_path / "a", [right, right])
        assert main(["score", task, write(tmp_path / "p", [None, right]), answers]) == 0
        shown = capsys.readouterr()
        assert f"{task}: {share}" in shown.out
        assert "1 of 2 tracks have no prediction" in shown.err
    assert main(["score", "q1", answers, write(tmp_path / "p", ["a", None])]) == 2
    assert "must be a JSON list of names" in capsys.readouterr().err


def test_score_tells_other_tasks(tmp_path, capsys):
    """Predictions that share no label with the answers are of another task; no prediction at all is only wrong."""
    answers = write(tmp_path / "a", ["rock", "jazz", "jazz"])
    assert main(["score", "q3", write(tmp_path / "p", ["calm", "sad", "sad"]), answers]) == 2
    assert "must be of the same task as" in capsys.readouterr().err
    assert main(["score", "q3", write(tmp_path / "p", ["calm", "jazz", "sad"]), answers]) == 0
    tags = write(tmp_path / "b", [["rock"], ["jazz"]])
    assert main(["score", "q2", write(tmp_path / "p", [["calm"], []]), tags]) == 2
    assert main(["score", "q2", write(tmp_path / "p", [[], []]), tags]) == 0
    assert "q2: micro_f1 0.0000" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        (["a"], "must have one prediction for each of the 2"),
        ([None, 1], "must be a JSON list of names"),
        ({"a": 1}, "must be a JSON list of names"),
        ([], "must be a JSON list of names"),
        (["a", ["b"]], "must be a JSON list of names"),
    ],
)
def test_score_refuses_what_does_not_fit(tmp_path, capsys, predictions, message):
    """Wrong length or shape of a prediction file is named."""
    answers = write(tmp_path / "a", ["a", "b"])
    assert main(["score", "q1", write(tmp_path / "p", predictions), answers]) == 2
    assert message in capsys.readouterr().err


def test_synth_is_the_same_for_the_same_seed(tmp_path):
    """Same seed, same bytes; another seed, other music."""
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert main(["synth", "--out", str(tmp_path / name), "--tracks", "20", "--seed", seed]) == 0
    trees = [
        {
            path.relative_to(tmp_path / name): path.read_bytes()
            for path in (tmp_path / name).rglob("*")
            if path.is_file()
        }
        for name in "abc"
    ]
    assert trees[0] == trees[1]
    assert trees[0] != trees[2]


def test_synth_lengths_and_artists(music):
    """Tracks from under one segment to minutes; no artist in training and test."""
    import numpy as np

    frames = [np.load(path, mmap_mode="r").shape[2] for path in music.glob("q1/*/*/mel_spectrogram/*.npy")]
    assert min(frames) < 313 < 2000 < max(frames)
    artists = [
        {i for row in json.loads(path.read_text())["artist_index_list"].values() for i in row}
        for path in sorted(music.glob("q1/*/*/meta/track_meta.json"))
    ]
    assert not artists[0] & artists[1]


def test_synth_spares_real_music(tmp_path, capsys):
    """A folder that `synth` did not write is never replaced; its own is, with --overwrite."""
    real = tmp_path / "q2" / "train" / "train_label"
    real.parent.mkdir(parents=True)
    real.write_text("real")
    for flags in ([], ["--overwrite"]):
        assert main(["synth", "--out", str(tmp_path), "--tracks", "20", *flags]) == 2
        assert real.read_text() == "real"
    assert "--overwrite replaces only synthetic music" in capsys.readouterr().err
    for flags in ([], ["--overwrite"]):
        assert main(["synth", "--out", str(tmp_path / "own"), "--tracks", "20", *flags]) == 0


def test_terminal_without_hangul():
    """Labels that the terminal cannot show are escaped."""
    done = subprocess.run(
        [sys.executable, "-m", "tfmusic", "predict", "없다", "x"],
        capture_output=True, text=True, env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_synth_needs_some_tracks(tmp_path, capsys):
    """Too few tracks for folds are refused."""
    assert main(["synth", "--out", str(tmp_path / "x"), "--tracks", "5"]) == 2
    assert "--tracks must be at least 20" in capsys.readouterr().err


def test_table_aligns_wide_letters():
    """Hangul takes two columns; numbers stand to the right, text to the left."""
    lines = format_table([("휴식", 1234, 0.5), ("a", 5, 0.25)], ("label", "n", "share")).splitlines()
    assert lines[2] == "휴식   1,234  0.5000"
    assert lines[3] == "a          5  0.2500"


@pytest.mark.slow
def test_models_lists_all_with_their_cost(capsys, monkeypatch):
    """A row for every builder, for the task's input; measured speed on request."""
    monkeypatch.setattr("tfmusic.commands.models._MEASURE_S", 0.01)
    assert main(["models", "q3", "model.width=4", "input.frames=40", "input.hop_frames=20", "--measure"]) == 0
    out = capsys.readouterr().out
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line}
    assert set(BUILDERS) <= set(rows)
    assert rows["musicnn"][-3:-1] == ["146", "frames"]
    assert rows["crnn"][-2] == "all"
    assert all(float(rows[name][-1].replace(",", "")) > 0 for name in BUILDERS)
    assert "width 4; for one window of 40 frames (1.3 s) of 128 bins and 4 outputs" in out


def test_the_demo_is_parsed():
    """Every command of `make demo` is one that the command line takes."""
    makefile = (Path(__file__).parents[1] / "Makefile").read_text()
    lines = [line.partition("-m tfmusic ")[2].split() for line in makefile.splitlines() if "-m tfmusic " in line]
    assert [words[0] for words in lines[:3]] == ["synth", "build-records", "fit"]
    for words in lines:
        assert cli._parse(words).command == words[0]
