"""Features of a waveform in the graph of a SavedModel, as `features.spectrograms` computes them in numpy.

The spectra are float64, as there: in float32 the rounding of loud bins would hide those 90 dB below them. They are
computed a block of frames at a time, so that an hour of music needs little more memory than its samples and features.
"""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tfmusic.core.feature import Feature
from tfmusic.features.filterbanks import mel_filterbank
from tfmusic.features.spectrograms import MIN_POWER, hann

_FRAMES_AT_ONCE = 1024

FeatureFn = Callable[[tf.Tensor], tf.Tensor]


def feature_fn(feature: Feature) -> FeatureFn | None:
    """Returns the function from a mono waveform [n_samples] at the feature's rate to the feature [n_bins, n_frames].

    Its argument is float32, full scale 1, at least one FFT window long. None for CQT, chroma and tempogram, which are
    not in the graph: their filters are longer than a block, and their maxima those of the whole track.
    """
    if feature.name == "raw":
        return lambda audio: _columns(audio, feature.hop_length)
    if feature.name not in ("mel", "log-mel", "stft") or feature.n_fft is None:
        return None
    filters: np.ndarray | None = None
    if feature.name != "stft":
        filters = mel_filterbank(feature.n_bins, sample_rate_hz=feature.sample_rate_hz, n_fft=feature.n_fft).T
        filters = filters.astype(np.float32)

    def compute(audio: tf.Tensor) -> tf.Tensor:
        power = _power_spectra(audio, feature, filters)
        if feature.name == "log-mel":
            power = 10.0 / np.log(10.0) * tf.math.log(tf.maximum(power, MIN_POWER))
        return tf.transpose(power)

    return compute


def _power_spectra(audio: tf.Tensor, feature: Feature, filters: np.ndarray | None) -> tf.Tensor:
    """Returns |STFT|^2 under a periodic Hann window, or its sums under filters [n_fft / 2 + 1, n_bins]; float32.

    Shape [n_frames, n_bins]; frame i is centred on sample i * hop_length, with zeros beyond both ends.
    """
    n_fft, hop = feature.n_fft or 0, feature.hop_length
    window, n_samples = tf.constant(hann(n_fft)), tf.size(audio)
    n_frames = 1 + n_samples // hop
    n_block = (_FRAMES_AT_ONCE - 1) * hop + n_fft
    parts = tf.TensorArray(tf.float32, size=0, dynamic_size=True, infer_shape=False)

    def body(begin: tf.Tensor, parts: tf.TensorArray) -> tuple[tf.Tensor, tf.TensorArray]:
        first = begin * hop - n_fft // 2
        start, stop = tf.maximum(first, 0), tf.clip_by_value(first + n_block, 0, n_samples)
        block = audio[start : tf.maximum(stop, start)]
        block = tf.pad(block, [[start - first, n_block - tf.size(block) - (start - first)]])
        n_here = tf.minimum(n_frames - begin, _FRAMES_AT_ONCE)
        frames = tf.signal.frame(block, n_fft, hop)[:n_here]
        spectra = tf.signal.rfft(tf.cast(frames, tf.float64) * window)
        # Sums of values of one sign lose nothing in float32.
        power = tf.cast(tf.square(tf.math.real(spectra)) + tf.square(tf.math.imag(spectra)), tf.float32)
        return begin + n_here, parts.write(parts.size(), power if filters is None else tf.matmul(power, filters))

    _, parts = tf.while_loop(lambda begin, _: begin < n_frames, body, (0, parts), parallel_iterations=1)
    return tf.ensure_shape(parts.concat(), [None, feature.n_bins])


def _columns(audio: tf.Tensor, length: int) -> tf.Tensor:
    """Returns the samples as columns [length, n]; zeros fill the last one."""
    n_columns = (tf.size(audio) + length - 1) // length
    return tf.transpose(tf.reshape(tf.pad(audio, [[0, n_columns * length - tf.size(audio)]]), [n_columns, length]))
