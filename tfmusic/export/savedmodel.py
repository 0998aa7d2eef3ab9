"""The whole-track module in TensorFlow: linear power in, track scores out; what `export` saves.

It repeats in the graph what `predict` does in numpy: the contract's scale and table, the same windows, the model, the
two steps of calibration and the aggregator. Tests hold both to 1e-5 of each other.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from tfmusic.core.contract import Contract
from tfmusic.core.windows import Segments, even_places, priority
from tfmusic.errors import RunError
from tfmusic.export.waveform import feature_fn
from tfmusic.inference.predictor import WindowPredictor
from tfmusic.models.surgery import fuse_batch_norm
from tfmusic.scoring.track_scorer import TrackScorer

WINDOWS_PER_CALL = 32  # a power of two; bounds memory: an hour of music has more than a thousand windows

_EPSILON = 1e-7


class TrackModel(tf.Module):
    """Predicts one track: `module(mel)` with mel [n_bins, n_frames], linear power.

    [1, n_bins, n_frames] is taken for what a file has: power too, unless the feature has a `log10_factor`.

    A model with metadata takes `module(mel, tokens)` as well, with tokens such as "genres=jazz", string [n].

    Returns a dict of `track_scores` [n_labels], `window_scores` [n_windows, n_labels] and `window_starts`
    [n_windows], frames.
    """

    def __init__(self, model: keras.Model, contract: Contract, scorer: TrackScorer) -> None:
        super().__init__()
        self._model, self._contract, self._scorer = (lambda x: model(x, training=False)), contract, scorer
        # The variables alone are tracked: the saved graph then needs no Keras to load.
        variables = model.variables  # tf.Variables in Keras 2, around them in Keras 3
        self._weights = [item if isinstance(item, tf.Variable) else item.value for item in variables]
        self._aggregate: Callable[[tf.Tensor], tf.Tensor] = _aggregators(scorer)[scorer.aggregator]
        self._track_shift = scorer.track_shifts.get(scorer.aggregator, 0.0)
        self._scale = contract.scale
        self._table = tf.constant(contract.scale.table()) if contract.dtype == "uint8" else None
        self._feature_fn = feature_fn(contract.feature)

    @property
    def takes_waveforms(self) -> bool:
        """Whether the graph can compute the feature of a waveform."""
        return self._feature_fn is not None

    @tf.function  # type: ignore[untyped-decorator]
    def __call__(self, mel: tf.Tensor, tokens: tf.Tensor | None = None) -> dict[str, tf.Tensor]:
        """Returns the prediction for one track."""
        if mel.shape.rank == 3:
            factor = self._contract.feature.log10_factor
            mel = mel[0] if factor is None else tf.pow(10.0, mel[0] / factor)
        codes = self._encode(mel)
        windows, starts = self._windows(codes)
        logits = self._logits(codes, windows, self._metadata(tokens)) - self._scorer.window_shift
        scores = self._aggregate(logits)
        if self._track_shift:
            clipped = tf.clip_by_value(scores, _EPSILON, 1 - _EPSILON)
            scores = tf.sigmoid(tf.math.log(clipped) - tf.math.log1p(-clipped) - self._track_shift)
        return {
            "track_scores": tf.cast(scores, tf.float32),
            "window_scores": tf.cast(_to_scores(logits, self._scorer.kind), tf.float32),
            "window_starts": starts,
        }

    @tf.function  # type: ignore[untyped-decorator]
    def predict_batch(
        self, mel: tf.Tensor, n_frames: tf.Tensor, tokens: tf.Tensor | None = None
    ) -> dict[str, tf.Tensor]:
        """Returns `track_scores` [n_tracks, n_labels] of tracks of any lengths, each predicted as if it came alone.

        Args:
            mel: linear power [n_tracks, n_bins, most_frames], padded with anything at the end of shorter tracks.
            n_frames: how many frames of each track are music, int32 [n_tracks], 1 or more.
            tokens: metadata tokens, string [n_tracks, most_tokens], padded with empty strings.
        """
        rule = "n_frames must be 1 to the frames of mel, one for each track"
        return self._each(mel, n_frames, tokens, self, rule)

    def _each(
        self, tracks: tf.Tensor, lengths: tf.Tensor, tokens: tf.Tensor | None, predict_fn: Callable[..., Any], rule: str
    ) -> dict[str, tf.Tensor]:
        """Returns the scores of tracks [n_tracks, ..., longest], one after the other; `rule` is that of the lengths."""
        fits = tf.reduce_all((lengths >= 1) & (lengths <= tf.shape(tracks)[-1]))
        same = tf.equal(tf.shape(lengths)[0], tf.shape(tracks)[0])
        with tf.control_dependencies([tf.debugging.Assert(fits & same, [rule])]):
            places = tf.range(tf.shape(tracks)[0])

        def one(place: tf.Tensor) -> tf.Tensor:
            track_tokens = None if tokens is None else tokens[place]
            outputs: dict[str, tf.Tensor] = predict_fn(tracks[place, ..., : lengths[place]], track_tokens)
            return outputs["track_scores"]

        scores = tf.map_fn(one, places, fn_output_signature=tf.TensorSpec([len(self._contract.labels)], tf.float32))
        return {"track_scores": scores}

    @tf.function  # type: ignore[untyped-decorator]
    def predict_waveform(self, audio: tf.Tensor, tokens: tf.Tensor | None = None) -> dict[str, tf.Tensor]:
        """Returns the prediction for one track from its mono waveform [n_samples], float32, at the feature's rate."""
        shortest = self._contract.feature.n_fft or 1
        usable = tf.reduce_all(tf.math.is_finite(audio)) & (tf.size(audio) >= shortest)
        rule = f"audio must be finite samples at {self._contract.feature.sample_rate_hz} Hz, {shortest} or more"
        with tf.control_dependencies([tf.debugging.Assert(usable, [rule])]):
            audio = tf.identity(audio)
        assert self._feature_fn is not None  # the caller asks `takes_waveforms`
        prediction: dict[str, tf.Tensor] = self(self._feature_fn(audio), tokens)
        return prediction

    @tf.function  # type: ignore[untyped-decorator]
    def predict_waveforms(
        self, audio: tf.Tensor, n_samples: tf.Tensor, tokens: tf.Tensor | None = None
    ) -> dict[str, tf.Tensor]:
        """Returns `track_scores` [n_tracks, n_labels] of waveforms [n_tracks, most_samples]; see `predict_batch`."""
        rule = "n_samples must be 1 to the samples of audio, one for each track"
        return self._each(audio, n_samples, tokens, self.predict_waveform, rule)

    @tf.function(input_signature=[], autograph=False)  # type: ignore[untyped-decorator]
    def info(self) -> dict[str, tf.Tensor]:
        """Returns what the input must be: sample rate, FFT window, hop and bins, int32; and the names of the labels."""
        feature, labels = self._contract.feature, list(self._contract.labels)
        values = feature.parameters() | {"feature": feature.name, "labels": labels}
        return {name: tf.constant(value) for name, value in values.items()}

    @tf.function(input_signature=[])  # type: ignore[untyped-decorator]
    def labels(self) -> tf.Tensor:
        """Returns the names of the labels in the order of the scores, string [n_labels]."""
        return tf.constant(self._contract.labels)

    def _encode(self, mel: tf.Tensor) -> tf.Tensor:
        """Returns the stored codes [n_frames, n_bins] of linear power [n_bins, n_frames]."""
        is_power = self._scale.name != "identity"
        fine = tf.math.is_finite(mel) & (mel >= 0) if is_power else tf.math.is_finite(mel)
        usable = tf.reduce_all(fine) & (tf.shape(mel)[1] > 0)
        rule = f"{'mel must be finite power, 0 or more,' if is_power else 'embeddings must be finite'}"
        rule += " and at least one frame long"
        with tf.control_dependencies([tf.debugging.Assert(usable, [rule])]):
            mel = tf.transpose(mel)
        if self._table is not None:
            upper_half = tf.bitwise.right_shift(tf.bitcast(mel, tf.uint32), tf.constant(16, tf.uint32))
            return tf.gather(self._table, tf.cast(upper_half, tf.int32))
        scaled = tf.clip_by_value(_curve(self._scale.name, mel), self._scale.low, self._scale.high)
        return tf.cast(scaled, self._contract.dtype)

    def _windows(self, codes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns frame indices [n_windows, frames] and first frames [n_windows], as `core.windows` has them."""
        frames, hop, segments = self._contract.frames, self._contract.hop_frames, self._contract.segments
        n_frames = tf.shape(codes)[0]
        stretches = _stretches(segments, n_frames) if segments else (tf.zeros(1, tf.int32), n_frames[None])
        starts = _starts(*stretches, frames=frames, hop_frames=hop)
        # The check above reports a track without frames; this division does not wait for it.
        return (starts[:, None] + tf.range(frames)[None, :]) % tf.maximum(n_frames, 1), starts

    def _metadata(self, tokens: tf.Tensor | None) -> list[tf.Tensor]:
        """Returns the metadata input [1, n_tokens] as `Contract.encode_metadata` makes it; nothing without metadata."""
        vocabulary = self._contract.metadata
        if not vocabulary:
            return []
        if tokens is None:
            return [tf.zeros([1, len(vocabulary)])]
        rare = tf.strings.regex_replace(tokens, "=.*", "=?")
        is_known = tf.reduce_any(tokens[:, None] == tf.constant(vocabulary)[None, :], axis=1)
        counted = tf.where(is_known, tokens, rare)
        return [
            tf.cast(tf.reduce_any(counted[:, None] == tf.constant(vocabulary)[None, :], axis=0), tf.float32)[None, :]
        ]

    def _logits(self, codes: tf.Tensor, windows: tf.Tensor, metadata: list[tf.Tensor]) -> tf.Tensor:
        """Returns logits [n_windows, n_labels], float64, some windows at a time.

        A batch holds 32 windows, the last ones the largest power of two that fits: TensorFlow prepares a network anew
        for every new batch size, which costs as much as a hundred windows, and tracks come in all lengths.
        """
        n_windows = tf.shape(windows)[0]
        parts = tf.TensorArray(tf.float32, size=0, dynamic_size=True, infer_shape=False)

        def body(begin: tf.Tensor, parts: tf.TensorArray) -> tuple[tf.Tensor, tf.TensorArray]:
            frames = windows[begin : begin + _largest_batch(n_windows - begin)]
            batch = tf.ensure_shape(tf.gather(codes, frames), [None, self._contract.frames, self._contract.n_bins])
            repeated = [tf.repeat(row, tf.shape(batch)[0], axis=0) for row in metadata]
            logits = self._model([batch, *repeated] if repeated else batch)  # type: ignore[no-untyped-call]
            return begin + tf.shape(batch)[0], parts.write(parts.size(), logits)

        _, parts = tf.while_loop(lambda begin, _: begin < n_windows, body, (0, parts), parallel_iterations=1)
        logits = tf.ensure_shape(parts.concat(), [None, len(self._contract.labels)])
        return tf.cast(logits, tf.float64)


def _starts(begins: tf.Tensor, ends: tf.Tensor, *, frames: int, hop_frames: int) -> tf.Tensor:
    """Returns the first frames of the windows of stretches, as `core.windows.segment_starts`, one after another."""
    last = tf.maximum(ends - begins - frames, 0)
    counts = 1 + (last + hop_frames - 1) // hop_frames
    place = tf.range(tf.reduce_sum(counts)) - tf.repeat(tf.cumsum(counts, exclusive=True), counts)
    return tf.repeat(begins, counts) + tf.minimum(place * hop_frames, tf.repeat(last, counts))


def _stretches(segments: Segments, n_frames: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the beginnings and ends of what the chosen segments cover, as `Segments.stretches`."""
    sizes = {"frames": segments.frames, "hop_frames": segments.hop_frames}
    starts = _starts(tf.zeros(1, tf.int32), n_frames[None], **sizes)
    n = tf.size(starts, tf.int64)
    count = tf.minimum(n, segments.count)
    places = tf.range(count)
    if segments.choice == "random":
        places = tf.sort(tf.argsort(priority(tf.range(n), n, segments.seed))[:count])
    elif segments.choice == "even":
        places = tf.cond(n > count, lambda: even_places(places, n, segments.count), lambda: places)
    starts = tf.gather(starts, places)
    is_apart = starts[1:] > starts[:-1] + segments.frames
    begins = tf.boolean_mask(starts, tf.concat([[True], is_apart], 0))
    ends = tf.boolean_mask(starts, tf.concat([is_apart, [True]], 0)) + segments.frames
    return begins, tf.minimum(ends, n_frames)


def _largest_batch(n_left: tf.Tensor) -> tf.Tensor:
    """Returns the largest of 1, 2, 4, ... `WINDOWS_PER_CALL` that is at most the windows left."""
    sizes = tf.constant([1 << i for i in range(WINDOWS_PER_CALL.bit_length())])
    return tf.reduce_max(tf.where(sizes <= n_left, sizes, 1))


def _curve(name: str, power: tf.Tensor) -> tf.Tensor:
    if name == "identity":
        return power
    if name == "db":
        return 10.0 / math.log(10.0) * tf.math.log(power)
    factor = {"log10_1p10": 10.0, "log10_1p10000": 10000.0}[name]
    return tf.math.log(1.0 + factor * power) / math.log(10.0)


def _to_scores(logits: tf.Tensor, kind: str) -> tf.Tensor:
    return tf.nn.softmax(logits) if kind == "single" else tf.sigmoid(logits)


def _aggregators(scorer: TrackScorer) -> dict[str, Callable[[tf.Tensor], tf.Tensor]]:
    """Returns the aggregators of `scoring.aggregate` on logits [n_windows, n_labels], float64, as graph functions."""
    kind = scorer.kind

    def median(logits: tf.Tensor) -> tf.Tensor:
        ordered, n = tf.sort(_to_scores(logits, kind), axis=0), tf.shape(logits)[0]
        return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2

    def vote(logits: tf.Tensor) -> tf.Tensor:
        scores = _to_scores(logits, kind)
        best = tf.one_hot(tf.argmax(scores, axis=1), tf.shape(scores)[1], dtype=tf.float64)
        chosen = best if kind == "single" else tf.cast(scores >= 0.5, tf.float64)
        n = tf.cast(tf.shape(scores)[0], tf.float64)
        return (tf.reduce_sum(chosen, 0) + tf.reduce_mean(scores, 0)) / (n + 1)

    def top_k_mean(logits: tf.Tensor) -> tf.Tensor:
        k = tf.minimum(scorer.top_k, tf.shape(logits)[0])
        return tf.reduce_mean(tf.sort(_to_scores(logits, kind), axis=0, direction="DESCENDING")[:k], axis=0)

    return {
        "mean": lambda logits: tf.reduce_mean(_to_scores(logits, kind), axis=0),
        "median": median,
        "max": lambda logits: tf.reduce_max(_to_scores(logits, kind), axis=0),
        "vote": vote,
        "logit_mean": lambda logits: _to_scores(tf.reduce_mean(logits, axis=0), kind),
        "top_k_mean": top_k_mean,
    }


def signatures(module: TrackModel, contract: Contract) -> dict[str, Any]:
    """Returns the signatures of the SavedModel.

    `serving_default` takes one track [n_bins, n_frames], `file` one as a file has it, [1, n_bins, n_frames]; `batch`
    several [n_tracks, n_bins, most_frames] with their lengths `n_frames` [n_tracks]. `waveform` takes the samples of
    one track [n_samples], `waveform_batch` those of several [n_tracks, most_samples] with `n_samples` [n_tracks], where
    the graph can compute the feature. Models that read metadata have all but `file` with `tokens` as well:
    `with_metadata`, `waveform_with_metadata` and so on, [n] or [n_tracks, most_tokens]. `info` says what the input
    must be.
    """
    specs = {"serving_default": [contract.n_bins, None], "file": [1, contract.n_bins, None]}
    mels = {name: tf.TensorSpec(shape, tf.float32, name="mel") for name, shape in specs.items()}
    functions = {name: module.__call__.get_concrete_function(spec) for name, spec in mels.items()}
    several = (
        tf.TensorSpec([None, contract.n_bins, None], tf.float32, name="mel"),
        tf.TensorSpec([None], tf.int32, name="n_frames"),
    )
    functions["batch"] = module.predict_batch.get_concrete_function(*several)
    functions["info"] = module.info.get_concrete_function()
    waveform = tf.TensorSpec([None], tf.float32, name="audio")
    waveforms = tf.TensorSpec([None, None], tf.float32, name="audio"), tf.TensorSpec([None], tf.int32, name="n_samples")
    if module.takes_waveforms:
        functions["waveform"] = module.predict_waveform.get_concrete_function(waveform)
        functions["waveform_batch"] = module.predict_waveforms.get_concrete_function(*waveforms)
    if contract.metadata:
        tokens = tf.TensorSpec([None], tf.string, name="tokens")
        functions["with_metadata"] = module.__call__.get_concrete_function(mels["serving_default"], tokens)
        batch_tokens = tf.TensorSpec([None, None], tf.string, name="tokens")
        functions["batch_with_metadata"] = module.predict_batch.get_concrete_function(*several, batch_tokens)
        if module.takes_waveforms:
            functions["waveform_with_metadata"] = module.predict_waveform.get_concrete_function(waveform, tokens)
            several_waveforms = module.predict_waveforms.get_concrete_function(*waveforms, batch_tokens)
            functions["waveform_batch_with_metadata"] = several_waveforms
    return functions


def write(predictor: WindowPredictor, folder: Path) -> None:
    """Writes the model into an export folder; raises RunError where the disk refuses it."""
    module = TrackModel(fuse_batch_norm(predictor.model), predictor.contract, predictor.scorer)
    try:
        tf.saved_model.save(module, str(folder), signatures=signatures(module, predictor.contract))
    except tf.errors.OpError as error:  # the message has the reason of the system after the path
        why = error.message.rpartition("; ")[2].partition(" [Op:")[0]
        raise RunError(f"{folder.parent}: the model cannot be written there: {why}") from error
