"""What the terminal shows: lines, tables and progress; rich on a terminal, plain lines elsewhere.

`--quiet` leaves results and warnings. `--json` replaces the results by one JSON document, which commands fill with
`console.result(name=value)`.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Protocol, TextIO

from tfmusic.errors import printable

SECONDS_BETWEEN_PLAIN_LINES = 30.0


class Progress(Protocol):
    """Counts finished work towards a known total."""

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Adds finished work; `note` is a short text beside the bar."""


class Console:
    """Prints to standard output and, while a run is open, to its log file as well."""

    def __init__(self) -> None:
        self.log_fn: Callable[[str], None] | None = None
        self.is_quiet = self.is_json = False
        self._results: dict[str, Any] = {}

    def begin(self, *, quiet: bool, as_json: bool) -> None:
        """Sets what is shown from here on, and starts an empty JSON document."""
        self.is_quiet, self.is_json, self._results = quiet or as_json, as_json, {}

    def say(self, *lines: str) -> None:
        """Prints a remark."""
        if not self.is_quiet:
            _print(lines)
        if self.log_fn is not None:
            self.log_fn("\n".join(map(printable, lines)))

    def show(self, *lines: str) -> None:
        """Prints a result of the command, also with `--quiet`."""
        if not self.is_json:
            _print(lines)

    def result(self, **values: Any) -> None:
        """Adds results to the JSON document. A repeated name collects its values in a list."""
        for name, value in values.items():
            if name not in self._results:
                self._results[name] = value
            elif isinstance(self._results[name], _Repeated):
                self._results[name].append(value)
            else:
                self._results[name] = _Repeated([self._results[name], value])

    def finish(self, code: int, error: str | None = None) -> None:
        """Prints the JSON document, with `--json`: the results, the exit code and an error."""
        if self.is_json:
            document = {**self._results, "exit_code": code} | ({"error": error} if error else {})
            _print([json.dumps(document, ensure_ascii=False, default=str)])

    def fault(self, text: str) -> None:
        """Prints why the command ends to standard error."""
        _print([text], sys.stderr)

    def warn(self, text: str) -> None:
        """Prints a warning to standard error."""
        _print([f"warning: {text}"], sys.stderr)

    def table(self, rows: Sequence[Sequence[object]], header: Sequence[str], *, digits: int = 4) -> None:
        """Prints an aligned table, a result: numbers to the right, text to the left."""
        self.show(*format_table(rows, header, digits=digits).split("\n"))

    @contextmanager
    def progress(self, title: str, total: int, unit: str) -> Iterator[Progress]:
        """Yields a counter, shown as a bar on a terminal or in a notebook and as a line every 30 seconds elsewhere."""
        if self.is_quiet:
            yield _NoProgress()
        elif _shows_bars():
            with _rich_progress() as bars:
                yield _RichProgress(bars, title, total, unit)
        else:
            plain = _PlainProgress(title, total, unit)
            yield plain
            plain.finish()


class _Repeated(list[Any]):
    """The values of a repeated name, as opposed to one value that is a list."""


console = Console()


def _print(lines: Iterable[str], file: TextIO | None = None) -> None:
    """Prints lines, to standard output without another file: names in them forge no further ones."""
    stream = file or sys.stdout
    try:
        print("\n".join(map(printable, lines)), file=stream, flush=True)
    except BrokenPipeError:
        silence_if_closed(stream)


def silence_if_closed(stream: TextIO) -> None:
    """Lets a stream go nowhere from here on if its reader, such as `head`, has gone: the work goes on."""
    try:
        stream.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def format_table(rows: Sequence[Sequence[object]], header: Sequence[str], *, digits: int = 4) -> str:
    """Returns an aligned table as text; floats have `digits` decimals."""
    cells = [[_cell(value, digits) for value in row] for row in rows]
    is_number = [all(isinstance(row[i], int | float) for row in rows) and bool(rows) for i in range(len(header))]
    widths = [max(_width(line[i]) for line in [list(header), *cells]) for i in range(len(header))]
    lines = [list(header), ["-" * width for width in widths], *cells]
    return "\n".join("  ".join(map(_pad, line, widths, is_number)).rstrip() for line in lines)


def _cell(value: object, digits: int) -> str:
    if isinstance(value, float):
        return f"{value:.{digits}f}"
    return f"{value:,}" if isinstance(value, int) else printable(str(value))


def _width(text: str) -> int:
    # Hangul, kana and han characters take two columns of a terminal.
    return sum(2 if ord(character) >= 0x1100 else 1 for character in text)


def _pad(text: str, width: int, is_number: bool) -> str:
    space = " " * (width - _width(text))
    return space + text if is_number else text + space


def _shows_bars() -> bool:
    """Returns whether standard error is a terminal, or the output of a notebook that has widgets."""
    if (ipython := sys.modules.get("IPython")) and type(ipython.get_ipython()).__name__ == "ZMQInteractiveShell":
        return find_spec("ipywidgets") is not None
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def _rich_progress() -> Any:
    from rich.console import Console as RichConsole
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]} {task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    # Rich moves lines of standard output above the bar; it may do so only if both share the terminal.
    return Progress(*columns, console=RichConsole(stderr=True), transient=True, redirect_stdout=sys.stdout.isatty())


class _NoProgress:
    def advance(self, amount: int = 1, note: str = "") -> None:
        pass


class _RichProgress:
    def __init__(self, bars: Any, title: str, total: int, unit: str) -> None:
        self.bars, self.done, self.start_s = bars, 0, time.monotonic()
        self.task = bars.add_task(title, total=total, unit=unit, note="", rate="")

    def advance(self, amount: int = 1, note: str = "") -> None:
        self.done += amount
        rate = self.done / max(time.monotonic() - self.start_s, 1e-3)
        self.bars.update(self.task, advance=amount, note=note, rate=f"{rate:,.1f}/s")


class _PlainProgress:
    def __init__(self, title: str, total: int, unit: str) -> None:
        self.title, self.total, self.unit, self.done = title, total, unit, 0
        self.start_s = self.shown_s = time.monotonic()

    def advance(self, amount: int = 1, note: str = "") -> None:
        self.done += amount
        if time.monotonic() - self.shown_s > SECONDS_BETWEEN_PLAIN_LINES:
            self._show(note)

    def finish(self) -> None:
        if self.shown_s > self.start_s:  # a short job needs no line of its own
            self._show("")

    def _show(self, note: str) -> None:
        self.shown_s = time.monotonic()
        rate = self.done / max(self.shown_s - self.start_s, 1e-3)
        left = f", {_duration((self.total - self.done) / rate)} left" if self.done and self.done < self.total else ""
        line = f"{self.title}: {self.done:,}/{self.total:,} {self.unit}, {rate:,.1f}/s{left} {note}".rstrip()
        _print([line], sys.stderr)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
