"""Fonts for labels of any script, as far as the system has them."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any

# What matplotlib brings itself, then fonts with the signs of Korean and Japanese that systems have as a rule.
_FIRST = "DejaVu Sans"
_PREFERRED = (
    "Noto Sans CJK KR", "Noto Sans CJK JP", "Noto Sans KR", "NanumGothic", "Malgun Gothic", "Apple SD Gothic Neo",
    "AppleGothic", "Yu Gothic", "MS Gothic", "IPAexGothic", "WenQuanYi Zen Hei",
)  # fmt: skip
_MOST_FONTS = 4


def choose_fonts(texts: Iterable[str]) -> tuple[list[str], set[str]]:
    """Returns names of fonts that show some texts together, first the usual one, and the signs that none has."""
    missing = {sign for text in texts for sign in text if sign.isprintable()} - _signs(_FIRST)
    chosen = [_FIRST]
    for name in _candidates() if missing else ():
        found = missing & _signs(name)
        if found:
            chosen.append(name)
            missing -= found
        if not missing or len(chosen) == _MOST_FONTS:
            break
    return chosen, missing


def picture_names(labels: Sequence[str], missing: set[str]) -> Mapping[str, str]:
    """Returns what stands for each label on a picture: itself, or its number where a sign cannot be shown."""
    return {label: f"no. {i}" if missing.intersection(label) else label for i, label in enumerate(labels, 1)}


def _candidates() -> list[str]:
    names = sorted({font.name for font in _fonts()} - {_FIRST})
    return sorted(names, key=lambda name: _PREFERRED.index(name) if name in _PREFERRED else len(_PREFERRED))


@lru_cache(maxsize=512)
def _signs(name: str) -> frozenset[str]:
    """Returns the signs that a font has in its upright, regular form; none where there is no such form."""
    from matplotlib.ft2font import FT2Font

    for font in _fonts():
        if font.name == name and font.style == "normal":
            return frozenset(map(chr, FT2Font(font.fname).get_charmap()))
    return frozenset()


@lru_cache(maxsize=1)
def _fonts() -> tuple[Any, ...]:
    """Returns the regular fonts of the system, those that came after matplotlib made its list as well."""
    from matplotlib.font_manager import findSystemFonts, fontManager

    known = {font.fname for font in fontManager.ttflist}
    for path in findSystemFonts():
        if path not in known:
            with suppress(OSError, RuntimeError, ValueError, KeyError):  # no font that it can read
                fontManager.addfont(path)
    regular = [font for font in fontManager.ttflist if str(font.weight) in ("400", "normal", "regular", "book")]
    # matplotlib brings a font that has a box for every sign there is.
    usable = [font for font in regular if "Last Resort" not in font.name]
    return tuple(sorted(usable, key=lambda font: (font.name, font.fname)))
