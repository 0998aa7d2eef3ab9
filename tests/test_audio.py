"""Sound files to samples: every format, the law of lengths, faults, flat memory."""

import os
import struct
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import soundfile

from tests.sounds import chords, write
from tfmusic.core.runtime import without_decoder_notes
from tfmusic.datasets import files
from tfmusic.errors import DataError
from tfmusic.features import audio


def read(path, rate_hz=16000):
    return np.concatenate(list(audio.read_blocks(path, rate_hz)))


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3", ".aiff", ".au"])
def test_formats(tmp_path, suffix):
    """Every format gives back the sound that was written, at its own rate."""
    sound = chords(2.0)
    decoded = read(write(tmp_path / f"x{suffix}", sound), 22050)
    assert decoded.dtype == np.float32
    assert len(decoded) == audio.count_samples(tmp_path / f"x{suffix}", 22050)
    assert abs(len(decoded) - len(sound)) <= 1152
    shorter = min(len(decoded), len(sound))
    assert np.corrcoef(decoded[:shorter], sound[:shorter])[0, 1] > (0.99 if suffix in (".ogg", ".mp3") else 0.999999)


def test_channels_are_averaged(tmp_path):
    """Mono is the mean of all channels."""
    three = np.stack([chords(1.0, seed=seed) for seed in range(3)], axis=1)
    path = write(tmp_path / "x.wav", three, subtype="FLOAT")
    np.testing.assert_allclose(read(path, 22050), three.mean(1), atol=1e-7)


@pytest.mark.parametrize("n_samples", [1, 2, 441, 44099, 44100, 44101, 300000])
@pytest.mark.parametrize("rates", [(44100, 16000), (22050, 16000), (8000, 16000), (48000, 22050), (16000, 16000)])
def test_law_of_lengths(tmp_path, n_samples, rates):
    """n samples at rate r are n s / r at rate s, rounded up; counting says the same without resampling."""
    path = write(tmp_path / "x.wav", np.random.default_rng(0).uniform(-0.5, 0.5, n_samples), rates[0])
    expected = int(np.ceil(n_samples * rates[1] / rates[0]))
    assert len(read(path, rates[1])) == audio.count_samples(path, rates[1]) == expected


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".wav", ".flac", ".mp3"])
def test_agrees_with_librosa(tmp_path, suffix):
    """Block by block we get the very samples of `librosa.load`."""
    librosa = pytest.importorskip("librosa")
    stereo = np.stack([chords(9.0, 44100, seed=seed) for seed in range(2)], axis=1)
    path = write(tmp_path / f"x{suffix}", stereo, 44100)
    expected, _ = librosa.load(path, sr=16000)
    np.testing.assert_allclose(read(path), expected, atol=1e-6)


def cut_short(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def spoil_middle(path):
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2 : len(raw) // 2 + 3000] = bytes(3000)
    path.write_bytes(bytes(raw))


FAULTS = {
    "missing": (".wav", lambda path: path.unlink(), "no such file"),
    "empty file": (".mp3", lambda path: path.write_bytes(b""), "Received: an empty file"),
    "no samples": (".wav", lambda path: soundfile.write(path, np.zeros(0), 22050), "Received: no samples"),
    "text": (".mp3", lambda path: path.write_text("hello " * 999), "must be a complete audio file"),
    "text wav": (".wav", lambda path: path.write_text("hello " * 999), "must be a complete audio file"),
    "truncated wav": (".wav", cut_short, "truncated: .*132300 bytes"),
    "truncated flac": (".flac", cut_short, "must be a complete audio file"),
    "truncated mp3": (".mp3", cut_short, "truncated: .*66,150 samples"),
    "spoilt flac": (".flac", spoil_middle, "must be a complete audio file"),
    "nan": (".wav", lambda path: write(path, np.full(999, np.nan), subtype="FLOAT"), "samples must be finite"),
    "slow": (".wav", lambda path: write(path, np.zeros(999), 100), "sample rate must be at least 1000 Hz"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults(tmp_path, fault):
    """Every fault is one line that names the file and what is wrong with it."""
    suffix, spoil, message = FAULTS[fault]
    path = write(tmp_path / f"x{suffix}", chords(3.0))
    spoil(path)
    with pytest.raises(DataError, match=message) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_wav_of_unknown_length(tmp_path):
    """A .wav that was written into a pipe, whose header leaves the size open, is read to its end."""
    path = write(tmp_path / "x.wav", chords(1.0), subtype="PCM_16")
    raw = bytearray(path.read_bytes())
    place = raw.index(b"data") + 4
    raw[place : place + 4] = struct.pack("<I", 0xFFFFFFFF)
    path.write_bytes(bytes(raw))
    assert len(read(path, 22050)) == audio.count_samples(path, 22050) == 22050


def untagged_mp3(path, bitrate_mode="VARIABLE"):
    """Writes an .mp3 of quiet then dense music whose frame count is rubbed out, so that readers guess its length."""
    sound = np.concatenate([np.zeros(22050 * 3), chords(2.0) + 0.1 * np.random.default_rng(0).standard_normal(44100)])
    write(path, sound, bitrate_mode=bitrate_mode, compression_level=0.5)
    raw = path.read_bytes()
    assert b"Xing" in raw or b"Info" in raw
    path.write_bytes(raw.replace(b"Xing", bytes(4), 1).replace(b"Info", bytes(4), 1))
    return path


def test_headers_of_mp3_are_not_believed(tmp_path):
    """Without a frame count the length is guessed from the first frame; what is counted is what can be heard: all."""
    path = untagged_mp3(tmp_path / "x.mp3")
    assert soundfile.info(path).frames < 22050 * 2
    n_samples = audio.count_samples(path, 22050)
    assert n_samples == len(read(path, 22050))
    assert abs(n_samples - 22050 * 5) < 3 * 1152
    tagged = tmp_path / "tagged.mp3"
    tagged.write_bytes(b"ID3\x04\x00\x00\x00\x00\x02\x00" + bytes(256) + path.read_bytes())
    np.testing.assert_array_equal(read(tagged, 22050), read(path, 22050))


def test_guesses_that_hold_are_left_alone(tmp_path):
    """At a constant bit rate the guess is right, and the samples are those of soundfile, from the first one on."""
    path = untagged_mp3(tmp_path / "x.mp3", "CONSTANT")
    expected, _ = soundfile.read(path, dtype="float32")
    assert abs(len(expected) - 22050 * 5) < 3 * 1152
    np.testing.assert_array_equal(read(path, 22050), expected)


def test_long_files_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    """Hours from kilobytes: refused by the header, and by what comes where there is none."""
    flac, ogg = (write(tmp_path / f"x{suffix}", np.zeros(22050 * 40)) for suffix in (".flac", ".ogg"))
    assert flac.stat().st_size < 20000
    monkeypatch.setattr(audio, "MAX_HOURS", 0.01)
    for path in (flac, ogg):
        for function in (read, lambda path: audio.count_samples(path, 16000)):
            with pytest.raises(DataError, match=r"must be at most 0.01 hours long"):
                function(path)


@pytest.mark.slow
def test_memory_is_flat(tmp_path):
    """Twenty minutes take no more memory than a block or two."""
    path = tmp_path / "x.flac"
    with soundfile.SoundFile(path, "w", 44100, 2) as file:
        for _ in range(20):
            file.write(np.zeros((44100 * 60, 2), np.float32))
    tracemalloc.start()
    try:
        assert sum(len(block) for block in audio.read_blocks(path, 16000)) == 20 * 60 * 16000
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def write_m4a(path, samples, rate_hz):
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=rate_hz, layout="mono")
        for begin in range(0, len(samples), 1024):
            frame = av.AudioFrame.from_ndarray(samples[None, begin : begin + 1024], format="fltp", layout="mono")
            frame.sample_rate, frame.pts = rate_hz, begin
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def test_other_formats_through_av(tmp_path):
    """.m4a comes through the extra `av`: the same music, mono, at the wanted rate; faults are one line."""
    sound = chords(2.0)
    path = write_m4a(tmp_path / "x.m4a", sound, 22050)
    decoded = read(path, 22050)
    assert len(decoded) == audio.count_samples(path, 22050)
    shorter = min(len(decoded), len(sound))
    assert np.corrcoef(decoded[:shorter], sound[:shorter])[0, 1] > 0.99
    assert abs(len(read(path, 16000)) - 16000 / 22050 * len(decoded)) <= 1
    (tmp_path / "y.m4a").write_bytes(b"not music" * 99)
    with pytest.raises(DataError, match=r"y.m4a: must be a complete audio file"):
        read(tmp_path / "y.m4a")
    with pytest.raises(DataError, match=r"z.m4a: no such file"):
        read(tmp_path / "z.m4a")


def test_av_is_asked_for(tmp_path, monkeypatch):
    """Without the extra, one line says what to install."""
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(DataError, match=r"x.m4a: .m4a needs the extra av: pip install -e '.\[av\]'"):
        read(tmp_path / "x.m4a")


def test_loaders_and_decoders_know_the_same_suffixes():
    """Whatever a loader takes for a track's file can be decoded."""
    assert set(files.SUFFIXES) - {".npy"} <= set(audio.SUFFIXES + audio.AV_SUFFIXES)


def test_notes_of_the_decoder_are_not_shown(tmp_path, capfd):
    """mpg123 writes notes to standard error that name no file; what others write there meanwhile is kept."""
    data = bytearray(write(tmp_path / "x.mp3", chords(3.0)).read_bytes())
    for place in range(len(data) // 3, len(data), len(data) // 9):
        data[place : place + 40] = bytes(40)
    (tmp_path / "x.mp3").write_bytes(data)
    decoded = subprocess.run(
        [sys.executable, "-c", NOISY.format(path=tmp_path / "x.mp3")], capture_output=True, text=True, check=True
    )
    assert "mpg123" in decoded.stderr + decoded.stdout or "Note" in decoded.stderr  # else this would show nothing
    capfd.readouterr()
    assert len(read(tmp_path / "x.mp3"))
    assert capfd.readouterr().err == ""
    with without_decoder_notes():
        os.write(2, b"\nNote: Trying to resync...\nan error of the system\n")
    assert capfd.readouterr().err == "an error of the system\n"


NOISY = """
import soundfile
soundfile.read("{path}")
"""
