"""What loaders and commands share: feature files below a folder, tables of text, names of labels and splits."""

import csv
import hashlib
import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from tfmusic.core.track import is_plain_id
from tfmusic.errors import DataError, printable

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
        others: how many files are of other kinds, by suffix.
        n_hidden: how many spectrogram and audio files are hidden, or in hidden folders.
        unreadable: folders that cannot be read.
    """

    root: Path
    paths: Mapping[str, Sequence[Path]]
    others: Counter[str]
    n_hidden: int = 0
    unreadable: tuple[str, ...] = ()

    @classmethod
    def below(cls, root: Path, *, only: Iterable[str] | None = None) -> "FeatureFiles":
        """Returns all files below a folder, or below some of its folders; hidden ones are left out.

        Raises:
            DataError: there is no such folder.
        """
        if not root.is_dir():
            raise DataError(f"{root}: no such folder; the audio or spectrogram files must stand there")
        paths, others, n_hidden, unreadable = defaultdict(list), Counter[str](), 0, list[str]()
        for folder in [root] if only is None else [root / name for name in only]:
            for path in _all_files(folder, unreadable):
                is_feature, parts = path.suffix.lower() in SUFFIXES, path.relative_to(root).parts
                if any(part.startswith(".") for part in parts):
                    n_hidden += is_feature
                elif is_feature:
                    paths[PurePosixPath(*parts).with_suffix("").as_posix()].append(path)
                elif path.name != "feature.json":  # what extract says of its files
                    others[path.suffix.lower() or "without suffix"] += 1
        return cls(root, {name: sorted(paths[name]) for name in sorted(paths)}, others, n_hidden, tuple(unreadable))

    @cached_property
    def n_shadowed(self) -> int:
        """How many audio files have a spectrogram of the same name beside them, which is taken in their place."""
        return sum(map(len, self.paths.values())) - len(self.named)

    @cached_property
    def named(self) -> Mapping[str, Path]:
        """Every track's file by its name from the folder on, with the suffix where the name alone is not unique."""
        chosen = [
            path
            for paths in self.paths.values()
            for path in [path for path in paths if path.suffix.lower() == ".npy"] or paths
        ]
        names = short_names([path.relative_to(self.root).as_posix() for path in chosen])
        return dict(zip(names, chosen, strict=True))

    def describe_left_out(self) -> str:
        """Returns how many files are left out, and why; an empty text for none."""
        others = sorted(self.others.items(), key=lambda item: (-item[1], item[0]))
        kinds = ", ".join(f"{count:,} {suffix}" for suffix, count in others)
        reasons = (
            (self.others.total(), f"files are neither audio nor .npy: left out ({printable(kinds)})"),
            (self.n_hidden, "audio or .npy files are hidden: left out"),
            (self.n_shadowed, "audio files have a .npy file of the same name, which is taken in their place"),
            (len(self.unreadable), f"folders cannot be read, such as {''.join(self.unreadable[:1])}"),
        )
        return "; ".join(f"{count:,} {text}" for count, text in reasons if count)

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


def _all_files(root: Path, unreadable: list[str]) -> Iterator[Path]:
    """Yields all files below a folder. Links to folders are followed, to each folder once and after all that are none.

    Folders that cannot be read are added to `unreadable`.
    """
    seen, waiting = set[str](), [root]
    while waiting:
        links: list[Path] = []
        for start in waiting:
            for folder, folders, names in os.walk(start, onerror=lambda error: unreadable.append(str(error))):
                real = os.path.realpath(folder)
                if real in seen:
                    folders.clear()
                    continue
                seen.add(real)
                links += (Path(folder, name) for name in sorted(folders))
                yield from (Path(folder, name) for name in names)
        waiting = [path for path in links if path.is_symlink() and not path.name.startswith(".")]


def short_names(names: Sequence[str]) -> list[str]:
    """Returns names of files without their suffixes, or with them where several would be the same."""
    stems = [str(path.with_suffix("")) if (path := PurePosixPath(name)).name else name for name in names]
    counts, whole = Counter(stems), set(names)
    return [
        name if counts[stem] > 1 or (stem in whole and stem != name) else stem
        for stem, name in zip(stems, names, strict=True)
    ]


def below(folder: Path, name: str, origin: str) -> Path:
    """Returns the path of a file that a table names.

    Raises:
        DataError: the name could leave the folder.
    """
    path = PurePosixPath(name)
    if not path.name or "\\" in name or "\0" in name or path.is_absolute() or ".." in path.parts:
        hint = "paths are relative to it"
        if "\\" in name:
            hint = "write / in place of \\"
        elif path.is_relative_to(folder.resolve()):
            hint = f"write {path.relative_to(folder.resolve())}"
        raise DataError(f"{origin}: a path must stay below {folder.resolve()}. Received: {name!r}; {hint}")
    if max(len(part.encode(errors="replace")) for part in path.parts) > _LONGEST_NAME:
        raise DataError(
            f"{origin}: the names in a path must have at most {_LONGEST_NAME} bytes. Received: {name[:80]!r}..."
        )
    if name.isascii() or (folder / path).exists():
        return folder / path
    others = (folder / unicodedata.normalize(form, name) for form in ("NFC", "NFD"))  # a Mac writes the latter
    return next((other for other in others if other.exists()), folder / path)


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
        hint = ""
        if len(header) == 1 and any(divider in header[0] for divider in ";\t,"):
            hint = f"; {'tabs' if delimiter == chr(9) else 'commas'} must divide the cells"
        elif {name.lower() for name in header} >= set(required):
            hint = "; write the names in lower case"
        raise DataError(
            f"{path}: must be a table with the columns {', '.join(required)}, each once. Received:"
            f" {', '.join(header)}{hint}"
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
    """Yields the cells of every line that holds something; raises as `read_table`."""
    if path.exists() and not path.is_file():  # reading a pipe would wait for ever
        raise DataError(f"{path}: must be a file")
    before = csv.field_size_limit(_MAX_FIELD)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file, dialect=_Tabs if delimiter == "\t" else "excel", strict=True)
            yield from (cells for cells in lines if any(map(str.strip, cells)))  # spreadsheets leave rows of commas
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


def path_id(name: str) -> str:
    """Returns the track id of a file without labels: its path from the given folder on, as printable text."""
    return printable("-".join(PurePosixPath(name).parts))


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
