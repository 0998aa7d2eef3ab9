"""Configs for people and editors: the reference of all keys, commented and short YAML, JSON Schema.

Everything is read off the JSON Schema that pydantic makes of `Config`, so that a key is described in one place.
"""

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tfmusic.config.loading import dump_value
from tfmusic.config.sections import Config
from tfmusic.core.feature import POWER, PRESETS

_WIDTH = 120  # of a line with its comment; longer comments stand above their key


@dataclass(frozen=True)
class Key:
    """One key of a config.

    Attributes:
        path: section and key, as in an override.
        values: the allowed values.
        default: its default as YAML; empty where the key is required.
        meaning: one sentence or two.
        loaders: the values of `data.loader` that have the key; empty for all.
    """

    path: str
    values: str
    default: str
    meaning: str
    loaders: tuple[str, ...] = ()


def json_schema() -> dict[str, Any]:
    """Returns the JSON Schema of configs, with which editors complete and check them."""
    schema = Config.model_json_schema()
    feature = schema["properties"]["feature"]
    schema["properties"]["feature"] = {"anyOf": [{"$ref": feature["$ref"]}, {"enum": list(PRESETS)}]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def list_keys() -> list[Key]:
    """Returns all keys in the order of a config; of `data` those of every loader."""
    schema = Config.model_json_schema()
    keys = []
    for name, field in schema["properties"].items():
        if name == "data":
            keys += _data_keys(schema)
        elif "$ref" in field:
            keys += list(_keys_of(name, _section(schema, field)))
        else:
            keys.append(Key(name, allowed_values(field), "", field["description"]))
    return keys


def section_meanings() -> dict[str, str]:
    """Returns what every section is about, by its name."""
    schema = Config.model_json_schema()
    fields = schema["properties"]
    first = {name: _section(schema, field) for name, field in fields.items() if "$ref" in field}
    first["data"] = _section(schema, fields["data"]["oneOf"][0])
    meanings = {name: " ".join(section["description"].split("\n\n")[0].split()) for name, section in first.items()}
    return meanings | {"data": "Where tracks and labels come from, and how tracks are split."}


def to_commented_yaml(config: Config) -> str:
    """Returns the complete config as YAML with the meaning of each key; it loads again to the same config."""
    keys = {key.path: key for key in list_keys() if not key.loaders or config.data.loader in key.loaders}
    meanings, lines = section_meanings(), []
    for name, value in config.model_dump(mode="json").items():
        if name not in meanings:
            lines += _commented(f"{name}: {dump_value(value)}", keys[name], "")
            continue
        lines += ["", f"{name}:  # {meanings[name]}"]
        for key, inner in value.items():
            lines += _commented(f"  {key}: {dump_value(inner)}", keys[f"{name}.{key}"], "  ")
    return "\n".join(lines) + "\n"


def to_short_yaml(config: Config) -> str:
    """Returns the keys of a config that differ from their defaults, and those without a default, as YAML."""
    given = config.model_dump(mode="json")
    required = {name for name, field in type(config.data).model_fields.items() if field.is_required()}
    kept = {"data": {"loader", *required}, "feature": {"name", "source"} if config.feature.name != "mel" else set()}
    if config.feature.name not in POWER:  # of which the default scale does not make sense
        kept["record"] = {"scale", "dtype"}
    minimal = {name: {key: value for key, value in given[name].items() if key in keys} for name, keys in kept.items()}
    defaults = Config.model_validate({"task": given["task"], **minimal}).model_dump(mode="json")
    lines = [f"task: {dump_value(given.pop('task'))}"]
    for name, section in given.items():
        named = kept.get(name, ())
        different = {key: value for key, value in section.items() if key in named or value != defaults[name][key]}
        lines += [f"{name}:"] if different else []
        lines += [f"  {key}: {dump_value(value)}" for key, value in different.items()]
    return "\n".join(lines) + "\n"


def to_new_yaml(config: Config, *, path: str, source: str) -> str:
    """Returns the text of a new config file: a header to complete, and the keys that differ from their defaults."""
    header = (
        f"# {config.task_name}: what is predicted, for which music. Begun from {source}.\n"
        f"#   tfmusic build-records {path} --data DATA && tfmusic fit {path}\n"
        "# Hardware, time and score to expect: not measured yet.\n"
        f"# Keys that are left out have their defaults: tfmusic config show {path}\n"
    )
    return header + to_short_yaml(config)


def allowed_values(schema: Mapping[str, Any]) -> str:
    """Returns the values that a JSON Schema allows, in words: `integer from 1 | null`."""
    if branches := schema.get("anyOf"):
        return " | ".join(allowed_values(branch) for branch in branches)
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if "const" in schema:
        return str(schema["const"])
    kind = str(schema["type"])
    if kind in ("integer", "number"):
        return kind + _range(schema)
    if kind == "array":
        return f"list of {allowed_values(schema['items'])}"
    return {"boolean": "true | false", "string": "text", "null": "null", "object": "mapping"}[kind]


def _range(schema: Mapping[str, Any]) -> str:
    """Returns the range of a number: ` from 0`, ` above 0`, ` 0 to 1`, ` 0 to below 1`."""
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    end = f" to {high}" if high is not None else f" to below {below}" if below is not None else ""
    if end:
        return f" {low or 0}{end}"
    return f" from {low}" if low is not None else f" above {above}" if above is not None else ""


def _data_keys(schema: Mapping[str, Any]) -> list[Key]:
    """Returns the keys of `data`: those of every loader once, then those that some loaders have."""
    sections = [_section(schema, branch) for branch in schema["properties"]["data"]["oneOf"]]
    loaders = [str(section["properties"]["loader"]["const"]) for section in sections]
    owners: dict[Key, list[str]] = {}  # loaders may have keys of the same name and another meaning
    for loader, section in zip(loaders, sections, strict=True):
        for key in _keys_of("data", section):
            if key.path != "data.loader":
                owners.setdefault(key, []).append(loader)
    first = Key("data.loader", " | ".join(loaders), loaders[0], "Which loader reads the data: its layout on disk.")
    common = [key for key, names in owners.items() if len(names) == len(loaders)]
    return [first, *common, *(replace(key, loaders=tuple(owners[key])) for key in owners if key not in common)]


def _keys_of(section: str, schema: Mapping[str, Any]) -> Iterator[Key]:
    for name, field in schema["properties"].items():
        default = dump_value(field["default"]) if "default" in field else ""
        if name not in schema.get("required", ()) and not default:
            default = "[]" if field.get("type") == "array" else "{}"  # what a default_factory makes
        yield Key(f"{section}.{name}", allowed_values(field), default, " ".join(field.get("description", "").split()))


def _section(schema: Mapping[str, Any], field: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the schema of the section that a field refers to."""
    return dict(schema["$defs"][field["$ref"].rsplit("/", 1)[-1]])


def _commented(line: str, key: Key, indent: str) -> list[str]:
    """Returns a key with its comment behind it, or above it where that line would be too long."""
    comment = f"{key.meaning} [{key.values}]".strip()
    if len(f"{line}  # {comment}") <= _WIDTH:
        return [f"{line}  # {comment}"]
    above = [*textwrap.wrap(key.meaning, _WIDTH - 4), *textwrap.wrap(f"[{key.values}]", _WIDTH - 4)]
    return [*(f"{indent}# {text}" for text in above), line]
