"""Sound files to blocks of mono samples at the wanted rate; memory holds a block, whatever the length of the music.

soundfile (libsndfile) decodes, the channels are averaged, soxr resamples at its quality HQ, as `librosa.load` does.
The law of lengths: n samples at rate r are ceil(n s / r) at rate s.
"""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tfmusic.core.runtime import without_decoder_notes
from tfmusic.errors import DataError
from tfmusic.features.mpeg import CountedMpeg, count_uncounted

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".oga", ".opus", ".aif", ".aiff", ".au")
AV_SUFFIXES = (".m4a", ".mp4", ".aac", ".m4b", ".wma", ".webm", ".mka")  # through the extra `av`

_CONTAINERS = frozenset(("mov", "mp4", "m4a", "aac", "asf", "matroska", "webm", "ogg", "mp3", "wav", "flac"))

MAX_HOURS = 3.0  # a few kilobytes can decode to days
_MIN_RATE_HZ = 1000
_BLOCK_VALUES = 1 << 18
_EXACT_HEADERS = ("WAV", "WAVEX", "RF64", "FLAC", "AIFF", "AU")  # which hold the number of samples
_SHORT_WAV = re.compile(r"^data : (\d+) \(should be (\d+)\)", re.MULTILINE)
_UNKNOWN_BYTES = 0x7FFFF000  # what writes into a pipe leaves the size open: 0, or this and more
_MP3_SLACK = 2 * 1152  # samples that a decoder may add or cut at the ends


def is_audio(path: Path) -> bool:
    """Returns whether a file name is that of a sound file."""
    return path.suffix.lower() in SUFFIXES + AV_SUFFIXES


def read_blocks(path: Path, sample_rate_hz: int) -> Iterator[np.ndarray]:
    """Yields the track as blocks of mono samples, float32 [n], full scale 1.

    Raises:
        DataError: missing, corrupt, truncated or empty file, over three hours, NaN or infinite samples, or a format
            whose decoder is not installed.
    """
    return _resampled(_native_blocks(path), sample_rate_hz)


def count_samples(path: Path, sample_rate_hz: int) -> int:
    """Returns how many samples `read_blocks` yields.

    Headers of .wav, .flac, .aiff and .au hold their number, and reading them later checks it. Those of the others may
    lie: they are decoded, at some 1,000 seconds of music a second for .mp3. Raises as `read_blocks`.
    """
    known = None if path.suffix.lower() in AV_SUFFIXES else _header_length(path)
    if known is None:
        rate_hz, n_samples = sample_rate_hz, 0
        for found_hz, block in _native_blocks(path):
            rate_hz, n_samples = found_hz, n_samples + len(block)
        known = rate_hz, n_samples
    return resampled_length(known[1], known[0], sample_rate_hz)


def resampled_length(n_samples: int, rate_hz: int, wanted_hz: int) -> int:
    """Returns the number of samples after resampling: n s / r, rounded up."""
    return -(-n_samples * wanted_hz // rate_hz)


def versions() -> dict[str, str]:
    """Returns the versions of the libraries that decode and resample."""
    import soundfile
    import soxr

    found = {"soundfile": soundfile.__version__, "libsndfile": soundfile.__libsndfile_version__}
    return found | {"soxr": soxr.__version__}


def _resampled(blocks: Iterator[tuple[int, np.ndarray]], wanted_hz: int) -> Iterator[np.ndarray]:
    import soxr

    stream, waiting = None, np.zeros(0, np.float32)
    rate_hz, n_read, n_given = wanted_hz, 0, 0
    for rate_hz, block in blocks:
        n_read += len(block)
        if rate_hz == wanted_hz:
            yield block
            continue
        stream = stream or soxr.ResampleStream(rate_hz, wanted_hz, 1, dtype="float32", quality="HQ")
        n_given += len(waiting)
        yield waiting
        waiting = stream.resample_chunk(block)
    if stream is not None:  # what the filter still holds; its length may miss the law by one
        rest = np.concatenate([waiting, stream.resample_chunk(np.zeros(0, np.float32), last=True)])
        n_missing = resampled_length(n_read, rate_hz, wanted_hz) - n_given
        yield np.pad(rest[:n_missing], (0, max(n_missing - len(rest), 0)))


def _native_blocks(path: Path) -> Iterator[tuple[int, np.ndarray]]:
    """Yields rate and mono samples of the blocks of a file, checked."""
    n_samples, first_hz = 0, 0
    decode = _decode_av if path.suffix.lower() in AV_SUFFIXES else _decode_soundfile
    for rate_hz, block in decode(path):
        n_samples, first_hz = n_samples + len(block), first_hz or rate_hz
        if rate_hz != first_hz:
            raise DataError(f"{path}: must keep one sample rate. Received: {first_hz} Hz, then {rate_hz} Hz")
        _check_length(path, n_samples, rate_hz)
        if not np.isfinite(block).all():
            raise DataError(f"{path}: samples must be finite. Received: NaN or infinite ones")
        yield rate_hz, np.ascontiguousarray(block, np.float32)
    if n_samples == 0:
        raise DataError(f"{path}: must hold sound. Received: no samples")


def _check_length(path: Path, n_samples: int, rate_hz: int) -> None:
    if rate_hz < _MIN_RATE_HZ:
        raise DataError(f"{path}: the sample rate must be at least {_MIN_RATE_HZ} Hz. Received: {rate_hz}")
    if n_samples > MAX_HOURS * 3600 * rate_hz:
        raise DataError(f"{path}: must be at most {MAX_HOURS:g} hours long; cut it into parts. Received: more")


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
            raise DataError(f"{path}: truncated: must hold {expected:,} samples by its header. Received: {n_read:,}")


def _mix(block: np.ndarray) -> np.ndarray:
    """Returns the mean of all channels of [n, channels]; `mean` over so short an axis takes seven times as long."""
    total = block[:, 0].copy()
    for channel in range(1, block.shape[1]):
        total += block[:, channel]
    return np.asarray(total / np.float32(block.shape[1]))


@contextmanager
def _open(path: Path) -> Iterator[tuple[Any, bool]]:
    """Opens a sound file; yields it, and whether its header is known to hold its length."""
    import soundfile

    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: must hold sound. Received: an empty file")
    with ExitStack() as opened:
        try:
            with without_decoder_notes():
                file = opened.enter_context(soundfile.SoundFile(path))
            uncounted = count_uncounted(path) if file.format == "MP3" else 0
            if file.frames < uncounted - _MP3_SLACK:
                with without_decoder_notes():
                    file = opened.enter_context(soundfile.SoundFile(opened.enter_context(CountedMpeg(path))))
        except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: a suffix that stands for headerless audio
            raise _damaged(path, error) from error
        yield file, file.format in _EXACT_HEADERS or (file.format == "MP3" and not uncounted)


def _damaged(path: Path, error: Exception) -> DataError:
    # soundfile repeats the path, and libsndfile calls what mpg123 cannot open missing.
    why = str(error).splitlines()[0].rpartition(": ")[2] if str(error) else type(error).__name__
    why = "the decoder finds no music" if why.startswith("File does not exist") else why
    return DataError(f"{path}: must be a whole sound file: {why}")


def _expected_length(file: Any, path: Path) -> int | None:
    """Returns the number of samples that the header promises, or None where it leaves that open."""
    if file.format in ("WAV", "WAVEX"):
        short = _SHORT_WAV.search(file.extra_info)
        if short and int(short[2]) < int(short[1]) < _UNKNOWN_BYTES:
            raise DataError(f"{path}: truncated: must hold {short[1]} bytes of sound. Received: {short[2]}")
    return int(file.frames) if 0 < file.frames < 1 << 48 else None


def _header_length(path: Path) -> tuple[int, int] | None:
    """Returns rate and number of samples where the header is to be trusted."""
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
            if not _CONTAINERS.intersection(container.format.name.split(",")):  # a list of other files, say
                raise DataError(f"{path}: must be a sound file. Received: {container.format.name}")
            if not container.streams.audio:
                raise DataError(f"{path}: must hold sound. Received: no audio stream")
            planar = av.AudioResampler(format="fltp")  # the same rate and channels, one plane each
            for frame in container.decode(audio=0):
                for part in planar.resample(frame):
                    yield part.sample_rate, part.to_ndarray().mean(axis=0)
    except av.FFmpegError as error:
        raise DataError(f"{path}: must be a whole sound file: {error.strerror or type(error).__name__}") from error
