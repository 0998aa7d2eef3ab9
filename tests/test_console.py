"""What the terminal shows: quiet, JSON, plain progress."""

import argparse
import json

import numpy as np
import pytest

from tfmusic import console as module
from tfmusic.cli import execute, main
from tfmusic.console import Console, console
from tfmusic.errors import DataError
from tfmusic.reports.page import render


@pytest.mark.parametrize("place", ["before", "after"])
def test_json_is_one_document(trained, capsys, place):
    """Standard output is JSON alone, whichever side of the command --json stands on."""
    arguments = ["evaluate", str(trained)]
    assert main(["--json", *arguments] if place == "before" else [*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["exit_code"] == 0
    report = json.loads((trained / "evaluation" / "report.json").read_text(encoding="utf-8"))
    assert document["report"] == report


def test_json_of_an_error(tmp_path, capsys):
    """The line is there too, and the exit code."""
    assert main(["predict", str(tmp_path), str(tmp_path / "a.npy"), "--json"]) == 2
    shown = capsys.readouterr()
    document = json.loads(shown.out)
    assert document["exit_code"] == 2
    assert shown.err == f"tfmusic: {document['error']}\n"


def test_quiet_keeps_results_alone(trained, music, tmp_path, capsys):
    """Answers and tables stay; what was written where, and the next command's output, do not change."""
    mel = str(min((music / "q2/test/test_data/mel_spectrogram").glob("*.npy")))
    assert main(["predict", str(trained), mel, "--quiet"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 1
    assert main(["--quiet", "predict", str(trained), mel, "--out", str(tmp_path / "a.json")]) == 0
    assert capsys.readouterr().out == ""
    assert main(["predict", str(trained), mel, "--out", str(tmp_path / "a.json"), "--overwrite"]) == 0
    assert capsys.readouterr().out.startswith("1 predictions: ")


def test_a_repeated_result_is_a_list(capsys):
    """A command for several tasks adds a report each; a single result that is a list stays one value."""
    shown = Console()
    shown.begin(quiet=False, as_json=True)
    shown.result(report=1, names=["a"])
    shown.result(report=2)
    shown.result(report=3)
    shown.show("hidden")
    shown.finish(0)
    assert json.loads(capsys.readouterr().out) == {"report": [1, 2, 3], "names": ["a"], "exit_code": 0}


def test_plain_progress_says_rate_and_time_left(capsys, monkeypatch):
    """Where there is no terminal: a line now and then, without control characters."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with Console().progress("score", 100, "tracks") as progress:
        now[0] = 40.0
        progress.advance(20, "fine")
        now[0] = 200.0
        progress.advance(80)
    first, second, *rest = capsys.readouterr().err.splitlines()
    assert first == "score: 20/100 tracks, 0.5/s, 0:02:40 left fine"
    assert second == "score: 100/100 tracks, 0.5/s"
    assert not any("\x1b" in line for line in (first, second, *rest))


def test_no_color_on_a_terminal(monkeypatch, capsys):
    """NO_COLOR leaves no colour in the bar of a terminal."""
    import sys

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("FORCE_COLOR", "1")
    with Console().progress("score", 2, "tracks") as progress:
        progress.advance(2)
    shown = capsys.readouterr().err
    assert "score" in shown
    assert "\x1b[3" not in shown.replace("\x1b[3J", "")
    assert "38;5" not in shown


FORGED = "a\x1b[2K\x9b1A\nforged: all well\r\u202egpj.\u2028\U000e0041b"
FORGING = ("\x1b", "\x9b", "\r", "\u202e", "\u2028", "\U000e0041", "\nforged")


@pytest.mark.parametrize("way", ["say", "show", "warn", "table", "progress", "json", "error", "os error", "argument"])
def test_names_forge_no_lines(capsys, monkeypatch, way):
    """Escapes, ends of lines and signs of direction in names are shown as escapes, wherever a name is shown."""

    def fails(_):
        raise DataError(FORGED) if way == "error" else FileNotFoundError(2, "No such file", FORGED)

    console.begin(quiet=False, as_json=way == "json")
    if way in ("say", "show", "warn"):
        getattr(console, way)(f"skipped {FORGED}")
    elif way == "table":
        console.table([(FORGED, 1)], ("name", "n"))
    elif way == "progress":
        monkeypatch.setattr(module, "SECONDS_BETWEEN_PLAIN_LINES", -1.0)
        with console.progress(FORGED, 2, "tracks") as progress:
            progress.advance(1, FORGED)
    elif way == "json":
        console.result(name=FORGED)
        console.finish(0)
    elif way == "argument":
        assert main(["predict", "run", FORGED, f"--{FORGED}"]) == 2
    else:
        assert execute(fails, argparse.Namespace(quiet=False, json=False)) == 2
    shown = "".join(capsys.readouterr())
    assert [sign for sign in FORGING if sign in shown] == []
    assert "\\u001b[2K" in shown
    if way == "json":
        assert json.loads(shown)["name"] == FORGED


def test_names_in_all_scripts_stay():
    """Hangul, Persian with its joiner, accents and emojis are no escapes."""
    names = "가나 می\u200cخواهم é 👩\u200d🎤 全角\u3000a b\xa0c"
    assert module.printable(names) == names


def test_pages_show_names_as_escapes():
    """A name in a page turns no text around it."""
    page = render("examples.html", name=FORGED, examples=[])
    assert [sign for sign in FORGING[:-1] if sign in page] == []


def test_inspect_and_predict_show_names_as_escapes(trained, tmp_path, capsys):
    """File names in the tables of `inspect` and `predict`, in skipped tracks and in CSV files."""
    for label, seed in (("x", 0), ("y", 1)):
        (tmp_path / "data" / label).mkdir(parents=True)
        mel = np.random.default_rng(seed).random((1, 128, 700)).astype(np.float32)
        np.save(tmp_path / "data" / label / "good.npy", mel)
    (tmp_path / "data" / "x" / f"{FORGED}.npy").write_bytes(b"no spectrogram")
    assert main(["inspect", "folder", "--data", str(tmp_path / "data")]) == 0
    shown = "".join(capsys.readouterr())
    out = tmp_path / "p.csv"
    assert main(["predict", str(trained), str(tmp_path / "data" / "x"), "--out", str(out)]) == 2
    for text in (shown, "".join(capsys.readouterr()), out.read_text(encoding="utf-8")):
        assert [sign for sign in FORGING if sign in text] == []
        assert "\\u001b[2K" in text
