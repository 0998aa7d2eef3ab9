"""HTML pages as a single file, with style and pictures inside, readable without a network."""

import re
from functools import cache
from pathlib import Path, PurePath
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from tfmusic import __version__
from tfmusic.errors import printable


def render(template: str, **context: Any) -> str:
    """Returns a page from `templates/`; values of `context` are escaped unless they are Markup."""
    return _environment().get_template(template).render(version=__version__, **context)


def without_paths(text: str) -> str:
    """Returns text in which absolute paths are cut to their last name, so that a shared report names no folders."""
    return re.sub(r"(?<![\w./~-])(?:~|[A-Za-z]:)?[\\/](?:[^\s\\/:'\",]+[\\/])+([^\s\\/:'\",]*)", r"\1", text)


def short_name(path: Path) -> str:
    """Returns the last two names of the path of a run: q2/resnet18-1."""
    return "/".join(PurePath(path.resolve()).parts[-2:])


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("tfmusic.reports"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, finalize=_printable_lines,
    )  # fmt: skip
    environment.filters |= {
        "percent": "{:.1%}".format,
        "metric": _metric,
        "md": _in_markdown,
        "clock": clock,
        "fixed": _fixed,
        "signed": "{:+.3f}".format,
        "thousands": "{:,}".format,
    }
    return environment


def _printable_lines(value: Any) -> Any:
    is_text = isinstance(value, str) and not isinstance(value, Markup)
    return "\n".join(map(printable, value.split("\n"))) if is_text else value


def _in_markdown(text: str) -> str:
    """Returns text escaped for Markdown, on one line."""
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", " ".join(text.split()))


def _fixed(value: float, digits: int = 3) -> str:
    return f"{value:.{digits}f}"


def _metric(name: str) -> str:
    return "micro-F1" if name == "micro_f1" else name


def clock(seconds: float) -> str:
    """Returns seconds as minutes and seconds, 0:42."""
    whole = round(seconds)
    return f"{whole // 60}:{whole % 60:02d}"
