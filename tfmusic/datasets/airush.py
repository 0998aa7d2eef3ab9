"""AI Rush music classification: q1 station, q2 mood tags, q3 genre.

Layout of the folder of a question (`D/q2`, or `D` that holds it):

    train/train_label                       JSON table: track_index and the label column
    train/train_data/mel_spectrogram/N.npy  float32 [1, 128, n_frames], linear power, 16 kHz, hop 512
    train/train_data/meta/*.json            track_meta album_meta artist_meta lyric_meta (q1, q2; may be missing)
    test/test_data/meta/q2_test.json        JSON table: track_index of the test tracks, in data_idx order
    test/test_data/mel_spectrogram/N.npy
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tfmusic.console import console
from tfmusic.core.contract import Kind
from tfmusic.core.track import NO_METADATA, Dataset, Track, check_track_id, check_unique
from tfmusic.datasets import metadata as meta
from tfmusic.datasets.options import DataSection
from tfmusic.errors import DataError

# --- What the data set is -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """The label column of a question and whether a track has one label or several."""

    column: str
    kind: Kind


QUESTIONS = {
    "q1": Question("station_name", "single"),
    "q2": Question("mood_tag", "multi"),
    "q3": Question("genre", "single"),
}

_TRACK_KEYS = ("track_index", "track_id", "track", "id")  # of lyric_meta, whose schema is not known

QuestionName = Literal["q1", "q2", "q3"]


class Options(DataSection):
    """AI Rush."""

    loader: Literal["airush"] = "airush"
    question: QuestionName | list[QuestionName]
    """Question of the challenge; a list where `task` is a list."""

    @property
    def label_kind(self) -> Literal["single", "multi"]:
        """Whether a track has one label, or several tags."""
        return "multi" if self.question == "q2" else "single"

    @property
    def n_labels(self) -> int:
        """Labels of all questions together."""
        questions = self.question if isinstance(self.question, list) else [self.question]
        return sum({"q1": 4, "q2": 100, "q3": 4}[question] for question in questions)


# --- Loading ---------------------------------------------------------------------------------------------------


def load(folder: Path, options: Options, *, task: str) -> Dataset:
    """Returns the labelled tracks of one question, in the order of train_label.

    Raises:
        DataError: a folder, file or column is missing, or a label, id or table is not what the format says.
    """
    assert isinstance(options.question, str)  # Config.tasks gives every task its question
    question = options.question
    train = _find(folder, question, "train", "train_label")
    label_path = train / "train_label"
    ask = QUESTIONS[question]
    rows = meta.read_columns(label_path, required=("track_index", ask.column))
    if not rows:
        raise DataError(f"{label_path}: must list at least one track. Received: none")
    ids = [check_track_id(row["track_index"], str(label_path)) for row in rows]
    check_unique(ids, str(label_path))
    labels = [_labels(row[ask.column], ask, f"{label_path}: track {i}") for i, row in zip(ids, rows, strict=True)]
    shared = {names: names for names in labels}  # one object for all tracks of the same labels
    metadata = _Metadata.load(train / "train_data" / "meta")
    if metadata.tracks and metadata.tracks.keys().isdisjoint(ids):
        console.warn(f"{train / 'train_data' / 'meta'}: track_meta.json has none of the labelled tracks")
    mels = _existing(train / "train_data" / "mel_spectrogram")
    tracks = tuple(
        metadata.track(track_id, mels / f"{track_id}.npy", labels=shared[names], label_row=row, label=ask.column)
        for track_id, names, row in zip(ids, labels, rows, strict=True)
    )
    return Dataset(task, ask.kind, tuple(sorted({name for names in labels for name in names})), tracks)


def load_test(folder: Path, *, question: str) -> tuple[Track, ...]:
    """Returns the unlabelled test tracks of a question in data_idx order.

    Raises:
        DataError: a folder, file or column is missing, or an id is no plain name.
    """
    data = _find(folder, question, "test", "test_data") / "test_data"
    list_path = data / "meta" / f"{question}_test.json"
    rows = meta.read_columns(list_path, required=("track_index",))
    ids = [check_track_id(row["track_index"], str(list_path)) for row in rows]
    check_unique(ids, str(list_path))
    mels = _existing(data / "mel_spectrogram")
    metadata = _Metadata.load(list_path.parent)
    label = QUESTIONS[question].column
    return tuple(
        metadata.track(track_id, mels / f"{track_id}.npy", labels=(), label_row=row, label=label)
        for track_id, row in zip(ids, rows, strict=True)
    )


def find_test(folder: Path) -> str | None:
    """Returns the question whose test part a folder holds, or None where it holds none."""
    for question in QUESTIONS:
        places = [folder / "test", folder]
        if any((place / "test_data" / "meta" / f"{question}_test.json").is_file() for place in places):
            return question
    return None


# --- Parts -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Metadata:
    """The rows of the meta folder by key; empty tables where a file is missing."""

    tracks: Mapping[str, dict[str, Any]]
    albums: Mapping[str, dict[str, Any]]
    artists: Mapping[str, dict[str, Any]]
    lyrics: Mapping[str, str]

    @classmethod
    def load(cls, folder: Path) -> "_Metadata":
        return cls(
            tracks=_by(folder / "track_meta.json", "track_index"),
            albums=_by(folder / "album_meta.json", "album_index"),
            artists=_by(folder / "artist_meta.json", "artist_index"),
            lyrics=_lyrics(folder / "lyric_meta.json"),
        )

    def track(
        self, track_id: str, path: Path, *, labels: tuple[str, ...], label_row: dict[str, Any], label: str
    ) -> Track:
        # q3 keeps the metadata beside the label; its genre column is the label and must not become metadata.
        row = {key: value for key, value in (self.tracks.get(track_id) or label_row).items() if key != label}
        album, artists = meta.as_index(row.get("album_index")), meta.artist_indices(row)
        metadata = meta.decode_track(row) | meta.decode_album(self.albums.get(str(album), {}))
        metadata |= meta.decode_artist(self.artists.get(str(artists[0]), {}) if artists else {})
        if track_id in self.lyrics:
            metadata["lyric"] = self.lyrics[track_id]
        return Track(
            track_id,
            path,
            labels,
            artists=meta.artist_keys(row),
            album=meta.album_key(row),
            metadata=metadata or NO_METADATA,
        )


def _by(path: Path, key: str) -> dict[str, dict[str, Any]]:
    if not path.is_file():
        return {}
    keyed = {_text(row.get(key)): row for row in meta.read_columns(path)}
    return {name: row for name, row in keyed.items() if name}


def _text(value: Any) -> str:
    """Returns an id as text; 7, 7.0 and "7" are the same one."""
    index = meta.as_index(value)
    return str(index) if index is not None else value if isinstance(value, str) else ""


def _lyrics(path: Path) -> dict[str, str]:
    """Returns lyric text by track; the schema is not known: a table of columns, a list of rows, or texts by track."""
    if not path.is_file():
        return {}
    try:
        table = meta.read_json(path)
        if isinstance(table, dict) and table and all(isinstance(text, str) for text in table.values()):
            return {track_id: text for track_id, text in table.items() if text.strip()}
        rows = table if isinstance(table, list) else meta.read_columns(path)
    except DataError as error:
        console.warn(f"{error}; lyrics are left out")
        return {}
    found: dict[str, str] = {}
    for row in (row for row in rows if isinstance(row, dict)):
        key = next((name for name in _TRACK_KEYS if name in row), "")
        texts = {name: text for name, text in row.items() if name != key and isinstance(text, str) and text.strip()}
        named = [text for name, text in texts.items() if "lyric" in name.casefold()] or list(texts.values())
        if (track_id := _text(row.get(key))) and named:
            found[track_id] = "\n".join(named)
    if rows and not found:
        names = ", ".join(rows[0]) if isinstance(rows[0], dict) else type(rows[0]).__name__
        console.warn(
            f"{path}: must have text beside a column of tracks ({', '.join(_TRACK_KEYS)})."
            f" Received: {names[:200]}; lyrics are left out"
        )
    return found


def _labels(value: Any, ask: Question, origin: str) -> tuple[str, ...]:
    names = value if ask.kind == "multi" and isinstance(value, list) else [value]
    # Names go into files of one name a line, so a line break in one would move all that follow.
    if not names or not all(isinstance(name, str) and name.strip() and name.isprintable() for name in names):
        wanted = "a list of printable names, not empty" if ask.kind == "multi" else "a printable name, not empty"
        raise DataError(f"{origin}: {ask.column} must be {wanted}. Received: {value!r}")
    return tuple(dict.fromkeys(names))


def _places(folder: Path, question: str, part: str) -> list[Path]:
    return [folder / part, folder, folder / question / part]


def _find(folder: Path, question: str, part: str, wanted: str) -> Path:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder. Pass the folder of {question} that holds {part}/")
    for place in _places(folder, question, part):
        if (place / wanted).exists():
            return place
    looked = ", ".join(str(place / wanted) for place in _places(folder, question, part))
    raise DataError(f"{folder}: must hold the {part} part of {question}. Looked for: {looked}")


def _existing(folder: Path) -> Path:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; the spectrograms of the tracks must stand there")
    return folder
