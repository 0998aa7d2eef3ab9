"""Audio files to blocks of mono samples at a given rate; memory holds one block, however long the track.

As in `librosa.load`, soundfile (libsndfile) decodes, the channels are averaged, and soxr resamples with quality HQ.
n samples at rate r become ceil(n s / r) samples at rate s.
"""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tfmusic.core.runtime import without_decoder_notes
from tfmusic.errors import DataError
from tfmusic.features.mpeg import Mp3WithCount, count_without_xing

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".oga", ".opus", ".aif", ".aiff", ".au")
AV_SUFFIXES = (".m4a", ".mp4", ".aac", ".m4b", ".wma", ".webm", ".mka")  # through the extra `av`

_CONTAINERS = frozenset(("mov", "mp4", "m4a", "aac", "asf", "matroska", "webm", "ogg", "mp3", "wav", "flac"))

MAX_HOURS = 3.0  # a few kilobytes can decode to days
_MIN_RATE_HZ = 1000
_BLOCK_VALUES = 1 << 18
_EXACT_HEADERS = ("WAV", "WAVEX", "RF64", "FLAC", "AIFF", "AU")  # formats whose header has the number of samples
_SHORT_WAV = re.compile(r"^data : (\d+) \(should be (\d+)\)", re.MULTILINE)
_UNKNOWN_BYTES = 0x7FFFF000  # a program that writes into a pipe does not know the size: it writes 0, or at least this
_MP3_SLACK = 2 * 1152  # samples that a decoder may add or remove at the ends


def is_audio(path: Path) -> bool:
    """Returns whether a file name has the suffix of an audio file."""
    return path.suffix.lower() in SUFFIXES + AV_SUFFIXES


def read_blocks(path: Path, sample_rate_hz: int) -> Iterator[np.ndarray]:
    """Yields the track as blocks of mono samples, float32 [n], full scale 1.

    Raises:
        DataError: the file is missing, damaged, truncated, empty or longer than `MAX_HOURS`, has NaN or infinite
            samples, or needs a decoder that is not installed.
    """
    return _resampled(_native_blocks(path), sample_rate_hz)


def count_samples(path: Path, sample_rate_hz: int) -> int:
    """Returns how many samples `read_blocks` yields.

    The headers of .wav, .flac, .aiff and .au have the number, and `read_blocks` checks it later. Other headers may be
    wrong: such a file is decoded, an .mp3 at about 1,000 seconds of music a second. Raises as `read_blocks`.
    """
    length = None if path.suffix.lower() in AV_SUFFIXES else _header_length(path)
    native_hz, n_samples = length or (sample_rate_hz, 0)
    if length is None:
        for native_hz, block in _native_blocks(path):  # noqa: B007 - the last one counts
            n_samples += len(block)
    return resampled_length(n_samples, native_hz, sample_rate_hz)


def resampled_length(n_samples: int, rate_hz: int, target_hz: int) -> int:
    """Returns the number of samples after resampling: n s / r, rounded up."""
    return -(-n_samples * target_hz // rate_hz)


def versions() -> dict[str, str]:
    """Returns the versions of the libraries that decode and resample."""
    import soundfile
    import soxr

    return {
        "soundfile": soundfile.__version__,
        "libsndfile": soundfile.__libsndfile_version__,
        "soxr": soxr.__version__,
    }


def _resampled(blocks: Iterator[tuple[int, np.ndarray]], target_hz: int) -> Iterator[np.ndarray]:
    """Yields resampled blocks; each one waits for its successor, because the last needs the exact length."""
    import soxr

    stream, waiting = None, np.zeros(0, np.float32)
    rate_hz, n_read, n_yielded = target_hz, 0, 0
    for rate_hz, block in blocks:
        n_read += len(block)
        if rate_hz == target_hz:
            yield block
            continue
        stream = stream or soxr.ResampleStream(rate_hz, target_hz, 1, dtype="float32", quality="HQ")
        n_yielded += len(waiting)
        yield waiting
        waiting = stream.resample_chunk(block)
    if stream is not None:  # the samples that the filter still holds; soxr's total may be off by one
        rest = np.concatenate([waiting, stream.resample_chunk(np.zeros(0, np.float32), last=True)])
        n_missing = resampled_length(n_read, rate_hz, target_hz) - n_yielded
        yield np.pad(rest[:n_missing], (0, max(n_missing - len(rest), 0)))


def _native_blocks(path: Path) -> Iterator[tuple[int, np.ndarray]]:
    """Yields the rate and the mono samples of every block of a file, checked."""
    n_samples, first_hz = 0, 0
    decode = _decode_av if path.suffix.lower() in AV_SUFFIXES else _decode_soundfile
    for rate_hz, block in decode(path):
        n_samples, first_hz = n_samples + len(block), first_hz or rate_hz
        if rate_hz != first_hz:
            raise DataError(f"{path}: the sample rate must not change. Received: {first_hz} Hz, then {rate_hz} Hz")
        _check_length(path, n_samples, rate_hz)
        if not np.isfinite(block).all():
            raise DataError(f"{path}: samples must be finite. Received: NaN or infinity")
        yield rate_hz, np.ascontiguousarray(block, np.float32)
    if n_samples == 0:
        raise DataError(f"{path}: must contain audio. Received: no samples")


def _check_length(path: Path, n_samples: int, rate_hz: int) -> None:
    if rate_hz < _MIN_RATE_HZ:
        raise DataError(f"{path}: the sample rate must be at least {_MIN_RATE_HZ} Hz. Received: {rate_hz}")
    if n_samples > MAX_HOURS * 3600 * rate_hz:
        raise DataError(f"{path}: must be at most {MAX_HOURS:g} hours long. Received: more; split the file")


def _decode_soundfile(path: Path) -> Iterator[tuple[int, np.ndarray]]:
    import soundfile

    with _open(path) as (file, is_exact):
        expected, n_read = _expected_length(file, path) if is_exact else None, 0
        if expected is not None:
            _check_length(path, expected, file.samplerate)
        frames = max(_BLOCK_VALUES // file.channels, 1)
        while True:
            try:
                with without_decoder_notes():
                    block = file.read(frames, dtype="float32", always_2d=True)
            except soundfile.LibsndfileError as error:
                raise _damaged(path, error) from error
            if len(block) == 0:
                break
            n_read += len(block)
            yield file.samplerate, _mix(block)
        slack = _MP3_SLACK if file.format == "MP3" else 0
        if expected is not None and n_read < expected - slack:
            raise DataError(f"{path}: truncated: its header says {expected:,} samples. Received: {n_read:,}")


def _mix(block: np.ndarray) -> np.ndarray:
    """Returns the mean of the channels of [n, channels]; `mean` over so short an axis takes seven times as long."""
    total = block[:, 0].copy()
    for channel in range(1, block.shape[1]):
        total += block[:, channel]
    return np.asarray(total / np.float32(block.shape[1]))


@contextmanager
def _open(path: Path) -> Iterator[tuple[Any, bool]]:
    """Opens an audio file; yields it, and whether its header is known to have its length."""
    import soundfile

    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: must contain audio. Received: an empty file")
    with ExitStack() as stack:
        try:
            with without_decoder_notes():
                file = stack.enter_context(soundfile.SoundFile(path))
            uncounted = count_without_xing(path) if file.format == "MP3" else 0
            if file.frames < uncounted - _MP3_SLACK:
                with without_decoder_notes():
                    file = stack.enter_context(soundfile.SoundFile(stack.enter_context(Mp3WithCount(path))))
        except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: a suffix of headerless audio
            raise _damaged(path, error) from error
        yield file, file.format in _EXACT_HEADERS or (file.format == "MP3" and not uncounted)


def _damaged(path: Path, error: Exception) -> DataError:
    # soundfile repeats the path, and libsndfile says that a file which mpg123 cannot open does not exist.
    reason = str(error).splitlines()[0].rpartition(": ")[2] if str(error) else type(error).__name__
    reason = "the decoder found no audio" if reason.startswith("File does not exist") else reason
    return DataError(f"{path}: must be a complete audio file. Received: {reason}")


def _expected_length(file: Any, path: Path) -> int | None:
    """Returns the number of samples by the header, or None if the header leaves it open."""
    if file.format in ("WAV", "WAVEX"):
        short = _SHORT_WAV.search(file.extra_info)
        if short and int(short[2]) < int(short[1]) < _UNKNOWN_BYTES:
            raise DataError(f"{path}: truncated: its header says {short[1]} bytes of audio. Received: {short[2]}")
    return int(file.frames) if 0 < file.frames < 1 << 48 else None


def _header_length(path: Path) -> tuple[int, int] | None:
    """Returns rate and number of samples by the header, or None if the format's header cannot be trusted."""
    with _open(path) as (file, _):
        expected = _expected_length(file, path) if file.format in _EXACT_HEADERS else None
        if expected is None:
            return None
        _check_length(path, expected, file.samplerate)
        return file.samplerate, expected


def _decode_av(path: Path) -> Iterator[tuple[int, np.ndarray]]:
    try:
        import av
    except ImportError as error:
        raise DataError(f"{path}: {path.suffix} needs the extra av: pip install -e '.[av]'") from error
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        with av.open(str(path), container_options={"protocol_whitelist": "file"}) as container:
            if not _CONTAINERS.intersection(container.format.name.split(",")):  # a playlist, for example
                raise DataError(f"{path}: must be an audio file. Received: {container.format.name}")
            if not container.streams.audio:
                raise DataError(f"{path}: must contain audio. Received: no audio stream")
            planar = av.AudioResampler(format="fltp")  # the same rate and channels, one plane each
            for frame in container.decode(audio=0):
                for part in planar.resample(frame):
                    yield part.sample_rate, part.to_ndarray().mean(axis=0)
    except av.FFmpegError as error:
        raise DataError(
            f"{path}: must be a complete audio file. Received: {error.strerror or type(error).__name__}"
        ) from error
