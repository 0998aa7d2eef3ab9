"""Predictions for tracks on disk, from a run or an export."""

import csv
import io
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import pandas as pd

from tfmusic.console import console
from tfmusic.core.contract import Contract
from tfmusic.core.feature import EMBEDDING, Feature
from tfmusic.core.files import append_line, parse_json, replacing, text_cell, write_text
from tfmusic.core.pool import map_in_order
from tfmusic.core.track import Track
from tfmusic.datasets.metadata import tokens_of
from tfmusic.errors import DataError, UsageError, one_line, printable
from tfmusic.features import embeddings
from tfmusic.features.audio import is_audio
from tfmusic.features.npy import count_mel_frames, find_feature
from tfmusic.features.read import inputs_of, read_input
from tfmusic.inference.model_folder import load_contract
from tfmusic.inference.predictor import Predictor, load_predictor

_OK, _SKIPPED = "ok", "skipped: "  # in the column status of prediction files
_Source = TypeVar("_Source")


@dataclass
class TrackReader(Generic[_Source]):
    """Reads tracks, and keeps by row in `skipped` why some cannot be read; `on_track` is called after each."""

    sources: Sequence[_Source]
    on_track: Callable[[], None]
    workers: int = 1
    skipped: dict[int, str] = field(default_factory=dict)

    def read(self, read_fn: Callable[[_Source], np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
        """Yields row and what `read_fn` returns of the tracks that can be read; workers must be able to import it."""
        for row, values in enumerate(map_in_order(partial(_attempt, read_fn), self.sources, self.workers)):
            if isinstance(values, str):
                self.skipped[row] = values
            else:
                yield row, values
            self.on_track()

    def check_any(self, n_read: int) -> None:
        """Raises DataError where no track could be read, with the reason of the first."""
        if not n_read:
            others = f" (and {len(self.skipped) - 1} more)" if len(self.skipped) > 1 else ""
            raise DataError(f"{self.skipped[0]}{others}")


def _attempt(read_fn: Callable[[_Source], np.ndarray], source: _Source) -> np.ndarray | str:
    """Returns what a function reads, or why it cannot."""
    try:
        return read_fn(source)
    except DataError as error:
        return str(error)
    except OSError as error:
        return printable(f"{error.filename}: {error.strerror}" if error.filename else str(error))


@dataclass(frozen=True)
class TrackRow:
    """The prediction for a track, a label or a list of tags, and its scores [n_labels]; or why it was skipped."""

    track: Track
    prediction: Any = None
    scores: np.ndarray | None = None
    skipped: str | None = None


def predict_tracks(
    model_path: Path,
    tracks: Sequence[Track],
    on_track: Callable[[], None],
    *,
    task: str | None = None,
    workers: int = 1,
    file: "PredictionFile | None" = None,
) -> Iterator[TrackRow]:
    """Yields the predictions for tracks in their order, from a run or an export; bad tracks with the reason.

    Args:
        model_path: the run or export.
        tracks: what to predict.
        on_track: called after every track that was read.
        task: the task to predict where a run has several.
        workers: processes that decode.
        file: to which every row is added before it is yielded; tracks that it has already are left out.

    Raises:
        RunError: the folder is neither a run nor an export.
        UsageError: `task` is missing or none of the model's, or the file is one of other predictions.
        DataError: no track can be read.
    """
    check_inputs(load_contract(model_path), [track.feature_path for track in tracks])
    predictor = load_predictor(model_path, task)
    if predictor.contract.metadata and not any(track.metadata for track in tracks):
        console.warn("the model uses metadata, but these tracks have none: it predicts from the spectrograms alone")
    todo = tracks if file is None else file.begin(tracks, predictor.contract.labels)
    for _ in range(len(tracks) - len(todo)):
        on_track()
    reader = TrackReader(todo, on_track, workers)
    for row in _predict_rows(predictor, reader, may_skip_all=len(todo) < len(tracks)):
        if file is not None:
            file.add(row)
        yield row


def _predict_rows(predictor: Predictor, reader: TrackReader[Track], *, may_skip_all: bool) -> Iterator[TrackRow]:
    tracks, waiting = reader.sources, deque[int]()
    labels = predictor.contract.labels

    def powers() -> Iterator[tuple[np.ndarray, Sequence[str]]]:
        for row, power in reader.read(feature_fn(predictor.contract)):
            waiting.append(row)
            yield power, tokens_of(tracks[row].metadata)

    n_done = 0
    for prediction in predictor.predict_tracks(powers()):
        row = waiting.popleft()
        yield from (TrackRow(tracks[i], skipped=reader.skipped[i]) for i in range(n_done, row))
        (name,) = predictor.scorer.names(prediction.scores[None], labels)
        yield TrackRow(tracks[row], name, prediction.scores)
        n_done = row + 1
    if not may_skip_all:
        reader.check_any(n_done)
    yield from (TrackRow(tracks[i], skipped=reader.skipped[i]) for i in range(n_done, len(tracks)))


def write_matrices(path: Path, rows: Sequence[TrackRow], labels: Sequence[str]) -> None:
    """Writes scores, float32 [n_tracks, n_labels], and what is predicted, bool, as `decisions_path` of the same name.

    A track that was skipped has NaN, and no label.
    """
    scores = np.full((len(rows), len(labels)), np.nan, np.float32)
    decisions = np.zeros(scores.shape, bool)
    for place, row in enumerate(rows):
        if row.scores is not None:
            scores[place] = row.scores
            names = [row.prediction] if isinstance(row.prediction, str) else row.prediction
            decisions[place, [labels.index(name) for name in names]] = True
    for target, values in ((decisions_path(path), decisions), (path, scores)):
        with replacing(target) as partial, partial.open("wb") as file:
            np.lib.format.write_array(file, values, allow_pickle=False)


def decisions_path(path: Path) -> Path:
    """Returns the file of the decisions beside one of scores: x.decisions.npy beside x.npy."""
    return path.with_suffix(".decisions.npy")


_MARK = "\ufeff"


class PredictionFile:
    """A `.csv` or `.jsonl` file of predictions, a line for each track, which is written as they come.

    CSV has the columns track_id, path, prediction, `score:LABEL` for every label and status, JSON lines the keys
    track_id, path, prediction, scores and status: "ok", or "skipped: " and the reason. The file appears with its first
    line, in place of an older one.

    Attributes:
        earlier: the tracks that it had in the beginning by id: path, and the reason of one skipped or an empty text.
    """

    def __init__(self, path: Path, *, resume: bool = False, with_mark: bool = False) -> None:
        """Takes the path; with `resume` lines that are there already stay, and the byte order mark that Excel wants."""
        self.path, self._resume, self._labels = path, resume, tuple[str, ...]()
        self._mark = _MARK if with_mark else ""
        self._has_begun = False
        self.earlier: dict[str, tuple[str, str]] = {}

    def begin(self, tracks: Sequence[Track], labels: Sequence[str]) -> list[Track]:
        """Returns the tracks that the file has no line of.

        Raises:
            UsageError: the file has no such lines, or lines of other labels, or one of its ids is another track here.
        """
        self._labels = tuple(labels)
        if self._resume and self.path.exists():
            self._read()
        todo = []
        for track in tracks:
            name, path = self._names(track)
            earlier, _ = self.earlier.get(name, (None, ""))
            if earlier is None:
                todo.append(track)
            elif earlier != path:
                raise self._unfit(f"{earlier} as {name}, which is {path} here")
        return todo

    def add(self, row: TrackRow) -> None:
        """Adds the line of a track."""
        if self._has_begun:
            append_line(self.path, self._line(row))
        else:
            write_text(self.path, self._mark + "".join(f"{line}\n" for line in (*self._header(), self._line(row))))
        self._has_begun = True

    def _header(self) -> list[str]:
        is_table = self.path.suffix == ".csv"
        return [_csv_line(["track_id", "path", "prediction", *map(_score_name, self._labels), "status"])][:is_table]

    def _names(self, track: Track) -> tuple[str, str]:
        """Returns id and path of a track as its line has them."""
        name, path = track.track_id, printable(str(track.feature_path))
        return (text_cell(name), text_cell(path)) if self.path.suffix == ".csv" else (name, path)

    def _line(self, row: TrackRow) -> str:
        scores = [] if row.scores is None else [round(score, 6) for score in row.scores.tolist()]
        (name, path), status = self._names(row.track), f"{_SKIPPED}{one_line(row.skipped)}" if row.skipped else _OK
        if self.path.suffix == ".csv":
            cells = [name, path, _cell(row.prediction), *(scores or [""] * len(self._labels)), text_cell(status)]
            return _csv_line(cells)
        values = {"track_id": name, "path": path, "prediction": row.prediction}
        by_label = dict(zip(self._labels, scores, strict=True)) if scores else None
        return json.dumps(values | {"scores": by_label, "status": status}, ensure_ascii=False)

    def _read(self) -> None:
        try:
            text = self.path.read_bytes().decode()
        except UnicodeDecodeError as error:
            raise self._unfit(str(error)) from error
        text = text.removeprefix(_MARK)
        whole = text[: text.rfind("\n") + 1]  # the last line may have been cut off
        lines, header = whole.split("\n")[:-1], self._header()
        if text and (not lines or lines[: len(header)] != header):
            raise self._unfit(text.partition("\n")[0])
        for line in lines[len(header) :]:
            name, path, reason = self._parse(line)
            self.earlier[name] = path, reason
        self._has_begun = bool(lines)
        if whole != text:
            write_text(self.path, self._mark + whole)

    def _parse(self, line: str) -> tuple[str, str, str]:
        """Returns id, path and the reason of one skipped."""
        if self.path.suffix == ".csv":
            cells = next(csv.reader([line]))
            if len(cells) != len(self._labels) + 4:
                raise self._unfit(line)
            return cells[0], cells[1], _reason(cells[-1])
        try:
            values = parse_json(line)
            scores = values["scores"]
            if scores is not None and tuple(scores) != self._labels:
                raise self._unfit(f"the labels {', '.join(scores)}")
            return str(values["track_id"]), str(values["path"]), _reason(values["status"])
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise self._unfit(line) from error

    def _unfit(self, received: str) -> UsageError:
        return UsageError(
            f"{self.path}: --resume goes on with a file of predict of the same model and inputs. Received:"
            f" {one_line(received)[:200]}"
        )


def _reason(status: str) -> str:
    return "" if status == _OK else status.removeprefix(_SKIPPED)


def _csv_line(cells: Sequence[Any]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(cells)
    return line.getvalue()


def feature_fn(contract: Contract) -> Callable[[Track], np.ndarray]:
    """Returns what reads the feature [n_bins, n_frames] of a track, as a contract says."""
    return partial(_read_track, feature=contract.feature)


def _read_track(track: Track, feature: Feature) -> np.ndarray:
    return read_input(track.feature_path, track.track_id, feature)


def check_inputs(contract: Contract, paths: Iterable[Path]) -> None:
    """Raises UsageError where files do not suit a model.

    A model of spectrograms takes sound and `.npy` files, the latter of its own feature where their folder says what
    they are; a model of embeddings those of the network that it was trained on, and neither of the others.
    """
    wanted = contract.feature
    for path in dict.fromkeys(paths):
        given = _feature_of(path, wanted)
        if given not in inputs_of(wanted):
            raise UsageError(f"{path}: the model takes {_describe(wanted)}. Received: {_describe(given)}")


def _feature_of(path: Path, wanted: Feature) -> Feature | str:
    """Returns what a file holds or can be turned into, as far as that is known."""
    if path.suffix == ".npz":
        return embeddings.read_index(path).feature
    if wanted.name == EMBEDDING and is_audio(path):
        return "sound"
    if wanted.name == EMBEDDING and path.is_file():
        try:
            count_mel_frames(path, wanted.n_bins)
        except DataError as error:
            return str(error).removeprefix(f"{path}: ")
    found = None if is_audio(path) else find_feature(path.parent)
    return wanted if found is None else found[1]


def _describe(feature: Feature | str) -> str:
    if isinstance(feature, Feature) and feature.name == EMBEDDING:
        return f"embeddings of {feature.source}, a file of tfmusic embed or .npy [{feature.n_bins}, n_frames]"
    return str(feature)


def predictions_table(
    track_ids: Sequence[str],
    predictions: Sequence[Any],
    scores: np.ndarray,
    labels: Sequence[str],
    targets: Sequence[Any] | None = None,
) -> pd.DataFrame:
    """Returns the columns track_id, prediction, target where known, and `score:LABEL` for every label.

    Several tags are a JSON list in their cell. A track without a prediction, None, has empty cells. A text that a
    spreadsheet would run as a formula gets a quote in front of it, file names included.
    """
    columns: dict[str, Any] = {
        "track_id": [text_cell(name) for name in track_ids],
        "prediction": [_cell(prediction) for prediction in predictions],
    }
    if targets is not None:
        columns["target"] = [_cell(target) for target in targets]
    columns |= {_score_name(label): scores[:, i].round(6) for i, label in enumerate(labels)}
    return pd.DataFrame(columns)


def _score_name(label: str) -> str:
    return text_cell(f"score:{label}")


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return text_cell(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
