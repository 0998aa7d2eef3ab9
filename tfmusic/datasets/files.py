"""What loaders share: feature files below a folder, tables of text, names of labels and splits."""

import csv
import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tfmusic.core.track import is_plain_id
from tfmusic.errors import DataError

SUFFIXES = (
    ".npy", ".wav", ".flac", ".ogg", ".mp3", ".oga", ".opus", ".aif", ".aiff", ".au",
    ".m4a", ".mp4", ".aac", ".m4b", ".wma", ".webm", ".mka",
)  # fmt: skip
SPLIT_NAMES = {
    "train": "train", "training": "train",
    "valid": "validation", "validation": "validation", "val": "validation", "dev": "validation",
    "test": "test", "testing": "test", "eval": "test",
}  # fmt: skip

_LONGEST_NAME = 255  # bytes; of every usual file system
_MAX_FIELD = 1 << 24  # a biography in a cell is longer than Python's csv expects


class _Tabs(csv.excel_tab):
    """Cells divided by tabs, in which a quotation mark has no meaning."""

    quoting = csv.QUOTE_NONE


@dataclass(frozen=True)
class FeatureFiles:
    """The spectrogram and audio files below a folder.

    Attributes:
        root: the folder.
        paths: by name from the folder on, without their suffix.
        others: how many files are of other kinds.
    """

    root: Path
    paths: Mapping[str, Sequence[Path]]
    others: int

    @classmethod
    def below(cls, root: Path, *, only: Iterable[str] | None = None) -> "FeatureFiles":
        """Returns all files below a folder, or below some of its folders; hidden ones are left out.

        Raises:
            DataError: there is no such folder.
        """
        if not root.is_dir():
            raise DataError(f"{root}: no such folder; the audio or spectrogram files must stand there")
        paths, others = defaultdict(list), 0
        for folder in [root] if only is None else [root / name for name in only]:
            for path in _visible_files(folder):
                if path.suffix.lower() in SUFFIXES:
                    paths[path.relative_to(root).with_suffix("").as_posix()].append(path)
                elif path.name != "feature.json":  # what extract says of its files
                    others += 1
        return cls(root, paths, others)

    def find(self, name: str, missing_suffix: str) -> Path:
        """Returns the file of a name; where there is none, the path at which it is missing.

        Raises:
            DataError: there are several, of which any could be meant.
        """
        paths = self.paths.get(name, ())
        if len(paths) > 1:
            listed = ", ".join(path.name for path in paths)
            raise DataError(f"{self.root / name}: must be one file a track. Received: {listed}; keep one of them")
        return paths[0] if paths else self.root / f"{name}{missing_suffix}"


def _visible_files(root: Path) -> Iterator[Path]:
    """Yields all files below a folder in the order of their names; follows links to folders, but not in a circle."""
    seen = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        here = os.path.realpath(folder)
        folders[:] = [] if here in seen else sorted(name for name in folders if not name.startswith("."))
        if here not in seen:
            yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))
        seen.add(here)


def below(folder: Path, name: str, origin: str) -> Path:
    """Returns the path of a file that a table names.

    Raises:
        DataError: the name could leave the folder.
    """
    path = PurePosixPath(name)
    if not path.name or "\\" in name or "\0" in name or path.is_absolute() or ".." in path.parts:
        raise DataError(
            f"{origin}: a path must stay below {folder.resolve()}. Received: {name!r}; paths are relative to it"
        )
    if max(len(part.encode(errors="replace")) for part in path.parts) > _LONGEST_NAME:
        raise DataError(
            f"{origin}: the names in a path must have at most {_LONGEST_NAME} bytes. Received: {name[:80]!r}..."
        )
    return folder / path


def read_table(path: Path, required: Sequence[str], *, delimiter: str = ",", rest: str = "") -> list[dict[str, str]]:
    """Returns the rows of a table with a header, cells without the spaces around them.

    Args:
        path: UTF-8 text.
        required: columns that it must have.
        delimiter: between cells.
        rest: name of the last column, where it has any number of cells; they are joined by the delimiter.

    Raises:
        DataError: the file is missing, not such a table, or lacks a column or all rows.
    """
    lines = list(read_cells(path, delimiter))
    header = [name.strip() for name in lines[0]] if lines else []
    lacking = [name for name in required if name not in header]
    if lacking or len(set(header)) < len(header):
        raise DataError(
            f"{path}: must be a table with the columns {', '.join(required)}, each once. Received: {', '.join(header)}"
        )
    rows = []
    for number, cells in enumerate(lines[1:], 2):
        if rest and len(cells) > len(header):
            cells = [*cells[: len(header) - 1], delimiter.join(cells[len(header) - 1 :])]
        if len(cells) != len(header):
            raise DataError(f"{path}: row {number} must have {len(header)} cells. Received: {len(cells)}")
        rows.append(dict(zip(header, (cell.strip() for cell in cells), strict=True)))
    if not rows:
        raise DataError(f"{path}: must list at least one track. Received: none")
    return rows


def read_cells(path: Path, delimiter: str = ",") -> Iterator[list[str]]:
    """Yields the cells of every line that is not empty; raises as `read_table`."""
    if path.exists() and not path.is_file():  # reading a pipe would wait for ever
        raise DataError(f"{path}: must be a file")
    before = csv.field_size_limit(_MAX_FIELD)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file, dialect=_Tabs if delimiter == "\t" else "excel", strict=True)
            yield from (cells for cells in lines if cells)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: must be a table in UTF-8: {error}") from error
    finally:
        csv.field_size_limit(before)


def check_labels(names: Iterable[str], origin: str) -> tuple[str, ...]:
    """Returns names of labels, each once, in their order.

    Raises:
        DataError: there are none, or one is empty or has characters that cannot be printed.
    """
    labels = tuple(dict.fromkeys(names))
    # Names go into files of one name a line, so a line break in one would move all that follow.
    if not labels or not all(name.strip() and name.isprintable() for name in labels):
        raise DataError(f"{origin}: labels must be printable names, at least one. Received: {list(labels)!r}")
    return labels


def split_name(text: str, origin: str) -> str:
    """Returns `train`, `validation` or `test` for the usual names of these; raises DataError for others."""
    name = SPLIT_NAMES.get(text.strip().lower())
    if name is None:
        raise DataError(f"{origin}: a split must be train, validation or test. Received: {text!r}")
    return name


def plain_ids(names: Sequence[str]) -> list[str]:
    """Returns a plain, unique track id for every file name; one that needs it ends in a hash of the name."""
    short = ["-".join(PurePosixPath(name).parts) for name in names]
    repeated = {name for name, count in Counter(short).items() if count > 1}
    return [
        text if is_plain_id(text) and text not in repeated else _hashed(text, name)
        for text, name in zip(short, names, strict=True)
    ]


def _hashed(text: str, name: str) -> str:
    plain = "".join(sign if sign.isascii() and (sign.isalnum() or sign in "._-") else "_" for sign in text)
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()  # of a name that may be no UTF-8
    return f"{plain.lstrip('._-')[:150] or 'track'}-{digest[:12]}"
