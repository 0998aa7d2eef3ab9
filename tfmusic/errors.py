"""The errors that a user can fix: one line that says what must hold, what was received and what to do.

    TfmusicError            exit code 2, no trace
      ├─ UsageError         a wrong argument or combination of arguments
      ├─ ConfigError        a key or value of a YAML file or of an override
      ├─ DataError          raw data on disk: folders, labels, metadata, spectrograms
      ├─ RecordsError       a records folder: manifest, shards, checksums
      └─ RunError           a run folder, a checkpoint or an exported model

Any other exception is a bug in tfmusic: it keeps its trace, and the exit code is 1.
"""

import json
import re
from collections.abc import Iterable

_LONGEST_LINE = 2000
# Control characters, ends of lines, and what hides text or turns its direction; but the joiners of Persian and emojis.
_HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)


class TfmusicError(Exception):
    """Base of all errors that the user can fix."""

    def __str__(self) -> str:
        """Returns the message, in which names of files may be that are not UTF-8."""
        return "\n".join(map(printable, super().__str__().split("\n")))


class UsageError(TfmusicError):
    """A wrong argument, or a wrong combination of arguments."""


class ConfigError(TfmusicError):
    """A config file or override that does not validate."""


class DataError(TfmusicError):
    """Raw data on disk that is missing or not in its format."""


class RecordsError(TfmusicError):
    """A records folder that is missing, damaged or of another contract."""


class RunError(TfmusicError):
    """A run folder or exported model that is missing, damaged or of another contract."""


def printable(text: str) -> str:
    """Returns text in which no character moves the cursor, ends the line or reorders others: they become escapes."""
    return _HIDDEN.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    number = ord(match[0])
    if 0xDC80 <= number <= 0xDCFF:  # how Python keeps a byte of a file name that is not UTF-8
        return f"\\x{number - 0xDC00:02x}"
    return json.dumps(match[0])[1:-1]


def one_line(text: str) -> str:
    """Returns a message as one printable line of at most 2,000 characters, whatever untrusted files put into it."""
    line = printable(" ".join(text.splitlines()))
    return line if len(line) <= _LONGEST_LINE else f"{line[: _LONGEST_LINE // 2]} ... {line[-_LONGEST_LINE // 4 :]}"


def did_you_mean(word: str, known: Iterable[str], *, likeness: float = 0.6) -> str:
    """Returns " Did you mean ...?" with the known word most similar to an unknown one, or "" where none is similar."""
    import difflib  # here, as `tfmusic --help` imports this file and needs it only after an error

    similar = difflib.get_close_matches(word.lower(), known, n=1, cutoff=likeness)
    return f" Did you mean {similar[0]!r}?" if similar else ""
