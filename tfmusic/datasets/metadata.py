"""Metadata of tracks: the tables of the AI Rush layout, and tokens `field=value`, which a model may read."""

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tfmusic.core.files import read_json_file
from tfmusic.errors import DataError

_WORD = re.compile(r"[^\W\d_]{2,}")
_MAX_WORDS = 200  # of a lyric


def tokens_of(metadata: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the tokens of decoded metadata, sorted, each once; fields that are missing give none."""
    tokens = {
        f"{field}={value}"
        for field, values in _VALUES.items()
        if metadata.get(field) is not None
        for value in values(metadata[field])
    }
    return tuple(sorted(tokens))


def _names(value: Any) -> list[str]:
    return [name for item in (value if isinstance(value, list) else [value]) if (name := _plain(item))]


def _words(value: Any) -> list[str]:
    return list(dict.fromkeys(_WORD.findall(_plain(value))))[:_MAX_WORDS]


def _decade(value: Any) -> list[str]:
    return [f"{int(value) // 10 * 10}s"]


def _flag(value: Any) -> list[str]:
    return ["yes" if value else "no"]


def _plain(value: Any) -> str:
    return " ".join(str(value).casefold().split())


_VALUES: Mapping[str, Callable[[Any], list[str]]] = {
    "genres": _names,
    "artists": _names,
    "album": _names,
    "title": _words,
    "lyric": _words,
    "country": _names,
    "gender": _names,
    "artist_type": _names,
    "production": _names,
    "agency": _names,
    "album_year": _decade,
    "debut_year": _decade,
    "is_overseas": _flag,
    "is_live": _flag,
    "has_lyric": _flag,
}
FIELDS = tuple(_VALUES)


VARIOUS_ARTISTS = frozenset({"Various Artists", "V.A.", "V.A", "VA", "베리어스 아티스트"})
_DATE = re.compile(r"(\d{4})(?:-?(\d{2}))?(?:-?(\d{2}))?")
_SECONDS_PER_DAY = 86400


def read_columns(path: Path, required: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """Returns the rows of a column-oriented JSON table `{column: {"0": value, "1": value, ...}}`, in row order.

    A cell that a column lacks is None. `{}` is a table without rows.

    Raises:
        DataError: missing file, not JSON, not a table, or a required column is missing.
    """
    table = read_json(path)
    if not isinstance(table, dict) or not all(isinstance(column, dict) for column in table.values()):
        raise DataError(f'{path}: must be a table {{"column": {{"0": value, ...}}, ...}}')
    missing = [name for name in required if name not in table]
    if missing:
        raise DataError(f"{path}: must have the column {missing[0]!r}. Received: {', '.join(table) or 'none'}")
    keys = {key for column in table.values() for key in column}
    if not all(key.isdecimal() and key.isascii() for key in keys):
        bad = next(key for key in sorted(keys) if not (key.isdecimal() and key.isascii()))
        raise DataError(f'{path}: row keys must be numbers in quotes, "0", "1", ... Received: {bad!r}')
    return [{name: column.get(key) for name, column in table.items()} for key in sorted(keys, key=int)]


def read_json(path: Path) -> Any:
    """Returns the value of a JSON file.

    Raises:
        DataError: missing file, not UTF-8, or not JSON.
    """
    try:
        return read_json_file(path)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except ValueError as error:
        raise DataError(f"{path}: must be JSON in UTF-8. Received: {error}") from error


def decode_play_time(value: Any) -> int | None:
    """Returns the length of a track in seconds, or None.

    The column holds MM:SS mis-read as HH:MM of some day, in epoch milliseconds.
    """
    if not _is_number(value):
        return None
    seconds_of_day = int(value / 1000) % _SECONDS_PER_DAY
    return (seconds_of_day // 3600) * 60 + (seconds_of_day % 3600) // 60


def decode_year(value: Any) -> int | None:
    """Returns the year of 'YYYY-MM-DD', 'YYYYMMDD', 'YYYY-MM' or 'YYYY', or None."""
    match = _DATE.fullmatch(value.strip()) if isinstance(value, str) else None
    return int(match[1]) if match and int(match[1]) > 0 else None


def decode_genres(value: Any) -> tuple[str, ...]:
    """Returns the genre names of a text in which a comma and two spaces stand between them.

    A single comma and space may be part of a name, and so stays.
    """
    if not isinstance(value, str):
        return ()
    return tuple(name for part in value.split(",  ") if (name := part.strip()))


def decode_text(value: Any) -> str | None:
    """Returns the text, or None where it is empty or the '-' that stands for missing."""
    text = value.strip() if isinstance(value, str) else ""
    return text if text not in ("", "-") else None


def decode_flag(value: Any) -> bool | None:
    """Returns the boolean of Y/N, 1.0/0.0 or true/false, or None."""
    return {"Y": True, "N": False, 1.0: True, 0.0: False}.get(value) if isinstance(value, str | int | float) else None


def as_index(value: Any) -> int | None:
    """Returns a whole number, also where a tool has written it as 7.0, or None."""
    return int(value) if _is_number(value) and value == int(value) else None


def artist_indices(row: Mapping[str, Any]) -> list[int]:
    """Returns the artist indices of a row, those that are whole numbers."""
    return [index for value in _as_list(row.get("artist_index_list")) if (index := as_index(value)) is not None]


def artist_keys(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the grouping keys of the artists of a row; 'Various Artists' is nobody and so no key."""
    names, indices = _as_list(row.get("artist_name_list")), artist_indices(row)
    if indices and len(indices) == len(names):
        pairs = zip(indices, names, strict=True)
        return tuple(f"#{index}" for index, name in pairs if name not in VARIOUS_ARTISTS)
    return tuple(str(name) for name in names if decode_text(name) and name not in VARIOUS_ARTISTS)


def album_key(row: Mapping[str, Any]) -> str | None:
    """Returns the grouping key of the album of a row, or None."""
    index = as_index(row.get("album_index"))
    if index is not None:
        return f"#{index}"
    return decode_text(row.get("album_title")) or decode_text(row.get("album_name"))


def decode_track(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the metadata of a row of track_meta (or of q3's train_label) under plain names, missing ones left out."""
    values = {
        "title": decode_text(row.get("track_title")),
        "artists": [name for name in _as_list(row.get("artist_name_list")) if decode_text(name)] or None,
        "album": decode_text(row.get("album_title")) or decode_text(row.get("album_name")),
        "genres": list(decode_genres(row.get("genre"))) or None,
        "duration_s": decode_play_time(row.get("play_time")),
        "is_overseas": decode_flag(row.get("is_oversea")),
        "has_lyric": decode_flag(row.get("has_lyric")),
    }
    return {name: value for name, value in values.items() if value is not None}


def decode_album(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the metadata of a row of album_meta under plain names, missing ones left out."""
    values = {
        "album_year": decode_year(row.get("release_ymd")),
        "production": decode_text(row.get("production_name")),
        "agency": decode_text(row.get("agency_name")),
        "is_live": decode_flag(row.get("is_live")),
    }
    return {name: value for name, value in values.items() if value is not None}


def decode_artist(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the metadata of a row of artist_meta under plain names, missing ones left out."""
    values = {
        "artist_type": decode_text(row.get("artist_type")),
        "country": decode_text(row.get("country")),
        "gender": decode_text(row.get("gender")),
        "debut_year": decode_year(row.get("debut_ymd")),
    }
    return {name: value for name, value in values.items() if value is not None}


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
