"""The command line: the table of commands, parsing, exit codes.

Exit codes: 0 done; 1 a bug in tfmusic, with its trace; 2 something the user can fix, in one line; 130 interrupted.
"""

import argparse
import importlib
import importlib.util
import os
import signal
import sys
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any, NamedTuple, NoReturn

from tfmusic import __version__
from tfmusic.errors import TfmusicError, UsageError, did_you_mean, one_line


class Command(NamedTuple):
    """What `tfmusic --help` says about a command, and the example that ends its own help."""

    summary: str
    example: str


COMMANDS = {
    "synth": Command("write small synthetic data for q1, q2 and q3", "tfmusic synth --out DATA --tracks 400"),
    "inspect": Command(
        "show labels, lengths, spectrograms and faults of data or records",
        "tfmusic inspect q2 --data DATA/q2 --out look",
    ),
    "extract": Command("compute spectrogram files of audio", "tfmusic extract folder --data MUSIC --out mels"),
    "build-records": Command(
        "write audio or spectrograms with their labels to TFRecord shards", "tfmusic build-records q2 --data DATA/q2"
    ),
    "fit": Command("train a model on records", "tfmusic fit q2 training.fold=0 model.name=crnn"),
    "ensemble": Command(
        "join runs into one by the mean of their logits",
        "tfmusic ensemble runs/q2/crnn-1 runs/q2/crnn-2 --out runs/q2/both",
    ),
    "evaluate": Command("score a run on held-out tracks", "tfmusic evaluate runs/q2/crnn-1"),
    "runs": Command("list runs with state, score, size and date, or remove some", "tfmusic runs q2"),
    "report": Command("compare evaluated runs", "tfmusic report runs/q2/crnn-1 runs/q2/both --out runs.html"),
    "predict": Command("predict tracks", "tfmusic predict runs/q2/crnn-1 DATA/q2/test --out predictions.json"),
    "explain": Command("show what a prediction is based on", "tfmusic explain runs/q2/crnn-1 song.npy --out song.html"),
    "score": Command(
        "compare a prediction file with the labels", "tfmusic score q2 predictions.json DATA/answers/q2.json"
    ),
    "embed": Command(
        "write embeddings of tracks from a run or from musicnn", "tfmusic embed musicnn DATA/q1/train --out q1.npz"
    ),
    "weights": Command("store pretrained weights for the other commands", "tfmusic weights musicnn --download"),
    "models": Command("list the models with their cost and receptive field", "tfmusic models q1 --measure"),
    "export": Command(
        "write a run as a SavedModel that predicts whole tracks, or as ONNX or LiteRT",
        "tfmusic export runs/q2/crnn-1 --out models/q2/1",
    ),
    "serve": Command("serve a local page and a JSON endpoint of a model", "tfmusic serve runs/q2/crnn-1 --port 8000"),
    "verify": Command(
        "check that records, runs and exports are complete and undamaged", "tfmusic verify runs/q2/crnn-1"
    ),
    "config": Command(
        "show, check and begin configs, and list their keys", "tfmusic config show q2 training.epochs=30"
    ),
}
MOVED = {"benchmark": 'benchmarks are no command now. In the repository: make benchmark ARGS="converter --gigabytes 5"'}
MOVED_OPTIONS = {"--run-dir": "--out"}


def main(arguments: Sequence[str]) -> int:
    """Runs one command and returns the exit code."""
    from tfmusic.console import console

    if sys.platform == "win32":
        return _fail("tfmusic runs on Linux and macOS. On Windows, install it in WSL, the Linux of Windows")
    try:
        args = _parse(_with_config(_without_help(arguments)))
    except UsageError as error:
        console.begin(quiet=False, as_json="--json" in takewhile(lambda word: word != "--", arguments))
        return _fail(str(error))
    if (backend := os.environ.get("KERAS_BACKEND") or "tensorflow") not in ("tensorflow", "jax"):
        return _fail(f"KERAS_BACKEND must be tensorflow or jax. Received: {backend}; unset it, or set one of these")
    if backend == "jax" and importlib.util.find_spec("jax") is None:
        return _fail("KERAS_BACKEND=jax needs an extra: pip install 'tfmusic[jax]'")
    if args.command is None:
        make_parser().print_help()
        return 0
    return execute(_module(args.command).run, args)


def execute(run: Callable[[argparse.Namespace], int | None], args: argparse.Namespace) -> int:
    """Runs a function on parsed arguments and returns the exit code; what the user can fix becomes one line."""
    from tfmusic.console import console

    console.begin(quiet=args.quiet, as_json=args.json)
    try:
        code = run(args) or 0
        console.finish(code)
        return code
    except TfmusicError as error:
        return _fail(str(error))
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        place = f"{error.filename}: " if error.filename else ""
        return _fail(f"{place}{error.strerror or error}")
    except KeyboardInterrupt:
        console.fault("interrupted")
        console.finish(130, "interrupted")
        return 130


def entry_point() -> NoReturn:
    """Runs the command line of this process; SIGTERM ends it as Ctrl-C does."""
    from tfmusic.console import silence_if_closed

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):  # a terminal without Hangul gets escapes, not a trace
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    code: int | str | None = 0
    try:
        code = main(sys.argv[1:])
    except SystemExit as end:  # of argparse, which prints its help
        code = end.code
    finally:
        for stream in (sys.stdout, sys.stderr):
            silence_if_closed(stream)
    sys.exit(code)


class Parser(argparse.ArgumentParser):
    """A parser whose errors end like all others: one line, and JSON where that is wanted."""

    def error(self, message: str) -> NoReturn:
        """Prints the usage and raises UsageError."""
        self.print_usage(sys.stderr)
        raise UsageError(message)


def add_output_options(parser: argparse.ArgumentParser, default: Any = False) -> None:
    """Adds `--quiet` and `--json`, which every command has."""
    parser.add_argument("--quiet", action="store_true", default=default, help="print only results and warnings")
    parser.add_argument("--json", action="store_true", default=default, help="print the results as one JSON document")


class _PrintCompletion(argparse.Action):
    """Prints the completion of all commands and options for a shell."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option_string: Any = None) -> None:
        import shtab

        every = make_parser(*COMMANDS)
        commands = next(action.choices for action in every._actions if isinstance(action.choices, dict))
        for action in (action for command in commands.values() for action in command._actions):
            if action.choices is None and action.nargs != 0:
                action.complete = shtab.FILE
        print(shtab.complete(every, values))  # noqa: T201
        parser.exit()


def make_parser(*called: str) -> argparse.ArgumentParser:
    """Returns the parser. It imports only the command that is called, so that help appears at once."""
    parser = Parser(
        prog="tfmusic",
        description="Music classification from whole tracks, spectrogram to prediction.",
        epilog="`tfmusic help COMMAND` explains a command and ends with an example",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--completion", action=_PrintCompletion, choices=("bash", "zsh", "tcsh"), help="print the completion of a shell"
    )
    parser.add_argument("-V", "--version", action="version", version=f"tfmusic {__version__}")
    add_output_options(parser)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, (summary, example) in COMMANDS.items():
        about = summary[0].upper() + summary[1:] + "."
        command = commands.add_parser(
            name, help=summary, description=about, epilog=f"example: {example}", allow_abbrev=False
        )
        if name in called:
            _module(name).add_arguments(command)
        add_output_options(command, argparse.SUPPRESS)  # a default here would undo an option before the command
    return parser


def _without_help(arguments: Sequence[str]) -> Sequence[str]:
    """Returns the arguments with `help COMMAND` as `COMMAND --help`."""
    if _called(arguments) != "help":
        return arguments
    rest = list(arguments)
    rest.remove("help")
    return [*rest, "--help"]


def _with_config(arguments: Sequence[str]) -> Sequence[str]:
    """Returns the arguments with `--config_file PATH`, as NSML has it, as the first argument of the command."""
    words = [
        part for word in arguments for part in (word.split("=", 1) if word.startswith("--config_file=") else [word])
    ]
    if "--config_file" not in words[:-1] or (called := _called(words)) is None:
        return arguments
    place = words.index("--config_file")
    path = words.pop(place + 1)
    words.pop(place)
    words.insert(words.index(called) + 1, path)
    return words


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Returns the parsed arguments. Overrides may stand anywhere, which argparse alone does not allow.

    Raises:
        UsageError: the command does not take these arguments; its usage has been printed.
    """
    called = _called(arguments)
    parser = make_parser(called or "")
    if called in MOVED:
        parser.error(MOVED[called])
    if called is not None and called not in COMMANDS:
        before = set(arguments[: list(arguments).index(called)]) - {"--quiet", "--json"}
        if before:
            parser.error(f"options follow the command. Received: {before.pop()} {called}")
        parser.error(f"no command {called!r}.{did_you_mean(called, COMMANDS)} `tfmusic help` lists the commands")
    args, rest = parser.parse_known_args(arguments)
    takes_overrides = hasattr(args, "overrides")
    if not all(takes_overrides and _is_override(word) for word in rest):
        parser.error(f"unrecognized arguments: {' '.join(rest)}.{_hint(parser, args, rest)}")
    if rest:
        args.overrides = [*args.overrides, *rest]
    return args


def _is_override(word: str) -> bool:
    return "=" in word and not word.startswith("-")


def _hint(parser: argparse.ArgumentParser, args: argparse.Namespace, rest: Sequence[str]) -> str:
    """Returns the end of a message about arguments that nothing takes: the nearest option, or what may be meant."""
    wrong = next((word.partition("=")[0] for word in rest if word.startswith("--")), None)
    if wrong in MOVED_OPTIONS:
        return f" The option is {MOVED_OPTIONS[wrong]} now"
    actions = parser._actions
    if args.command is not None:
        actions = next(action.choices for action in actions if isinstance(action.choices, dict))[args.command]._actions
    options = [name for action in actions for name in action.option_strings if name.startswith("--")]
    if wrong and (nearest := did_you_mean(wrong, options, likeness=0.75)):
        return nearest
    if args.command is None:
        return " Options follow the command: `tfmusic help` lists the commands"
    return " A key of the config is written without --, as training.epochs=3" if hasattr(args, "overrides") else ""


def _called(arguments: Sequence[str]) -> str | None:
    if arguments and arguments[0] == "--completion":
        return None
    return next((word for word in arguments if not word.startswith("-")), None)


def _module(command: str):  # type: ignore[no-untyped-def]  # noqa: ANN202
    return importlib.import_module(f"tfmusic.commands.{command.replace('-', '_')}")


def _fail(line: str) -> int:
    from tfmusic.console import console

    line = one_line(line)
    console.fault(f"tfmusic: {line}")
    console.finish(2, line)
    return 2
