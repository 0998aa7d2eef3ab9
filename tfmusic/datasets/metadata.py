"""Metadata of a track as tokens, `field=value`: what a model may read beside the spectrogram.

No number of a track, artist or album is among them, nor a whole title: names, and words of titles, so that a token can
stand for many tracks. Text is compared without regard to case.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

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
