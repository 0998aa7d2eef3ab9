"""Arguments that several commands share, and the steps from them to objects."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tfmusic.config import Config


def add_config(parser: argparse.ArgumentParser) -> None:
    """Adds CONFIG and `key.path=value` overrides."""
    parser.add_argument("config", help="task (q1, q2, q3, ...) or path of a .yaml file")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key.path=value", help="override keys of the config"
    )
    parser.add_argument("--print-config", action="store_true", help="print the resolved config and stop")
    parser.add_argument("--dry-run", action="store_true", help="check everything, say what would be done, stop")


def read_config(args: argparse.Namespace) -> "Config":
    """Returns the config that the arguments name, with overrides applied."""
    from tfmusic.configfile import find_config, load_config

    return load_config(find_config(args.config), args.overrides)


def print_config(config: "Config") -> None:
    """Prints a config as YAML."""
    from tfmusic.configfile import to_yaml
    from tfmusic.console import console

    console.say(to_yaml(config).rstrip())


def positive(text: str) -> int:
    """Returns a whole number of at least 1; for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {text}")
    return value


def default_records(task: str) -> Path:
    """Returns the folder that `build-records` writes to unless told otherwise."""
    from tfmusic.converter.build import RECORDS_VERSION

    return Path("records") / task / RECORDS_VERSION
