"""Audio files to blocks of mono samples at a given rate; memory holds one block, however long the track.

As in `librosa.load`, soundfile (libsndfile) decodes, the channels are averaged, and soxr resamples with quality HQ.
n samples at rate r become ceil(n s / r) samples at rate s.
"""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from tfmusic.core.runtime import without_decoder_notes
from tfmusic.core.track import MIN_SHARE
from tfmusic.errors import DataError, printable
from tfmusic.features.containers import FOREIGN, Part, PartFile, find_parts, foreign_kind

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".oga", ".opus", ".aif", ".aiff", ".au")
AV_SUFFIXES = (".m4a", ".mp4", ".aac", ".m4b", ".wma", ".webm", ".mka")  # through the extra `av`

_CONTAINERS = ("mov", "mp4", "aac", "asf", "matroska", "webm", "ogg", "mp3", "wav", "flac", "aiff")
_TIMED_CONTAINERS = ("mov", "matroska", "asf")  # whose headers have the length
MAX_HOURS = 3.0  # a few kilobytes can decode to days
_MIN_RATE_HZ, _MAX_RATE_HZ, _MAX_CHANNELS = 1000, 384_000, 32
_MAX_VALUES = (
    MAX_HOURS * 3600 * 48_000 * 2
)  # of all channels: a small file of a high rate can hold a worker for minutes
_BLOCK_VALUES = 1 << 18
_CHUNKS = 32  # of a block: what is decoded before damage is kept
_EXACT_HEADERS = ("WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF")  # formats whose header has the number of samples
_SHORT = re.compile(r"^ *(?:data|SSND|Data Size|riff|Riff size) *: (\d+) \(should be (\d+)\)", re.MULTILINE)
_UNKNOWN_BYTES = 0x7FFFF000  # a program that writes into a pipe does not know the size: it writes 0, or at least this
_MP3_SLACK = 3 * 1152  # samples that a decoder may add or remove at the ends


_until: ContextVar[float] = ContextVar("until", default=float("inf"))


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Lets files that are decoded in the body take so many seconds; then one is given up with DataError."""
    token = _until.set(time.monotonic() + seconds)
    try:
        yield
    finally:
        _until.reset(token)


def is_audio(path: Path) -> bool:
    """Returns whether a file name has the suffix of an audio file."""
    return path.suffix.lower() in SUFFIXES + AV_SUFFIXES


def read_blocks(path: Path, sample_rate_hz: int, min_share: float = MIN_SHARE) -> Iterator[np.ndarray]:
    """Yields the track as blocks of mono samples, float32 [n], full scale 1.

    Raises:
        DataError: the file is missing, damaged, empty or longer than `MAX_HOURS`, has less than `min_share` of the
            samples that its headers state, has NaN or infinite samples, or needs a decoder that is not installed.
    """
    return resampled(_native_blocks(path, min_share), sample_rate_hz)


def count_samples(path: Path, sample_rate_hz: int, min_share: float = MIN_SHARE) -> int:
    """Returns how many samples `read_blocks` yields.

    The headers of .wav, .flac, .aiff and .au have the number, which is compared with the size of the file. Other
    headers may be wrong: such a file is decoded, an .mp3 at about 1,000 seconds of music a second. Raises as
    `read_blocks`.
    """
    parts, _ = _find_parts(path)
    lengths = [_header_length(path, part, min_share) for part in parts]
    if not lengths or None in lengths:
        lengths = [(rate_hz, len(block)) for rate_hz, block in _native_blocks(path, min_share)]
    stretches = groupby(filter(None, lengths), key=itemgetter(0))
    totals = [(rate_hz, sum(n_samples for _, n_samples in stretch)) for rate_hz, stretch in stretches]
    return sum(resampled_length(n_samples, rate_hz, sample_rate_hz) for rate_hz, n_samples in totals)


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


def resampled(blocks: Iterator[tuple[int, np.ndarray]], target_hz: int) -> Iterator[np.ndarray]:
    """Yields resampled blocks; where the rate changes, resampling begins anew."""
    for rate_hz, stretch in groupby(blocks, key=itemgetter(0)):
        same = (block for _, block in stretch)
        yield from same if rate_hz == target_hz else _resampled_stretch(same, rate_hz, target_hz)


def _resampled_stretch(blocks: Iterator[np.ndarray], rate_hz: int, target_hz: int) -> Iterator[np.ndarray]:
    """Yields resampled blocks; each one waits for its successor, because the last needs the exact length."""
    import soxr

    stream = soxr.ResampleStream(rate_hz, target_hz, 1, dtype="float32", quality="HQ")
    waiting, n_read, n_yielded = np.zeros(0, np.float32), 0, 0
    for block in blocks:
        n_read += len(block)
        n_yielded += len(waiting)
        yield waiting
        waiting = stream.resample_chunk(block)
    # The samples that the filter still holds; soxr's total may be off by one.
    rest = np.concatenate([waiting, stream.resample_chunk(np.zeros(0, np.float32), last=True)])
    n_missing = resampled_length(n_read, rate_hz, target_hz) - n_yielded
    yield np.pad(rest[:n_missing], (0, max(n_missing - len(rest), 0)))


def _native_blocks(path: Path, min_share: float = MIN_SHARE) -> Iterator[tuple[int, np.ndarray]]:
    """Yields the rate and the mono samples of every block of a file, checked."""
    seconds, until = 0.0, _until.get()
    for rate_hz, block in _decode(path, min_share):
        seconds += len(block) / rate_hz
        _check_length(path, seconds, rate_hz)
        if time.monotonic() > until:
            raise DataError(f"{path}: takes too long to decode: {seconds:.0f} s of sound in the time of the request")
        if not np.isfinite(block).all():
            raise DataError(f"{path}: samples must be finite. Received: NaN or infinity")
        yield rate_hz, np.ascontiguousarray(block, np.float32)
    if seconds == 0:
        raise DataError(f"{path}: must contain audio. Received: no samples")


def _check_length(path: Path, seconds: float, rate_hz: int, n_channels: int = 1) -> None:
    if not _MIN_RATE_HZ <= rate_hz <= _MAX_RATE_HZ:
        raise DataError(
            f"{path}: the sample rate must be {_MIN_RATE_HZ} to {_MAX_RATE_HZ} Hz. Received: {rate_hz}; resample it"
        )
    if n_channels > _MAX_CHANNELS or seconds * rate_hz * n_channels > _MAX_VALUES:
        raise DataError(
            f"{path}: must have at most {_MAX_CHANNELS} channels and the samples of {MAX_HOURS:g} hours of stereo"
            f" at 48,000 Hz. Received: {n_channels} channels of {seconds:.0f} s at {rate_hz} Hz; mix or resample it"
        )
    if seconds > MAX_HOURS * 3600:
        raise DataError(f"{path}: must be at most {MAX_HOURS:g} hours long. Received: more; split the file")


def _check_whole(path: Path, n_read: int, expected: int, rate_hz: int, min_share: float, reason: str = "") -> None:
    """Raises DataError where less than `min_share` of the samples that the headers state could be decoded."""
    if n_read < min_share * expected:
        raise DataError(
            f"{path}: truncated or damaged: the decoder stopped at {n_read / rate_hz:.2f} of {expected / rate_hz:.2f} s"
            f"{f' ({reason})' if reason else ''}. Replace the file, or lower data.min_share in the config"
        )


def _decode(path: Path, min_share: float) -> Iterator[tuple[int, np.ndarray]]:
    """Yields rate and mono samples: by libsndfile where it knows the content, else by FFmpeg, whatever the suffix."""
    parts, reason = _find_parts(path)
    if not parts:
        yield from _decode_av(path, reason, min_share)
    for part in parts:
        yield from _decode_part(path, part, min_share)


def _find_parts(path: Path) -> tuple[list[Part], str]:
    """Returns the parts that libsndfile reads, or none and the reason why it reads none."""
    import soundfile

    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: must contain audio. Received: an empty file")
    kind = foreign_kind(path)
    if kind is not None:
        return [], kind
    parts = find_parts(path)
    try:
        with _open(path, parts[0]) as file:
            return find_parts(path, file.format) if file.format == "MP3" else parts, ""
    except soundfile.LibsndfileError as error:
        return [], _reason(error)


@contextmanager
def _open(path: Path, part: Part) -> Iterator[Any]:
    """Opens a part with libsndfile."""
    import soundfile

    class Stream(soundfile.SoundFile):
        """Does not seek after every read: that would reset the decoder of an .mp3."""

        def seekable(self) -> bool:
            return False

    with PartFile(path, part) as bytes_file:
        with without_decoder_notes():
            file = Stream(bytes_file)
        with file:
            yield file


def _decode_part(path: Path, part: Part, min_share: float) -> Iterator[tuple[int, np.ndarray]]:
    with _open(path, part) as file:
        expected, n_read, reason = _expected_length(path, file, part, min_share), 0, ""
        _check_length(path, expected / file.samplerate, file.samplerate, file.channels)
        while not reason:
            block, reason = _read_block(file, expected - n_read)
            n_read += len(block)
            yield file.samplerate, block
            if not len(block):
                break
        if reason and not expected:
            raise DataError(f"{path}: must be a complete audio file. Received: {reason}")
        _check_whole(path, n_read, expected, file.samplerate, min_share, reason)


def _read_block(file: Any, n_left: int) -> tuple[np.ndarray, str]:
    """Returns the next mono samples, none at the end, and why the decoder stopped where it did before that.

    Of the `n_left` samples that are expected none is lost where bytes that are no music follow.
    """
    import soundfile

    chunks, at_once = [np.zeros(0, np.float32)], max(_BLOCK_VALUES // _CHUNKS // file.channels, 1)
    try:
        with without_decoder_notes():
            for _ in range(_CHUNKS):
                n_frames = min(at_once, n_left) if n_left > 0 else at_once
                chunks.append(_mix(file.read(n_frames, dtype="float32", always_2d=True)))
                n_left -= n_frames
                if len(chunks[-1]) == 0:
                    break
    except soundfile.LibsndfileError as error:
        return np.concatenate(chunks), _reason(error)
    return np.concatenate(chunks), ""


def _reason(error: Exception) -> str:
    # soundfile repeats the path, and libsndfile says that a file which mpg123 cannot open does not exist.
    reason = str(error).splitlines()[0].rpartition(": ")[2] if str(error) else type(error).__name__
    return "the decoder found no audio" if reason.startswith("File does not exist") else reason


def _expected_length(path: Path, file: Any, part: Part, min_share: float) -> int:
    """Returns the number of samples by the headers, at most; 0 where they leave it open."""
    _check_last_page(path, part, min_share)
    expected = part.n_samples or (file.frames if 0 < file.frames < 1 << 48 else 0)
    if file.format == "MP3":
        return max(expected - _MP3_SLACK, 0)
    stated = _SHORT.search(file.extra_info)
    is_short = stated and 0 < int(stated[2]) < int(stated[1]) < _UNKNOWN_BYTES
    if file.subtype.startswith("MPEG"):
        if stated and is_short and int(stated[2]) < min_share * int(stated[1]):
            raise DataError(
                f"{path}: truncated: {int(stated[2]):,} of {int(stated[1]):,} bytes of music are there. Replace the"
                " file, or lower data.min_share in the config"
            )
        return max(expected - _MP3_SLACK, 0)
    if stated and is_short:
        return expected * int(stated[1]) // int(stated[2])
    return int(expected)


def _check_last_page(path: Path, part: Part, min_share: float) -> None:
    if part.is_cut and min_share > 0:
        raise DataError(
            f"{path}: truncated: the last page of the Ogg stream is missing. Replace the file, or set data.min_share=0"
            " in the config"
        )


def _header_length(path: Path, part: Part, min_share: float) -> tuple[int, int] | None:
    """Returns rate and number of samples by the header, or None where only decoding tells the number."""
    import soundfile

    with _open(path, part) as file:
        expected = _expected_length(path, file, part, min_share)
        _check_length(path, expected / file.samplerate, file.samplerate, file.channels)
        if file.subtype.startswith("MPEG"):
            return None
        if file.format in _EXACT_HEADERS and 0 < file.frames < 1 << 48:
            _check_whole(path, file.frames, expected, file.samplerate, min_share)
            return file.samplerate, file.frames
        if file.format != "FLAC" or not expected:
            return None
        try:
            file.seek(expected - 1)
            return (file.samplerate, expected) if len(file.read(2)) == 1 else None
        except soundfile.LibsndfileError:
            return None


def _mix(block: np.ndarray) -> np.ndarray:
    """Returns the mean of the channels of [n, channels]; `mean` over so short an axis takes seven times as long."""
    total = block[:, 0].copy()
    for channel in range(1, block.shape[1]):
        total += block[:, channel]
    return np.asarray(total / np.float32(block.shape[1]))


def _decode_av(path: Path, kind: str, min_share: float) -> Iterator[tuple[int, np.ndarray]]:
    """Yields rate and mono samples by FFmpeg; `kind` is what the file is, or why libsndfile does not read it."""
    is_foreign = kind in FOREIGN or path.suffix.lower() in AV_SUFFIXES
    try:
        import av
    except ImportError as error:
        if not is_foreign:
            raise DataError(f"{path}: must be a complete audio file. Received: {kind}") from error
        kind = kind if kind in FOREIGN else f"a {path.suffix} file"
        raise DataError(f"{path}: is {kind}, which needs the extra av: pip install 'tfmusic[av]'") from error
    n_read, rate_hz, expected_s, reason = 0, 1, 0.0, ""
    options = {"protocol_whitelist": "file", "format_whitelist": ",".join(_CONTAINERS)}  # no playlists
    try:
        is_text = printable(str(path)) == str(path)  # FFmpeg takes no names that are not UTF-8, but open files
        with (
            nullcontext(str(path)) if is_text else path.open("rb") as file,
            av.open(file, container_options=options, metadata_errors="replace") as container,
        ):
            if not container.streams.audio:
                raise DataError(f"{path}: must contain audio. Received: no audio stream")
            if container.format.name == "ogg":
                _check_last_page(path, find_parts(path)[-1], min_share)
            stream = container.streams.audio[0]
            if container.format.name.startswith(_TIMED_CONTAINERS):
                expected_s = _seconds(container, stream)
            for frame in _planar(container.decode(stream)):
                n_read, rate_hz = n_read + frame.samples, frame.sample_rate
                yield rate_hz, frame.to_ndarray().mean(axis=0)
    except (av.FFmpegError, ArithmeticError, LookupError, OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
    if reason and not n_read:
        raise DataError(f"{path}: must be a complete audio file. Received: {reason if is_foreign else kind}")
    expected = int(expected_s * rate_hz) - _MP3_SLACK
    _check_whole(path, n_read, max(expected, n_read + 1 if reason else 0), rate_hz, min_share, reason)


def _seconds(container: Any, stream: Any) -> float:
    """Returns the length of a stream by the header of its container, 0 where it leaves it open."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    return (container.duration or 0) / 1e6 if len(container.streams) == 1 else 0.0


def _planar(frames: Iterator[Any]) -> Iterator[Any]:
    """Yields frames as floats, one plane a channel, at their own rate, which may change."""
    import av

    known, resampler = None, av.AudioResampler(format="fltp")
    for frame in frames:
        kind = frame.format.name, frame.layout.name, frame.sample_rate
        if kind != known:
            known, resampler = kind, av.AudioResampler(format="fltp")
        yield from resampler.resample(frame)
