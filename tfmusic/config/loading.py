"""YAML files and `key.path=value` overrides to a validated `Config`, with errors that name file, line and key.

YAML 1.1 has traps: `1e-3` is a string, `no` is false, `012` is ten, `12:30` is 750. Here only `true` and `false` are
booleans, `1e-3` is a number, other words are strings, and numbers with a leading zero are refused.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from tfmusic.config.sections import Config
from tfmusic.datasets import LOADER_SECTIONS
from tfmusic.errors import ConfigError, did_you_mean

MAX_CONFIG_BYTES = 1 << 20  # a config is a page of text; a larger file is a mistake or an attack


class _Loader(yaml.SafeLoader):
    """A safe loader with the scalars of YAML 1.2, no aliases, tags or duplicate keys."""

    yaml_implicit_resolvers: dict[str, Any] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Returns the next node; refuses aliases, which a config does not need but a YAML bomb does."""
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.constructor.ConstructorError(None, None, "aliases are not allowed", event.start_mark)
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "tag", None) is not None:
            raise yaml.constructor.ConstructorError(None, None, f"tag {event.tag} is not allowed", event.start_mark)
        return super().compose_node(parent, index)


def _refuse_duplicates(loader: _Loader, node: yaml.MappingNode) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} must be text", key_node.start_mark)
        if key in result:
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} appears twice", key_node.start_mark)
        result[key] = loader.construct_object(value_node, deep=True)
    return result


def _refuse_leading_zero(loader: _Loader, node: yaml.ScalarNode) -> None:
    message = f"{node.value} has a leading zero: remove it, or put text in quotes"
    raise yaml.constructor.ConstructorError(None, None, message, node.start_mark)


_SCALARS = (
    ("tag:yaml.org,2002:bool", r"^(?:true|false)$", "tf"),
    ("tag:yaml.org,2002:null", r"^(?:null|~|)$", ["n", "~", ""]),
    ("!leading-zero", r"^[-+]?0[0-9_]+$", "-+0"),
    ("tag:yaml.org,2002:int", r"^[-+]?(?:0|[1-9][0-9]*)$", "-+0123456789"),
    (
        "tag:yaml.org,2002:float",
        r"^[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)$",
        "-+.0123456789",
    ),
)
for _tag, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(_tag, re.compile(_pattern), list(_first))
_Loader.add_constructor("tag:yaml.org,2002:float", lambda _, node: float(node.value))
_Loader.add_constructor("tag:yaml.org,2002:map", _refuse_duplicates)
_Loader.add_constructor("!leading-zero", _refuse_leading_zero)


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads: text that would be read as a number, true or null is put in quotes."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Returns the validated config of a YAML file with `key.path=value` overrides applied.

    Raises:
        ConfigError: the file is missing, is not plain YAML, or a key or value is not valid.
    """
    tree, places = _read(path)
    for override in overrides:
        places[_apply(tree, override, origin=path.name)] = f"override {override!r}"
    return _validate(tree, places, origin=str(path))


def config_from_text(text: str, origin: str) -> Config:
    """Returns the validated config of a YAML text; `origin` names it in errors."""
    tree, places = _parse(text, origin)
    return _validate(tree, places, origin)


def to_yaml(config: Config) -> str:
    """Returns the complete config as YAML that `config_from_text` reads back unchanged."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def dump_value(value: Any) -> str:
    """Returns a value as YAML on one line."""
    text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=True, width=1 << 30)
    return text.removesuffix("...\n").rstrip("\n")


def find_config(name: str) -> Path:
    """Returns the file of a config, which is named by its path, or by a name in ./configs or among the shipped configs.

    Raises:
        ConfigError: there is no such file; the message lists the names that exist.
    """
    if name.endswith((".yaml", ".yml")) or "/" in name:
        path = Path(name)
        if path.is_file():
            return path
        raise ConfigError(f"{name}: no such config file. Pass the path of a .yaml file, or one of: {_listed()}")
    for folder in _config_folders():
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    raise ConfigError(f"no config named {name!r}.{did_you_mean(name, _names())} Found: {_listed()}")


def _config_folders() -> list[Path]:
    package = Path(__file__).parents[1]
    # The wheel ships configs/ inside the package; an editable install has it beside the package.
    return [Path("configs"), package / "shipped_configs", package.parent / "configs"]


def _names() -> list[str]:
    return sorted({path.stem for folder in _config_folders() for path in folder.glob("*.yaml")})


def _listed() -> str:
    return ", ".join(_names()) or "none"


def _read(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    if path.exists() and not (path.is_file() or path.is_dir()):  # a pipe would wait for ever
        raise ConfigError(f"{path}: must be a file. Received: a pipe or a device")
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if len(raw) > MAX_CONFIG_BYTES:
        raise ConfigError(f"{path}: a config must be under 1 MiB. Received: {len(raw)} bytes")
    try:
        return _parse(raw.decode("utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: must be UTF-8 text: {error}") from error


def _parse(text: str, origin: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Returns the values, and the file and line of every key path."""
    try:
        node = yaml.compose(text, Loader=_Loader)
        tree = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{origin}:{line}: not a valid config: {error.problem}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{origin}: not a valid config: {str(error).splitlines()[0]}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{origin}: a config must be a mapping of sections. Received: {type(tree).__name__}")
    return tree, {key_path: f"{origin}:{line}" for key_path, line in _line_of_each_key(node, ())}


def _line_of_each_key(node: yaml.Node | None, path: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    if isinstance(node, yaml.MappingNode):
        for key_node, value_node in node.value:
            key_path = (*path, key_node.value)
            yield ".".join(key_path), key_node.start_mark.line + 1
            yield from _line_of_each_key(value_node, key_path)


def _apply(tree: dict[str, Any], override: str, origin: str) -> str:
    """Sets the key of an override and returns its path."""
    key_path, equals, text = override.partition("=")
    if not equals or not re.fullmatch(r"\w+(\.\w+)*", key_path):
        raise ConfigError(f"an override must be key.path=value. Received: {override!r}")
    if key_path not in _all_keys():
        raise ConfigError(f"{origin}: unknown key {key_path!r} in override {override!r}.{_nearest(key_path)}")
    value = _parse(f"value: {text}", f"override {override!r}")[0]["value"]
    *parents, leaf = key_path.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"{origin}: {parent} must be a mapping of keys for override {override!r}")
    tree[leaf] = value
    return key_path


def _validate(tree: Mapping[str, Any], places: Mapping[str, str], origin: str) -> Config:
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(_message(error, places, origin)) from error


def _message(error: ValidationError, places: Mapping[str, str], origin: str) -> str:
    first, more = error.errors()[0], error.error_count() - 1
    if first["type"] == "union_tag_invalid":
        return f"{places.get('data.loader', origin)}: {_loader_message(str(first['ctx']['tag']))}"
    # For a union such as `int | none` the location ends with a branch: keep only the key.
    key_path = _known_key(_without_loader(tuple(str(part) for part in first["loc"])), first["type"])
    place = places.get(key_path, origin)
    tail = f" (and {more} more)" if more and first["type"] != "extra_forbidden" else ""
    if first["type"] == "extra_forbidden":
        return f"{place}: unknown key {key_path!r}.{_nearest(key_path)}"
    if first["type"] == "missing":
        return f"{origin}: key {key_path!r} is missing{tail}"
    reason = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error" and key_path not in _leaf_keys():
        return f"{place}: {reason}{tail}"  # a rule between keys; the reason names them
    return f"{place}: {key_path}: {reason}. Received: {_received(first)}{tail}"


def _without_loader(parts: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the parts of a key path without the loader, which pydantic puts after `data`."""
    return (parts[0], *parts[2:]) if parts[:1] == ("data",) and parts[1:2] and parts[1] in LOADER_SECTIONS else parts


def _loader_message(name: str) -> str:
    hint = did_you_mean(name, LOADER_SECTIONS, likeness=0.5)
    return f"data.loader must be one of {', '.join(LOADER_SECTIONS)}. Received: {name!r}.{hint}"


def _received(first: Mapping[str, Any]) -> str:
    value = first["input"]
    hint = " (write true or false)" if value in ("yes", "no", "on", "off", "Yes", "No") else ""
    return f"{value!r}{hint}"


def _known_key(parts: tuple[str, ...], kind: str) -> str:
    """Returns the key path of an error's location: its longest beginning that is a key."""
    if kind in ("extra_forbidden", "missing"):
        return ".".join(parts)
    keys = _all_keys()
    while parts and ".".join(parts) not in keys:
        parts = parts[:-1]
    return ".".join(parts)


def _nearest(key_path: str) -> str:
    """Returns the end of a message about an unknown key: the loader that has it, or the key that was meant."""
    owners = [name for name, section in LOADER_SECTIONS.items() if key_path in _keys(section, ("data",))]
    if owners:
        return f" It is for data.loader={' or '.join(owners)}"
    leaf = key_path.rsplit(".", 1)[-1]  # the same key in another section
    same_leaf = [key for key in sorted(_leaf_keys()) if key.rsplit(".", 1)[-1] == leaf]
    near = did_you_mean(key_path, _all_keys(), likeness=0.5)
    return near or (f" Did you mean {same_leaf[0]!r}?" if same_leaf else "")


def _all_keys() -> dict[str, None]:
    return dict.fromkeys(_keys(Config, ()))


def _leaf_keys() -> set[str]:
    return {key for key in _all_keys() if "." in key or key == "task"}


def _keys(section: type[BaseModel], path: tuple[str, ...]) -> Iterator[str]:
    for name, field in section.model_fields.items():
        yield ".".join((*path, name))
        for part in _sections_of(field.annotation):
            yield from _keys(part, (*path, name))


def _sections_of(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yields the section that a field holds, or those of a union."""
    if isinstance(annotation, type):
        if issubclass(annotation, BaseModel):
            yield annotation
        return
    for part in get_args(annotation):
        yield from _sections_of(part)
