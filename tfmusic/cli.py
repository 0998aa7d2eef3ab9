"""The command line: a table of subcommands, parsing, exit codes.

0 done, 1 a bug of ours (with its trace), 2 something the user can mend (one line), 130 interrupted.
"""

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from itertools import takewhile
from typing import Any, NoReturn

from tfmusic import __version__
from tfmusic.errors import TfmusicError, UsageError, did_you_mean, one_line

COMMANDS = {
    "synth": "write small learnable data for q1, q2 and q3",
    "inspect": "look at labels, lengths, spectrograms and faults of data or records",
    "extract": "compute spectrogram files of audio",
    "build-records": "shard audio or spectrograms and labels into TFRecords",
    "fit": "train a model on records",
    "ensemble": "join runs into one by the mean of their logits",
    "evaluate": "score a run on held-out tracks",
    "report": "compare evaluated runs",
    "predict": "answer for tracks",
    "explain": "show why a model answers so for a track",
    "score": "compare a prediction file with the answers",
    "embed": "extract embeddings of tracks from a run or from musicnn",
    "weights": "store pretrained weights for every other command",
    "models": "list the models, what they cost and how far they see",
    "export": "write a SavedModel that answers for whole tracks, or ONNX, or LiteRT",
    "serve": "serve a local page to try a model, and its answers as JSON",
    "verify": "check that records, runs and exports are whole",
    "benchmark": "measure ratios side by side on this machine",
    "config": "show or validate a config",
}


def main(arguments: Sequence[str]) -> int:
    """Runs one subcommand and returns the exit code."""
    from tfmusic.console import console

    try:
        args = _parse(arguments)
    except UsageError as error:
        console.begin(quiet=False, as_json="--json" in takewhile(lambda word: word != "--", arguments))
        return _fail(str(error))
    if args.command is None:
        _parser(()).print_help()
        return 0
    console.begin(quiet=args.quiet, as_json=args.json)
    try:
        code: int | None = _module(args.command).run(args)
        console.finish(code or 0)
        return code or 0
    except TfmusicError as error:
        return _fail(str(error))
    except BrokenPipeError:
        _say_no_more()
        return 0
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        place = f"{error.filename}: " if error.filename else ""
        return _fail(f"{place}{error.strerror or error}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)  # noqa: T201
        console.finish(130, "interrupted")
        return 130


def entry_point() -> NoReturn:
    """Runs the command line of this process; a termination signal ends it as Ctrl-C does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):  # a terminal that knows no Hangul gets escapes, not a trace
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    sys.exit(main(sys.argv[1:]))


class _Parser(argparse.ArgumentParser):
    """A parser whose errors end as all others do: in one line, and in JSON where that is asked for."""

    def error(self, message: str) -> NoReturn:
        """Prints the usage and raises UsageError."""
        self.print_usage(sys.stderr)
        raise UsageError(message)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Returns the parsed arguments; overrides may stand anywhere, which argparse alone does not allow.

    Raises:
        UsageError: they are not what the command takes; its usage has been printed.
    """
    parser = _parser(arguments)
    called = _called(arguments)
    if called is not None and called not in COMMANDS:
        parser.error(f"no command {called!r}.{did_you_mean(called, COMMANDS)} tfmusic --help lists them")
    args, rest = parser.parse_known_args(arguments)
    is_override = [hasattr(args, "overrides") and "=" in word and not word.startswith("-") for word in rest]
    if not all(is_override):
        hint = _option_hint(parser, args.command, rest)
        if not hint and hasattr(args, "overrides"):
            hint = " A key of the config is written without --, as training.epochs=3"
        parser.error(f"unrecognized arguments: {' '.join(rest)}.{hint}")
    if rest:
        args.overrides = [*args.overrides, *rest]
    return args


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """Returns the parser; only the subcommand that is called is imported, so that help answers at once."""
    about = "Music classification from whole tracks, spectrogram to answer."
    parser = _Parser(prog="tfmusic", description=about, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"tfmusic {__version__}")
    _add_output(parser, False)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    called = _called(arguments)
    for name, summary in COMMANDS.items():
        command = commands.add_parser(
            name, help=summary, description=summary[0].upper() + summary[1:] + ".", allow_abbrev=False
        )
        if name == called:
            _module(name).add_arguments(command)
        _add_output(command, argparse.SUPPRESS)  # else it would undo what stands before the command
    return parser


def _option_hint(parser: argparse.ArgumentParser, command: str, rest: Sequence[str]) -> str:
    """Returns the end of a message that names the option nearest to a word that is none."""
    commands = next(action.choices for action in parser._actions if isinstance(action.choices, dict))
    known = [name for action in commands[command]._actions for name in action.option_strings if name.startswith("--")]
    wrong = next((word.partition("=")[0] for word in rest if word.startswith("--")), None)
    return did_you_mean(wrong, known, likeness=0.75) if wrong else ""


def _called(arguments: Sequence[str]) -> str | None:
    return next((word for word in arguments if not word.startswith("-")), None)


def _module(command: str):  # type: ignore[no-untyped-def]  # noqa: ANN202
    return importlib.import_module(f"tfmusic.commands.{command.replace('-', '_')}")


def _add_output(parser: argparse.ArgumentParser, default: Any) -> None:
    """Adds what may stand before and after the name of a command."""
    parser.add_argument("--quiet", action="store_true", default=default, help="print results and warnings alone")
    parser.add_argument("--json", action="store_true", default=default, help="print one JSON document of the results")


def _fail(line: str) -> int:
    from tfmusic.console import console

    line = one_line(line)
    print(f"tfmusic: {line}", file=sys.stderr)  # noqa: T201
    try:
        console.finish(2, line)
    except BrokenPipeError:
        _say_no_more()
    return 2


def _say_no_more() -> None:
    """Ends the output, of which its reader, such as `head`, has seen enough."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
