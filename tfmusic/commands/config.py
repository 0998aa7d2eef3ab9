"""`tfmusic config show|validate|keys|schema|new`: read, check and begin configs."""

import argparse
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from tfmusic.commands import arguments
from tfmusic.errors import UsageError

if TYPE_CHECKING:
    from tfmusic.config.sections import Config

_ACTIONS = """\
show NAME           print the complete config: every key with its value, meaning and allowed values
validate NAME...    check all that `fit` would refuse without reading data
keys [WORD...]      print the reference of all keys, or of those that contain a word
schema              print JSON Schema for editors; a config that begins with
                    `# yaml-language-server: $schema=tfmusic.schema.json` is then completed and checked
new NAME --from S   write NAME.yaml with the keys in which config S differs from the defaults
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = f"{parser.description}\n\n{_ACTIONS}"
    parser.add_argument("action", choices=("show", "validate", "keys", "schema", "new"))
    parser.add_argument(
        "names", nargs="*", default=[], metavar="NAME", help="task (q1, q2, ...) or path of a .yaml file"
    )
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key.path=value", help="override keys of the config"
    )
    parser.add_argument("--from", dest="source", default="folder", help="new: config to begin from (default folder)")
    parser.add_argument("--overwrite", action="store_true", help="new: replace an existing file")


def run(args: argparse.Namespace) -> None:
    """Does what is asked for and prints it."""
    is_override = [bool(re.match(r"[\w.]+=", word)) for word in args.names]
    names = [word for word, is_one in zip(args.names, is_override, strict=True) if not is_one]
    overrides = [*(word for word, is_one in zip(args.names, is_override, strict=True) if is_one), *args.overrides]
    if args.action == "keys":
        return _keys(names)
    if args.action == "schema":
        return _schema()
    if not names or (len(names) > 1 and args.action != "validate"):
        raise UsageError(f"config {args.action} needs the name of one config. Received: {' '.join(names) or 'none'}")
    if args.action == "show":
        return arguments.print_config(_read(names[0], overrides))
    if args.action == "validate":
        return _validate(names, overrides)
    return _new(names[0], args.source, overrides, overwrite=args.overwrite)


def _read(name: str, overrides: list[str]) -> "Config":
    from tfmusic.config.loading import find_config, load_config

    return load_config(find_config(name), overrides)


def _validate(names: list[str], overrides: list[str]) -> None:
    from tfmusic.config.loading import find_config
    from tfmusic.console import console
    from tfmusic.core.runtime import start_tensorflow

    configs = {name: _read(name, overrides) for name in names}
    start_tensorflow()
    from tfmusic.training.checks import check_config

    for name, config in configs.items():
        check_config(config)
        console.show(f"{find_config(name)}: valid")
    console.result(valid=True)


def _keys(words: list[str]) -> None:
    from tfmusic.config.reference import list_keys
    from tfmusic.console import console

    keys = [key for key in list_keys() if all(word in f"{key.path} {key.meaning}" for word in words)]
    if not keys:
        raise UsageError(f"config keys: no key or meaning contains {' and '.join(words)}")
    for key in keys:
        default = f"default {key.default}" if key.default else "required"
        owners = f"; for data.loader={' | '.join(key.loaders)}" if key.loaders else ""
        console.show(f"{key.path}: {key.values} ({default}){owners}", f"    {key.meaning}")
    console.result(keys=[vars(key) for key in keys])


def _schema() -> None:
    from tfmusic.config.reference import json_schema
    from tfmusic.console import console

    schema = json_schema()
    console.show(*json.dumps(schema, indent=2).split("\n"))
    console.result(schema=schema)


def _new(name: str, source: str, overrides: list[str], *, overwrite: bool) -> None:
    from tfmusic.config.loading import config_from_text
    from tfmusic.config.reference import to_new_yaml
    from tfmusic.console import console
    from tfmusic.core.files import write_text

    path = Path(name if name.endswith((".yaml", ".yml")) else f"{name}.yaml")
    if path.exists() and not overwrite:
        raise UsageError(f"{path}: exists already. Choose another name, or pass --overwrite to replace it")
    config = _read(source, overrides)
    if isinstance(config.task, str) and not any(word.startswith("task=") for word in overrides):
        config = _read(source, [*overrides, f"task={path.stem}"])
    text = to_new_yaml(config, path=str(path), source=source)
    config_from_text(text, str(path))
    write_text(path, text)
    console.result(config=path)
    console.show(
        f"wrote {path}. Next: edit it (tfmusic config keys lists all keys), then tfmusic config validate {path}"
    )
