"""What notebooks and programs use: `import tfmusic` offers every name of `__all__`, and loads it when it is first used.

Paths may be `str` or `Path`. Mistakes of the caller raise `TfmusicError` with the line that the commands print.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from tfmusic.config.loading import dump_value, find_config, load_config
from tfmusic.config.sections import Config
from tfmusic.console import console
from tfmusic.core.contract import Contract
from tfmusic.core.feature import POWER, Feature
from tfmusic.core.rundir import RunDir, is_run
from tfmusic.core.rundir import open_run as open_run_dir
from tfmusic.datasets.metadata import tokens_of
from tfmusic.errors import DataError, TfmusicError, UsageError
from tfmusic.features.npy import check_finite, check_power
from tfmusic.features.read import compute_from_samples, inputs_of, map_input, power_of, read_feature, read_input
from tfmusic.inference.predict import TrackReader, check_inputs
from tfmusic.inference.predictor import Predictor, TrackPrediction, load_predictor
from tfmusic.pretrained.musicnn import stored_musicnn
from tfmusic.pretrained.taggers import TAGGERS, find_model
from tfmusic.records.manifest import Manifest
from tfmusic.records.reader import StoredTrack, iterate_tracks
from tfmusic.records.segments import Segments
from tfmusic.scoring.aggregate import AGGREGATORS
from tfmusic.scoring.aggregate import aggregate as aggregate_logits
from tfmusic.scoring.timeline import timeline

if TYPE_CHECKING:
    import tensorflow as tf

    from tfmusic.evaluation.evaluate import EvaluationReport
    from tfmusic.inference.embed import Embedder

__all__ = [
    "Embedding", "Model", "Prediction", "Records", "Run", "TfmusicError", "aggregate", "build_records", "fit", "load",
    "mel", "open_records", "open_run",
]  # fmt: skip

Waveform = tuple[np.ndarray, int]  # mono samples [n_samples] and their rate, Hz, as librosa.load returns them
Source = str | Path | np.ndarray | Waveform  # of one track: a file, linear power [n_bins, n_frames], or a waveform
Overrides = Mapping[str, Any] | Sequence[str]  # {"training.epochs": 3}, or ["training.epochs=3"]

_SHOWN = 5  # labels of a prediction in a notebook
_COLOURS = "--ink:#666;--faint:#999;--line:#ccc;" + "".join(
    f"--series{i + 1}:{colour};" for i, colour in enumerate(("#4477aa", "#ee6677", "#228833", "#ccbb44", "#aa3377"))
)


def load(model: str | Path, *, task: str | None = None) -> "Model":
    """Returns the model of a run folder or of an export (SavedModel, ONNX, LiteRT), or musicnn.

    Args:
        model: the folder; or `musicnn`, 50 tags of the Million Song Dataset, or `musicnn-mtt`, 50 of MagnaTagATune,
            once `tfmusic weights musicnn` has stored their weights.
        task: which task to predict, where the model has several.

    Raises:
        TfmusicError: the folder is neither, or it is damaged; `task` is missing, or none of the model's; or the
            package that runs the export is not installed.
    """
    folder = find_model(model)
    network = TAGGERS.get(str(model)) if folder != Path(model) else None
    return Model(folder, load_predictor(folder, task), network)


class Embedding(NamedTuple):
    """The embedding of a track: of its windows [n_windows, n_dims], their mean [n_dims], and where they begin, s."""

    windows: np.ndarray
    mean: np.ndarray
    starts_s: np.ndarray


@dataclass(frozen=True, repr=False)
class Prediction:
    """The prediction for a track.

    Attributes:
        name: the name of the file, or "track" where there is none.
        task: what is predicted, such as q2.
        labels: the predicted labels: one, or any number of tags.
        scores: 0 to 1, by label, in the order of the model.
        timeline: scores over time; a row for each interval, by its ends in seconds, a column for each label.
    """

    name: str
    task: str
    labels: tuple[str, ...]
    scores: pd.Series
    timeline: pd.DataFrame

    @classmethod
    def of(cls, name: str, prediction: TrackPrediction, contract: Contract) -> "Prediction":
        """Returns the prediction of a predictor with the names of its labels."""
        labels = list(contract.labels)
        line = timeline(
            prediction.window_scores, prediction.starts, frames=contract.frames, n_frames=prediction.n_frames
        )
        intervals = pd.IntervalIndex.from_breaks(line.edges / contract.frames_per_s, closed="left", name="seconds")
        return cls(
            name,
            contract.task,
            tuple(labels[i] for i in np.flatnonzero(prediction.chosen)),
            pd.Series(prediction.scores, labels, name=contract.task),
            pd.DataFrame(line.scores, intervals, labels),
        )

    @property
    def duration_s(self) -> float:
        """Length of the track, s."""
        return float(self.timeline.index[-1].right)

    def __repr__(self) -> str:
        """Returns name, labels with their scores, and length."""
        chosen = ", ".join(f"{label} {self.scores[label]:.2f}" for label in self.labels) or "no tag"
        return f"<{self.name}: {self.task} {chosen}; {self.duration_s:.1f} s>"

    def _repr_html_(self) -> str:
        """Returns the strongest labels with their scores over time, for notebooks."""
        from tfmusic.reports.svg import Line, line_chart

        strongest = self.scores.sort_values(ascending=False, kind="stable")[:_SHOWN]
        middles = [interval.mid for interval in self.timeline.index]
        lines = [
            Line(middles, self.timeline[label].tolist(), label, f"series{i + 1}")
            for i, label in enumerate(strongest.index)
        ]
        chart = line_chart(
            "timeline", lines, x_label="seconds", y_label="score", x_range=(0, self.duration_s), y_range=(0, 1)
        )
        return f'<div style="{_COLOURS}max-width:30em">{escape(repr(self))}{chart}</div>'


class Model:
    """A loaded model of whole tracks.

    Attributes:
        path: its folder.
        contract: what its input must be, and its labels.
    """

    def __init__(self, path: Path, predictor: Predictor, network: str | None = None) -> None:
        """Takes a predictor, and the name of musicnn's network if it is one; `tfmusic.load` makes it."""
        self.path, self._predictor, self._network = path, predictor, network
        self.contract: Contract = predictor.contract

    def __repr__(self) -> str:
        """Returns the folder, task, number of labels and input."""
        return f"<Model {self.path}: {self.contract.task}, {len(self.labels)} labels, of {self.contract.feature}>"

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels, in the order of the scores."""
        return self.contract.labels

    def predict(self, source: Source | Iterable[Source], *, metadata: Mapping[str, Any] | None = None) -> Any:
        """Returns the `Prediction` for a track, or a list of them for a list of tracks, with None for bad files.

        As the command `predict`, a list warns of the files that cannot be read, and fails where none can.

        Args:
            source: a file of sound, a `.npy` file or an array of linear power [n_bins, n_frames] (a leading axis of
                length 1 may stand before), or a waveform with its rate, `(samples, sample_rate_hz)`; or a list of any.
            metadata: of the track, such as `{"genres": ["jazz"]}`, for models with metadata.

        Raises:
            TfmusicError: the file, or every file of a list, cannot be read, or one does not suit the model.
        """
        sources: list[Source] = [source] if isinstance(source, str | Path | np.ndarray | tuple) else list(source)
        tokens, rows, reader = tokens_of(metadata or {}), list[int](), TrackReader(sources, lambda: None)

        def powers() -> Iterator[tuple[np.ndarray, Sequence[str]]]:
            for row, power in reader.read(self._power):
                rows.append(row)
                yield power, tokens

        found: list[Prediction | None] = [None] * len(sources)
        for place, prediction in enumerate(self._predictor.predict_tracks(powers())):
            found[rows[place]] = Prediction.of(_name(sources[rows[place]]), prediction, self.contract)
        if sources:
            reader.check_any(len(rows))
        for row, reason in reader.skipped.items():
            console.warn(f"skipped {_name(sources[row])}: {reason}")
        return found[0] if isinstance(source, str | Path | np.ndarray | tuple) else found

    def embed(self, source: Source) -> Embedding:
        """Returns the embedding of a track: what stands before the last layer of the model of a run.

        Args:
            source: as `predict` takes it.

        Raises:
            TfmusicError: as `predict`, or the model is an export or an ensemble, which has no single last layer.
        """
        embedder = self._embedder
        windows, starts = embedder.embed_power(self._power(source))
        return Embedding(windows, windows.mean(0), starts / embedder.frames_per_s)

    @cached_property
    def _embedder(self) -> "Embedder":
        from tfmusic.inference.embed import musicnn_embedder, run_embedder

        if self._network is not None:
            return musicnn_embedder(stored_musicnn(), self._network)
        if not is_run(self.path):
            raise UsageError(f"{self.path}: is an export, which has no embeddings; load the run that it comes from")
        return run_embedder(RunDir(self.path))

    def _power(self, source: Source) -> np.ndarray:
        if isinstance(source, str | Path):
            path = Path(source)
            check_inputs(self.contract, [path])
            return read_input(path, path.stem, self.contract.feature)
        feature = self.contract.feature
        if isinstance(source, tuple):
            return _power_of_array(source, feature)
        values = np.asarray(source)
        given = [one for one in inputs_of(feature) if values.ndim > 1 and one.n_bins == values.shape[-2]]
        return map_input(_power_of_array(values, (*given, feature)[0]), feature)


def _name(source: Source) -> str:
    return Path(source).name if isinstance(source, str | Path) else "track"


def _power_of_array(source: np.ndarray | Waveform, feature: Feature) -> np.ndarray:
    """Returns the feature [n_bins, n_frames] of a waveform, or an array that is one already."""
    if isinstance(source, tuple):
        samples, rate_hz = source
        samples = np.asarray(samples)
        if samples.ndim != 1 or samples.dtype.kind != "f" or not isinstance(rate_hz, int | float | np.number):
            raise DataError(
                "a waveform must be (samples, sample_rate_hz) with mono float samples [n_samples]. Received:"
                f" {samples.dtype} {list(samples.shape)}, {rate_hz!r}"
            )
        check_finite(samples[None], "waveform")
        return compute_from_samples(samples.astype(np.float32), int(rate_hz), feature)
    values = np.asarray(source)
    values = values[0] if values.ndim == 3 and len(values) == 1 else values
    if values.ndim != 2 or values.shape[0] != feature.n_bins or not values.size or values.dtype.kind not in "fiu":
        hint = "; pass a waveform as (samples, sample_rate_hz)" if values.ndim == 1 else ""
        raise DataError(
            f"an array must be {feature}, [{feature.n_bins}, n_frames]. Received: {values.dtype}"
            f" {list(values.shape)}{hint}"
        )
    values = power_of(np.ascontiguousarray(values, np.float32), feature)
    (check_power if feature.name in POWER else check_finite)(values, "array")
    return values


def mel(source: Source, feature: str | Mapping[str, Any] | Feature = "airush") -> np.ndarray:
    """Returns the spectrogram of a track, float32 [n_bins, n_frames], as records and models take it.

    Args:
        source: a file of sound, a `.npy` file, or a waveform with its rate.
        feature: the name of a preset (airush, gtzan, choi, musicnn, fma-cqt), or the keys of a config's `feature`.

    Raises:
        TfmusicError: the file cannot be read, or there is no such feature.
    """
    kind = feature if isinstance(feature, Feature) else _config("folder", {"feature": feature}).feature
    if isinstance(source, str | Path):
        return read_feature(Path(source), Path(source).stem, kind)
    return _power_of_array(source, kind)


def aggregate(scores: np.ndarray, aggregator: str = "mean", *, kind: str = "multi", top_k: int = 3) -> np.ndarray:
    """Returns the scores of a track [n_labels], 0 to 1, for those of its windows [n_windows, n_labels].

    Args:
        scores: 0 to 1.
        aggregator: mean, median, max, vote, logit_mean or top_k_mean.
        kind: `single` where the labels exclude each other, `multi` for tags; vote and logit_mean depend on it.
        top_k: how many windows top_k_mean takes.

    Raises:
        UsageError: there is no such aggregator, or the scores have another shape or range.
    """
    values = np.asarray(scores, np.float64)
    if aggregator not in AGGREGATORS or kind not in ("single", "multi"):
        raise UsageError(
            f"aggregator must be one of {', '.join(AGGREGATORS)}, and kind single or multi. Received: {aggregator!r},"
            f" {kind!r}"
        )
    if values.ndim != 2 or not values.size or not ((values >= 0) & (values <= 1)).all():
        raise UsageError(f"scores must be [n_windows, n_labels], 0 to 1. Received: {list(values.shape)}")
    safe = np.clip(values, 1e-12, 1.0 - 1e-12)
    logits = np.log(safe) - (np.log1p(-safe) if kind == "multi" else 0.0)
    return aggregate_logits(logits, kind=kind, aggregator=aggregator, top_k=top_k)


def open_records(folder: str | Path) -> "Records":
    """Returns the records of a folder that `build_records` wrote, or of the only such folder inside.

    Raises:
        TfmusicError: there are none, or the manifest is damaged.
    """
    return Records(Manifest.read(Path(folder)))


class Records(Segments):
    """Records of tracks. As a sequence they are their segments: `len(records)`, `records[17]` (codes and target)."""

    def __init__(self, manifest: Manifest) -> None:
        """Takes a manifest; `tfmusic.open_records` reads one."""
        super().__init__(manifest, tuple(manifest.splits))

    def __repr__(self) -> str:
        """Returns folder, task, and how much of it there is."""
        splits = ", ".join(f"{name} {split.tracks:,}" for name, split in self.manifest.splits.items())
        return f"<Records {self.path}: {self.contract.task}, tracks: {splits}; {len(self):,} segments>"

    @property
    def path(self) -> Path:
        """The folder."""
        return self.manifest.folder

    @property
    def contract(self) -> Contract:
        """Feature, scale, labels, and the length of the segments."""
        return self.manifest.contract

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the labels, in the order of the targets."""
        return self.contract.labels

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits or folds."""
        return tuple(self.manifest.splits)

    @cached_property
    def tracks(self) -> pd.DataFrame:
        """A row for each track, by its id: split, labels, n_frames, artists, album; why it was skipped, if it was."""
        return self.manifest.read_tracks().drop(columns="row").set_index("track_id")

    def segments(self, *splits: str) -> Segments:
        """Returns the segments of some splits as a sequence, for the loaders of PyTorch or Grain."""
        return Segments(self.manifest, splits)

    def iterate(self, *splits: str) -> Iterator[StoredTrack]:
        """Yields every track of some splits, or of all, whole: track_id, label ids, codes [n_frames, n_bins]."""
        for split in splits or self.splits:
            yield from iterate_tracks(self.manifest, split)

    def dataset(
        self,
        *splits: str,
        batch_size: int = 32,
        training: bool = False,
        augment: str | Mapping[str, Any] = "none",
        frames: int | None = None,
        seed: int = 0,
    ) -> "tf.data.Dataset":
        """Returns batches for a Keras model of your own: codes [batch, frames, n_bins], targets [batch, n_labels].

        Args:
            splits: which of them.
            batch_size: segments in a batch.
            training: shuffle, crop to `frames` and augment; every time the dataset is read, the next epoch comes, in
                whole batches. Otherwise every segment comes once, in the order of the files.
            augment: a SpecAugment policy (none, LB, LD, SM, SS), or keys of a config's `augment`.
            frames: length of the windows in training; that of the segments by default.
            seed: of the shuffling and the augmentation.

        Raises:
            TfmusicError: there is no such split, or a key or value of `augment` is not valid.
        """
        from tfmusic.core.runtime import start_tensorflow

        start_tensorflow()
        from tfmusic.inputs.batches import TrainingInput
        from tfmusic.inputs.pipeline import epochs_in_turn, segments_in_order

        if frames is not None and not 1 <= frames <= self.contract.frames:
            raise UsageError(f"frames must be 1 to {self.contract.frames}, the length of a segment. Received: {frames}")
        policy = {"policy": augment} if isinstance(augment, str) else dict(augment)
        config = _config(
            "folder",
            {f"augment.{key}": value for key, value in policy.items()}
            | {"training.batch_size": batch_size, "training.seed": seed},
        )
        from dataclasses import replace

        contract = replace(self.contract, frames=frames or self.contract.frames) if training else self.contract
        for split in splits:
            self.manifest.split(split)  # says which there are
        source = TrainingInput(config, self.manifest, splits or self.splits, contract)
        return epochs_in_turn(source) if training else segments_in_order(source)


def build_records(
    config: str | Path | Config,
    data: str | Path,
    *,
    out: str | Path | None = None,
    overrides: Overrides = (),
    workers: int = 1,
    overwrite: bool = False,
) -> Records:
    """Builds records of raw data, as `tfmusic build-records` does, and returns them.

    Args:
        config: a task, the path of a .yaml file, or a config.
        data: folder of the raw data.
        out: the folder to write, by default records/TASK/1.0.0.
        overrides: keys of the config with their values.
        workers: processes.
        overwrite: whether records that are there already are replaced.

    Raises:
        TfmusicError: the config or the data are not valid, or `out` exists.
    """
    from tfmusic.records.build.build import build_records as build
    from tfmusic.records.build.build import default_records

    chosen = _config(config, overrides)
    place = default_records(chosen.task_name) if out is None else out
    return Records(build(chosen, Path(data), place, workers=workers, overwrite=overwrite).manifest)


def fit(
    config: str | Path | Config,
    *,
    records: str | Path | Records | None = None,
    out: str | Path | None = None,
    overrides: Overrides = (),
    resume: bool = False,
    overwrite: bool = False,
    callbacks: Sequence[Any] = (),
) -> "Run":
    """Trains a model, as `tfmusic fit` does, and returns the run.

    Args:
        config: a task, the path of a .yaml file, or a config.
        records: the records, by default records/TASK.
        out: the run folder, by default runs/TASK/MODEL-N.
        overrides: keys of the config with their values; `{"training.fold": "all"}` cross-validates.
        resume: whether to finish an interrupted run.
        overwrite: whether an existing run is replaced.
        callbacks: Keras callbacks, for trackers and tuners. `logs` has, besides the loss, the numbers of the epoch in
            metrics.jsonl, such as `validation`.

    Raises:
        TfmusicError: config and records do not go together, or `out` exists.
    """
    from tfmusic.training.fit import fit as train

    chosen = _config(config, overrides)
    place = records.path if isinstance(records, Records) else Path(records or Path("records") / chosen.task_name)
    result = train(
        chosen,
        records=place,
        run_dir=None if out is None else Path(out),
        resume=resume,
        overwrite=overwrite,
        overrides=_override_list(overrides),
        callbacks=callbacks,
    )
    return Run(result.run)


def open_run(folder: str | Path) -> "Run":
    """Returns the run of a folder that `fit` wrote; raises TfmusicError where it is none, or damaged."""
    return Run(open_run_dir(Path(folder)))


class Run:
    """A training and its results; `path` is its folder."""

    def __init__(self, run: RunDir) -> None:
        """Takes a run folder; `tfmusic.open_run` checks one."""
        self._run, self.path = run, run.path

    def __repr__(self) -> str:
        """Returns the folder, and model and task of its config."""
        return f"<Run {self.path}: {self.config.model.name} for {self.config.task_name}>"

    @cached_property
    def config(self) -> Config:
        """The complete config of the training."""
        return load_config(self._run.config)

    @property
    def history(self) -> pd.DataFrame:
        """The numbers of every epoch; empty for runs that were joined of others, such as a cross-validation."""
        return pd.DataFrame(self._run.history())

    def load(self, *, task: str | None = None) -> Model:
        """Returns the model."""
        return load(self.path, task=task)

    def evaluate(
        self, *splits: str, records: str | Path | Records | None = None, task: str | None = None
    ) -> "EvaluationReport":
        """Returns the evaluation on held-out tracks: `metrics`, `labels` and `predictions`.

        Args:
            splits: those to score; by default what the training has held out.
            records: the records, by default those of the training.
            task: which task, where the model has several.

        Raises:
            TfmusicError: splits or a task are needed, or run and records do not fit each other.
        """
        from tfmusic.core.runtime import start_tensorflow

        start_tensorflow()
        from tfmusic.evaluation.evaluate import evaluate

        if isinstance(records, Records):
            manifest = records.manifest
        else:
            manifest = Manifest.read(Path(records or self._run.read_json(self._run.records)["folder"]))
        reports = evaluate(self._run, manifest, splits=splits, task=task)
        if len(reports) > 1:
            tasks = ", ".join(report.evaluation.contract.task for report in reports)
            raise UsageError(f"{self.path}: pass task=, one of {tasks}")
        return reports[0]

    def export(self, out: str | Path | None = None, *, format: str = "saved_model", task: str | None = None) -> Path:
        """Writes the model as saved_model, onnx or litert to a new folder, by default RUN/export, and returns that.

        Raises:
            TfmusicError: the folder exists, there is no such format, or its extra is not installed.
        """
        from tfmusic.core.files import check_target
        from tfmusic.core.runtime import start_tensorflow
        from tfmusic.export.formats import FORMATS, export_run
        from tfmusic.inference.model_folder import MODEL_FILES

        if format not in FORMATS:
            raise UsageError(f"format must be one of {', '.join(FORMATS)}. Received: {format!r}")
        folder = Path(out) if out else self.path / ("export" if format == "saved_model" else f"export-{format}")
        check_target(folder, overwrite=False, marker=MODEL_FILES[format], what="exported models")
        start_tensorflow()
        export_run(self._run, folder, format, task)
        return folder


def _config(config: str | Path | Config, overrides: Overrides = ()) -> Config:
    """Returns the config of a name, a path or an object, with overrides applied."""
    if isinstance(config, Config):
        if overrides:
            raise UsageError("overrides are for the name or path of a config. Received: a Config")
        return config
    return load_config(find_config(str(config)), _override_list(overrides))


def _override_list(overrides: Overrides) -> list[str]:
    if isinstance(overrides, Mapping):
        return [f"{key}={dump_value(value)}" for key, value in overrides.items()]
    return list(overrides)
