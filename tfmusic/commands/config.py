"""`tfmusic config show|validate CONFIG`: look at a config before it is used."""

import argparse

from tfmusic.commands import arguments
from tfmusic.core.runtime import start_tensorflow


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("action", choices=("show", "validate"), help="print it complete, or only check it")
    parser.add_argument("config", help="task (q1, q2, q3, ...) or path of a .yaml file")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key.path=value", help="override keys of the config"
    )


def run(args: argparse.Namespace) -> None:
    """Prints the config, or that it is valid."""
    from tfmusic.config.loading import find_config
    from tfmusic.console import console

    config = arguments.read_config(args)
    if args.action == "show":
        return arguments.print_config(config)
    from tfmusic.training.checks import check_config

    start_tensorflow()
    check_config(config)
    console.result(valid=True)
    return console.show(f"{find_config(args.config)}: valid")
