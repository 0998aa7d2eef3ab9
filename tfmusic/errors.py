"""The errors a user can mend, all of them one line that says what must hold and what was received.

    TfmusicError            exit code 2, no trace
      ├─ UsageError         a wrong argument or combination of arguments
      ├─ ConfigError        a key or value of a YAML file or of an override
      ├─ DataError          raw data on disk: folders, labels, metadata, spectrograms
      ├─ RecordsError       a records folder: manifest, shards, checksums
      └─ RunError           a run folder, a checkpoint or an exported model

Anything else that escapes is a bug of ours: it keeps its trace and exits with 1.
"""

from collections.abc import Iterable

_LONGEST_LINE = 2000


class TfmusicError(Exception):
    """Base of all errors that the user can mend."""


class UsageError(TfmusicError):
    """A wrong argument, or arguments that do not go together."""


class ConfigError(TfmusicError):
    """A config file or override that does not validate."""


class DataError(TfmusicError):
    """Raw data on disk that is missing or not what its format says."""


class RecordsError(TfmusicError):
    """A records folder that is missing, damaged or of another contract."""


class RunError(TfmusicError):
    """A run folder or exported model that is missing, damaged or of another contract."""


def one_line(text: str) -> str:
    """Returns a message as one line of bearable length, whatever an untrusted file has put into it."""
    line = " ".join(text.splitlines())
    return line if len(line) <= _LONGEST_LINE else f"{line[: _LONGEST_LINE // 2]} ... {line[-_LONGEST_LINE // 4 :]}"


def did_you_mean(word: str, known: Iterable[str], *, likeness: float = 0.6) -> str:
    """Returns the end of a message that names the known word nearest to one that is not; empty where none is near."""
    import difflib  # only where something is wrong: `tfmusic --help` imports this file

    near = difflib.get_close_matches(word.lower(), known, n=1, cutoff=likeness)
    return f" Did you mean {near[0]!r}?" if near else ""
