"""Fonts for labels of any script, as far as this machine has them; the system is searched once a process, if at all."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from typing import Any

from matplotlib.font_manager import findSystemFonts, fontManager
from matplotlib.ft2font import FT2Font

_FIRST = "DejaVu Sans"  # comes with matplotlib
_PREFERRED = (  # have the characters of Korean and Japanese
    "Noto Sans CJK KR", "Noto Sans CJK JP", "Noto Sans KR", "NanumGothic", "Malgun Gothic", "Apple SD Gothic Neo",
    "AppleGothic", "Source Han Sans KR", "Baekmuk Gulim", "UnDotum", "Yu Gothic", "MS Gothic", "IPAexGothic",
    "WenQuanYi Zen Hei",
)  # fmt: skip
_MAX_FONTS = 4


def choose_fonts(texts: Iterable[str]) -> tuple[list[str], set[str]]:
    """Returns names of fonts that together show some texts, and the characters that none of them has."""
    missing = {character for text in texts for character in text if character.isprintable()} - _characters(_FIRST)
    fonts = [_FIRST]
    for name in _candidates() if missing else ():
        if missing & _characters(name):
            fonts.append(name)
            missing -= _characters(name)
        if not missing or len(fonts) == _MAX_FONTS:
            break
    return fonts, missing


def picture_names(labels: Sequence[str], missing: set[str]) -> Mapping[str, str]:
    """Returns what stands for each label on a picture: the label, or its number where a character has no font."""
    return {label: f"no. {i}" if missing.intersection(label) else label for i, label in enumerate(labels, 1)}


@cache
def _candidates() -> list[str]:
    """Returns the fonts of this machine beside the first, those with the characters of Korean and Japanese in front.

    Matplotlib caches its list of fonts on disk; fonts that were installed later are added here.
    """
    listed = {font.fname for font in fontManager.ttflist}
    for path in sorted(set(findSystemFonts()) - listed):
        with suppress(OSError, RuntimeError, ValueError, KeyError):  # a font that matplotlib cannot read
            fontManager.addfont(path)
    # The font Last Resort, which comes with matplotlib, has a box for every character.
    names = sorted({font.name for font in fontManager.ttflist if "Last Resort" not in font.name} - {_FIRST})
    return sorted(names, key=lambda name: _PREFERRED.index(name) if name in _PREFERRED else len(_PREFERRED))


@cache
def _characters(name: str) -> frozenset[str]:
    """Returns the characters of a font in its regular, upright form; none where there is no such form."""
    paths = [font.fname for font in fontManager.ttflist if font.name == name and _is_regular(font)]
    return frozenset(map(chr, FT2Font(min(paths)).get_charmap())) if paths else frozenset()


def _is_regular(font: Any) -> bool:
    return font.style == "normal" and str(font.weight) in ("400", "normal", "regular", "book")
