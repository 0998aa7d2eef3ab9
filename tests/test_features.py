"""Reading, scaling and cutting spectrograms."""

import math

import numpy as np
import pytest

from tfmusic.core.scale import Encoder, Scale
from tfmusic.core.windows import segment_starts, slice_windows, tile_to
from tfmusic.errors import DataError
from tfmusic.features.npy import check_power, count_mel_frames, read_mel


def save(path, array, **options):
    np.save(path, array, **options)
    return path


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<f2"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(1, 4, 9), (4, 9)])
def test_real_floats_of_any_layout_are_read(tmp_path, dtype, order, shape):
    """Any real float dtype, byte order, memory order, with or without the leading axis."""
    mel = np.random.default_rng(0).random(shape).astype(dtype)
    read = read_mel(save(tmp_path / "x.npy", np.asarray(mel, order=order)), 4)
    assert read.dtype == np.float32
    assert read.flags.c_contiguous
    np.testing.assert_array_equal(read, mel.reshape(4, 9).astype(np.float32))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones((1, 4, 9), np.int32), "real floats .* dtype int32"),
        (np.ones((1, 4, 9), np.complex64), "dtype complex64"),
        (np.ones((1, 4, 9), bool), "dtype bool"),
        (np.ones(4, "f4"), r"shape must be \[1, 4, n_frames\]. Received: \[4\]"),
        (np.ones((2, 4, 9), "f4"), r"Received: \[2, 4, 9\]"),
        (np.ones((1, 5, 9), "f4"), r"Received: \[1, 5, 9\]"),
        (np.ones((1, 1, 4, 9), "f4"), r"Received: \[1, 1, 4, 9\]"),
        (np.ones((1, 4, 0), "f4"), "at least one frame"),
        (np.full((1, 4, 9), np.nan, "f4"), "36 NaN values, the first at bin 0, frame 0"),
        (np.full((1, 4, 9), np.inf, "f4"), "36 infinite values"),
        (np.full((1, 4, 9), -1.0, "f4"), "36 negative values"),
        (np.full((1, 4, 9), 1e300, "f8"), "36 infinite values"),
    ],
)
def test_bad_arrays(tmp_path, array, message):
    """A wrong array names file, what must hold and what was received."""
    with pytest.raises(DataError, match=message) as caught:
        read_mel(save(tmp_path / "x.npy", array), 4)
    assert str(tmp_path / "x.npy") in str(caught.value)


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[:-1],
        lambda raw: raw[:100],
        lambda raw: raw[:5],
        lambda raw: b"",
        lambda raw: b"hello, this is text",
        lambda raw: raw.replace(b"(1, 4, 9)", b"(9, 9, 9)"),
        lambda raw: raw.replace(b"'<f4'", b"'O8' "),
        lambda raw: raw.replace(b"'shape'", b"'sh(pe'"),
        lambda raw: raw.replace(b"{'descr'", b"{(descr'"),
        lambda raw: raw[:8] + b"\xff\xff" + raw[10:],
    ],
)
def test_damaged_files(tmp_path, damage):
    """A truncated or false file is refused and named, and nothing in it is run."""
    path = save(tmp_path / "x.npy", np.ones((1, 4, 9), "f4"))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"x\.npy"):
        read_mel(path, 4)


def test_pickles_are_never_loaded(tmp_path):
    """An object array would run code when unpickled."""
    path = save(tmp_path / "x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="never unpickled"):
        count_mel_frames(path, 4)


def test_missing_file_and_archive(tmp_path):
    """A missing file and an .npz are named."""
    with pytest.raises(DataError, match="no such file"):
        count_mel_frames(tmp_path / "none.npy", 4)
    np.savez(tmp_path / "x.npz", a=np.ones(3))
    with pytest.raises(DataError, match="does not begin like"):
        count_mel_frames(tmp_path / "x.npz", 4)


@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-30, 3.4e38])
def test_extreme_power_is_fine(value):
    """Silence, subnormal and huge power are power."""
    check_power(np.full((2, 3), value, np.float32), "x")


def test_negative_zero_is_zero():
    """-0.0 is no negative power."""
    mel = np.full((2, 3), -0.0, np.float32)
    check_power(mel, "x")
    assert not Encoder(Scale("db", -60, 30), "uint8").encode(mel).any()


@pytest.mark.parametrize("hop", [1, 3, 5, 10])
@pytest.mark.parametrize("n", [1, 2, 9, 10, 11, 19, 20, 21, 100, 101])
def test_law_of_segments(n, hop):
    """1 + ceil((n - frames) / hop) windows, the last ends with the track, every frame is in one."""
    starts = segment_starts(n, frames=10, hop_frames=hop)
    assert len(starts) == (1 + math.ceil((n - 10) / hop) if n > 10 else 1)
    assert list(starts) == sorted(set(starts.tolist()))
    covered = {frame for start in starts.tolist() for frame in range(start, start + 10)}
    assert set(range(n)) <= covered
    assert max(starts) == max(n - 10, 0)


def test_tiling_repeats_from_the_beginning():
    """A short track is repeated until the window is full."""
    track = np.arange(3)[:, None]
    assert tile_to(track, 7)[:, 0].tolist() == [0, 1, 2, 0, 1, 2, 0]
    windows, starts = slice_windows(track, frames=7, hop_frames=7)
    assert windows.shape == (1, 7, 1)
    assert starts.tolist() == [0]


@pytest.mark.parametrize("name", ["db", "log10_1p10", "log10_1p10000"])
def test_codes_are_the_rounded_scale(name):
    """The table agrees with direct rounding to one code, and in the middle of codes exactly."""
    rng = np.random.default_rng(0)
    mel = (10 ** rng.uniform(-8, 3.5, (16, 500))).astype(np.float32)
    scale = Scale.measure(name, [mel])
    codes = Encoder(scale, "uint8").encode(mel)
    exact = 255 * (scale.apply(mel.astype(np.float64)) - scale.low) / (scale.high - scale.low)
    error = codes.T - exact
    assert np.abs(error).max() <= 0.6  # half a code, and half a bfloat16 interval: up to .094 code of log10_1p10
    assert abs(error.mean()) < 0.03  # built at interval centres: no bias
    assert codes.flags.c_contiguous


@pytest.mark.parametrize("name", ["db", "log10_1p10", "log10_1p10000"])
def test_table_is_monotonic(name):
    """More power is never a lower code; silence is 0."""
    table = Scale(name, *((-60.0, 30.0) if name == "db" else (0.0, 6.0))).table()
    assert table[0] == 0
    assert (np.diff(table[:0x7F80].astype(int)) >= 0).all()
    assert table[0x7F7F] == 255


def test_float_storage_and_clipping():
    """float32 keeps the scaled value; cells at the ends are counted."""
    mel = np.array([[0.0, 1.0, 1e9]], np.float32)
    for dtype in ("uint8", "float16", "float32"):
        encoder = Encoder(Scale("db", -60.0, 30.0), dtype)
        cells = encoder.encode(mel)
        assert encoder.count_clipped(cells) == 2
        assert cells.dtype == dtype
    np.testing.assert_allclose(Encoder(Scale("db", -60.0, 30.0), "float32").encode(mel)[:, 0], [-60, 0, 30])


def test_range_is_measured():
    """db: up to the next whole dB, 90 dB down; the logarithms begin at 0."""
    mel = np.array([[0.5, 123.0]], np.float32)
    assert Scale.measure("db", [mel]) == Scale("db", -69.0, 21.0)
    assert Scale.measure("log10_1p10", [mel]) == Scale("log10_1p10", 0.0, 3.1)
    assert Scale.measure("db", []).high == 0.0
    assert Scale.measure("log10_1p10", [np.zeros((1, 3), np.float32)]).high == 0.1
