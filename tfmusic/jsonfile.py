"""JSON of strangers: of bounded size and depth, and with every key once, so that no reader sees another value."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

MAX_JSON_BYTES = 256 << 20  # 256 MiB; the largest label files known have a few


def read_json_file(path: Path) -> Any:
    """Returns the value of a JSON file in UTF-8.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON, too large, nested too deeply, or has a key twice in one object.
    """
    size = path.stat().st_size
    if not path.is_file():  # a pipe would keep us waiting
        raise ValueError("it must be a file")
    if size > MAX_JSON_BYTES:
        raise ValueError(f"it must be at most {MAX_JSON_BYTES >> 20} MiB. Received: {size:,} bytes")
    return parse_json(path.read_text(encoding="utf-8"))


def parse_json(text: str) -> Any:
    """Returns the value of a JSON text; raises ValueError as `read_json_file`."""
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _object(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    pairs = list(pairs)
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for i, name in enumerate(names) if name in names[:i])
        raise ValueError(f"key {repeated!r} stands twice")
    return found
