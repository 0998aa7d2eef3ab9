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


def test_bash_completes_commands_options_and_files(tmp_path):
    """The script of `--completion bash` completes in a real shell."""
    (tmp_path / "music.npy").touch()
    script = tmp_path / "completion.bash"
    script.write_text(run("--completion", "bash", code="from tfmusic.cli import entry_point; entry_point()").stdout)

    def complete(*words):
        line = f"COMP_WORDS=({' '.join(repr(word) for word in words)}); COMP_CWORD={len(words) - 1}"
        call = f"source {script}; {line}; _shtab_tfmusic; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        return subprocess.run(["bash", "-c", call], cwd=tmp_path, capture_output=True, text=True).stdout.split()

    assert "build-records" in complete("tfmusic", "bu")
    assert "--overwrite" in complete("tfmusic", "predict", "--ov")
    assert "music.npy" in complete("tfmusic", "predict", "mus")


def test_windows_is_refused(monkeypatch, capsys):
    """One line says what runs there instead."""
    monkeypatch.setattr(sys, "platform", "win32")
    assert main(["predict", "run", "song.mp3"]) == 2
    assert "WSL" in (error := capsys.readouterr().err) and error.count("\n") == 1


@pytest.mark.parametrize(("backend", "message"), [("torch", "tensorflow or jax"), ("jax", "tfmusic[jax]")])
def test_other_backends_are_one_line(monkeypatch, capsys, backend, message):
    """A backend that Keras has and tfmusic has not, and one that is not installed."""
    monkeypatch.setenv("KERAS_BACKEND", backend)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["models"]) == 2
    assert message in (error := capsys.readouterr().err) and error.count("\n") == 1


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


@pytest.mark.parametrize("words", [["--config_file", "{path}", "a.b=1"], ["a.b=1", "--config_file={path}"]])
def test_config_file_is_config(tmp_path, words):
    """`--config_file PATH` stands for CONFIG, anywhere in the command."""
    args = cli._parse(cli._with_config(["fit", *(word.format(path=tmp_path / "q1.yaml") for word in words)]))
    assert args.config == str(tmp_path / "q1.yaml") and args.overrides == ["a.b=1"]


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


def unread(*arguments):
    """Runs a command whose output and errors have lost their reader; returns its exit code."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "tfmusic", *map(str, arguments)]
    try:
        return subprocess.run(command, stdout=write, stderr=write).returncode
    finally:
        os.close(write)


@pytest.mark.slow
def test_commands_that_nobody_reads_do_their_work(music, records, tmp_path):
    """All that a command writes is written, and its exit code is its own, where its reader has gone at once."""
    mel = next((music / "q2" / "test").rglob("*.npy"))
    run = tmp_path / "run"
    small = ["model.name=cnn1d", "model.width=4", "training.epochs=1", "training.fold=0"]
    for arguments, written in (
        (["synth", "--out", tmp_path / "data", "--tracks", "20"], "data/q2"),
        (["inspect", "q2", "--data", music, "--out", tmp_path / "look"], "look/inspection.json"),
        (["build-records", "q2", "--data", music, "--out", tmp_path / "records"], "records/manifest.json"),
        (["fit", "q2", "--records", records, "--out", run, *small], "run/calibration.json"),
        (["evaluate", run], "run/evaluation/report.html"),
        (["report", run, "--out", tmp_path / "runs.html"], "runs.html"),
        (["predict", run, mel, "--out", tmp_path / "p.csv"], "p.csv"),
        (["explain", run, mel, "--out", tmp_path / "e.html"], "e.html"),
        (["embed", run, mel, "--out", tmp_path / "e.npz"], "e.npz"),
        (["export", run, "--out", tmp_path / "export"], "export/saved_model.pb"),
    ):
        assert unread(*arguments) == 0, arguments[0]
        assert (tmp_path / written).exists(), arguments[0]
    for arguments, code in (
        (["verify", run], 0),
        (["runs", "--folder", tmp_path], 0),
        (["fitt"], 2),
        (["predict", run, "none.npy"], 2),
    ):
        assert unread(*arguments) == code, arguments
    assert unread("--help") == unread("config", "keys") == 0


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


def test_score_of_a_table_whose_labels_a_spreadsheet_would_run(tmp_path, capsys):
    """A label such as -rock has a quote before it in a table; it is right all the same."""
    rows = [
        "track_id,path,prediction,score:-rock,score:pop,status",
        "1,1.npy,'-rock,0.9,0.1,ok",
        "2,2.npy,pop,0.2,0.8,ok",
    ]
    (tmp_path / "p.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    assert main(["--json", "score", "single", str(tmp_path / "p.csv"), write(tmp_path / "a", ["-rock", "pop"])]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["value"], found["areas"]["ROC-AUC"][0], found["without_scores"]) == (1.0, 1.0, [])


@pytest.mark.parametrize(("task", "column"), [("q1", "station_name"), ("q2", "mood_tag"), ("q3", "genre")])
def test_score_of_a_share_of_the_list(tmp_path, capsys, task, column):
    """The first part alone, rounded up to a track."""
    true = [["calm"], ["sad"], ["calm"], ["sad"], ["calm"]] if task == "q2" else ["calm", "sad", "calm", "sad", "calm"]
    labels, predictions = write(tmp_path / "l.json", true), write(tmp_path / "p.json", [*true[:2], *true[1:4]])
    assert main(["score", task, predictions, labels, "--share", ".25"]) == 0
    assert "1.0000" in (shown := capsys.readouterr().out) and "on 2 tracks" in shown
    assert main(["score", task, predictions, labels]) == 0
    assert "0.4000" in capsys.readouterr().out
    assert main(["score", task, predictions, labels, "--share", "0"]) == 2


@pytest.mark.parametrize(("task", "column"), [("q1", "station_name"), ("q2", "mood_tag"), ("q3", "genre")])
def test_score_takes_the_organisers_tables(tmp_path, capsys, task, column):
    """A column table as train_label: in the order of data_idx as a number, not as it stands."""
    true = {str(i): ["calm", "sad"][i % 2] if task != "q2" else [["calm"], ["sad", "calm"]][i % 2] for i in range(12)}
    table = {"track_index": {key: 100 - int(key) for key in reversed(true)}, column: dict(sorted(true.items()))}
    labels = write(tmp_path / "labels.json", table)
    predictions = write(tmp_path / "p.json", list(true.values()))
    assert main(["score", task, predictions, labels]) == 0
    assert " 1.0000 " in capsys.readouterr().out
    assert main(["score", task, predictions, write(tmp_path / "x.json", {"track_index": {"0": 1}})]) == 2
    assert column in capsys.readouterr().err


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
