"""Arguments that several commands share, and the steps from them to configs, records and tracks."""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from tfmusic.errors import DataError, UsageError

if TYPE_CHECKING:
    from tfmusic.config.sections import Config

_SHOWN_SKIPPED = 20  # tracks whose reasons are printed


def add_config(parser: argparse.ArgumentParser) -> None:
    """Adds CONFIG, `key.path=value` overrides, `--print-config` and `--dry-run`."""
    parser.add_argument("config", help="task (q1, q2, q3, ...) or path of a .yaml file; also as --config_file PATH")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key.path=value", help="override keys of the config"
    )
    parser.add_argument("--print-config", action="store_true", help="print the resolved config and stop")
    parser.add_argument("--dry-run", action="store_true", help="check everything, say what would be done and stop")


def take_word(args: argparse.Namespace) -> str | None:
    """Takes the first argument that is no override from the overrides; None where there is none."""
    word = next((word for word in args.overrides if "=" not in word), None)
    if word is not None:
        args.overrides.remove(word)
    return word


def read_config(args: argparse.Namespace) -> "Config":
    """Returns the config that the arguments name, with overrides applied."""
    from tfmusic.config.loading import find_config, load_config

    return load_config(find_config(args.config), args.overrides)


def print_config(config: "Config") -> None:
    """Prints a complete config as YAML with the meaning of each key."""
    from tfmusic.config.reference import to_commented_yaml
    from tfmusic.console import console

    console.result(config=config.model_dump(mode="json"))
    console.show(*to_commented_yaml(config).rstrip().split("\n"))


def add_output(parser: argparse.ArgumentParser, what: str, *, required: bool = False, metavar: str = "FILE") -> None:
    """Adds `--out`, which names what a command writes, and `--overwrite`, which lets it replace what is there."""
    parser.add_argument("--out", type=Path, required=required, metavar=metavar, help=what)
    parser.add_argument("--overwrite", action="store_true", help="replace what --out names where it exists")


def check_output(args: argparse.Namespace, *endings: str) -> None:
    """Checks the file that `--out` names, if it names one, before any work is done.

    Raises:
        UsageError: it has another ending, or exists and there is no `--overwrite`.
    """
    from tfmusic.core.files import check_target_file, remove_leftovers, resolved

    if args.out is None:
        return
    if args.out.suffix not in endings:
        raise UsageError(f"--out must end in {' or '.join(endings)}. Received: {args.out}")
    check_target_file(args.out, overwrite=args.overwrite)
    args.out = resolved(args.out)
    remove_leftovers(args.out.parent)


def check_output_folder(args: argparse.Namespace) -> None:
    """Checks the folder that `--out` names, if it names one: new, empty, or with `--overwrite`.

    Raises:
        UsageError: it holds something and there is no `--overwrite`, or it is a file.
    """
    from tfmusic.core.files import check_own_files, check_way_to

    if args.out is not None:
        check_way_to(args.out)
    if args.out is None or not args.out.exists():
        return
    if not args.out.is_dir():
        raise UsageError(f"{args.out}: must be the name of a folder. Received: a file")
    if any(args.out.iterdir()) and not args.overwrite:
        raise UsageError(f"{args.out}: exists already. Pass --overwrite to replace its files, or another name")
    check_own_files(args.out)


def positive(text: str) -> int:
    """Returns a whole number of at least 1; for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {text}")
    return value


def folder(text: str) -> Path:
    """Returns a folder of this machine; for argparse."""
    if "://" in text:
        raise argparse.ArgumentTypeError(f"must be a folder, for example of a mounted bucket. Received: {text}")
    return Path(text)


def find_records(place: Path | str) -> Path:
    """Returns a records folder. For a URL of a store this is its local copy, which is made if there is none yet."""
    from tfmusic.records.store import fetch, is_url

    return fetch(str(place)) if is_url(place) else Path(place)


def fail_on_skipped(skipped: Iterable[tuple[str, str]], n_tracks: int, *, lacks: str) -> None:
    """Lists the tracks that could not be read, given as ids with reasons.

    Raises:
        DataError: at least one was skipped, so the command has not done all of its work.
    """
    from tfmusic.console import console
    from tfmusic.errors import one_line

    rows = [{"track_id": track_id, "reason": one_line(reason)} for track_id, reason in skipped]
    console.result(skipped=rows)
    for row in rows[:_SHOWN_SKIPPED]:
        console.warn(f"skipped {row['track_id']}: {row['reason']}")
    if len(rows) > _SHOWN_SKIPPED:
        console.warn(f"... and {len(rows) - _SHOWN_SKIPPED:,} more; --json lists all")
    if rows:
        raise DataError(f"{len(rows):,} of {n_tracks:,} tracks cannot be read and have no {lacks}; the others have")
