"""Embeddings of tracks, from a trained model or from the musicnn weights: what stands before the last layer."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfmusic.core.contract import Contract
from tfmusic.core.feature import EMBEDDING, Feature
from tfmusic.core.rundir import RunDir
from tfmusic.core.scale import Encoder
from tfmusic.core.track import Track
from tfmusic.core.windows import TrackCodes, batch_windows, outputs_by_track, segment_starts
from tfmusic.errors import UsageError
from tfmusic.features.embeddings import EmbeddingsWriter
from tfmusic.features.read import read_input
from tfmusic.inference.predict import TrackReader, feature_fn
from tfmusic.inference.predictor import BATCH_SIZES, load_run
from tfmusic.models import build_model, for_prediction
from tfmusic.models.musicnn import FEATURE as MUSICNN
from tfmusic.models.musicnn import FRAMES
from tfmusic.pretrained.sources import trained_on


@dataclass(frozen=True)
class Embedder:
    """A network that embeds windows of a track.

    Attributes:
        feature: what its embeddings are, as records and contracts name them.
        track_ids: the tracks that have trained it, where they are known.
        read_fn: a track to linear power [n_bins, n_frames].
        encode_fn: linear power to the network's input, [n_frames, n_bins].
        embed_fn: windows [batch, frames, n_bins] to embeddings [batch, n_dims].
        frames: length of a window.
        hop_frames: distance of the windows.
        frames_per_s: frames in a second of music.
    """

    feature: Feature
    track_ids: frozenset[str]
    read_fn: Callable[[Track], np.ndarray]
    encode_fn: Callable[[np.ndarray], np.ndarray]
    embed_fn: Callable[[np.ndarray], Any]
    frames: int
    hop_frames: int
    frames_per_s: float

    def embed_power(self, power: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the embeddings of a track [n_windows, n_dims], and the first frames of its windows [n_windows]."""
        sizes: dict[str, Any] = {"frames": self.frames, "hop_frames": self.hop_frames}
        codes = self.encode_fn(power)
        batches = batch_windows([(0, codes, None)], **sizes, batch_sizes=BATCH_SIZES)
        _, vectors = next(outputs_by_track(batches, self.embed_fn))
        return vectors, segment_starts(len(codes), **sizes)


def run_embedder(run: RunDir) -> Embedder:
    """Returns the embedder of a trained model: the input of its last layer.

    Raises:
        RunError: the run has no model, contract or calibration.
        UsageError: the run is an ensemble, which has as many last layers as members.
    """
    if members := run.members():
        names = ", ".join(member.run for member in members.values())
        raise UsageError(f"{run.path}: is an ensemble; embed with one of its members: {names}")
    contract = Contract.load(run.contract)
    loaded = load_run(run, next(iter(contract.parts())))
    heads = [layer for layer in loaded.model.layers if layer.name.startswith("logits")]
    model = for_prediction(keras.Model(loaded.model.inputs[0], heads[-1].input))
    feature = Feature(
        name=EMBEDDING,
        source=f"{contract.task} {_digest(model)}",
        n_bins=int(model.output.shape[-1]),
        sample_rate_hz=contract.feature.sample_rate_hz,
        hop_length=contract.hop_frames * contract.feature.hop_length,
    )
    return Embedder(
        feature,
        trained_on(run),
        feature_fn(contract),
        Encoder(contract.scale, contract.dtype).encode,
        model.predict_on_batch,
        contract.frames,
        contract.hop_frames,
        contract.frames_per_s,
    )


def _digest(model: keras.Model) -> str:
    """Returns what names the weights of a model; the file that they are kept in has dates as well."""
    digest = hashlib.sha256()
    for weight in model.get_weights():
        digest.update(np.ascontiguousarray(weight).tobytes())
    return digest.hexdigest()[:16]


def musicnn_embedder(weights: Path, network: str) -> Embedder:
    """Returns the embedder of musicnn's weights: 753 maxima over a window of 3 s, then 753 means.

    Sound becomes the authors' spectrograms. Those of 96 bins must be the authors' (16 kHz, n_fft 512, hop 256); those
    of 128 bins AI Rush's, which are mapped to them.

    Raises:
        RunError: no such weights.
    """
    from tfmusic.pretrained.musicnn import musicnn_weights
    from tfmusic.pretrained.transplant import transplant

    whole = build_model("musicnn", frames=FRAMES, n_bins=MUSICNN.n_bins, n_outputs=50, dtype="float32")
    transplant(whole, musicnn_weights(weights, network), with_head=True)
    model = for_prediction(keras.Model(whole.input, whole.get_layer("pool").output))
    feature = Feature(
        name=EMBEDDING,
        source=network,
        n_bins=int(model.output.shape[-1]),
        sample_rate_hz=MUSICNN.sample_rate_hz,
        hop_length=FRAMES * MUSICNN.hop_length,
    )
    return Embedder(
        feature,
        frozenset(),
        lambda track: read_input(track.feature_path, track.track_id, MUSICNN),
        lambda power: np.ascontiguousarray(np.log10(10000.0 * power + 1.0).T, dtype=np.float32),
        model.predict_on_batch,
        FRAMES,
        FRAMES,
        MUSICNN.frames_per_s,
    )


def embed_tracks(
    embedder: Embedder, tracks: Iterable[Track], out: Path, on_track: Callable[[], None]
) -> list[tuple[str, str]]:
    """Writes the embeddings of all windows of all tracks and returns which tracks could not be read, with reasons.

    `on_track` is called after every track.

    Raises:
        DataError: no track can be read.
    """
    reader, n_frames = TrackReader(tuple(tracks), on_track), {}

    def readable() -> Iterator[TrackCodes]:
        for row, codes in reader.read(lambda track: embedder.encode_fn(embedder.read_fn(track))):
            n_frames[row] = len(codes)
            yield row, codes, None
        reader.check_any(len(n_frames))

    frames, hop = embedder.frames, embedder.hop_frames
    batches = batch_windows(readable(), frames=frames, hop_frames=hop, batch_sizes=BATCH_SIZES)
    embeddings = outputs_by_track(batches, embedder.embed_fn)
    first = next(embeddings)  # where nothing can be read, nothing is written
    with EmbeddingsWriter(out, embedder.feature, embedder.track_ids) as writer:
        for row, vectors in chain([first], embeddings):
            starts = segment_starts(n_frames[row], frames=frames, hop_frames=hop)
            writer.add(reader.sources[row].track_id, vectors, starts / embedder.frames_per_s)
        writer.finish()
    return [(reader.sources[row].track_id, reason) for row, reason in sorted(reader.skipped.items())]
