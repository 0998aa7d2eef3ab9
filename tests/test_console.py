"""What the terminal shows: quiet, JSON, plain progress."""

import json

import pytest

from tfmusic import console as module
from tfmusic.cli import main
from tfmusic.console import Console


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
