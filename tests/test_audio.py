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


def mp3_in_wav(path):
    raw = path.with_suffix(".mp3")
    music = write(raw, chords(3.0)).read_bytes()
    form = struct.pack("<HHIIHHH", 0x55, 1, 22050, 8000, 1, 0, 12) + struct.pack("<HIHHH", 1, 2, 576, 1, 0)
    chunks = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(music)) + music
    path.write_bytes(b"RIFF" + struct.pack("<I", len(chunks)) + chunks)
    return path


def spoil_middle(path):
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2 : len(raw) // 2 + 3000] = bytes(3000)
    path.write_bytes(bytes(raw))


def flip_first_bit(path):
    raw = bytearray(path.read_bytes())
    raw[0] ^= 1
    path.write_bytes(bytes(raw))


FAULTS = {
    "missing": (".wav", lambda path: path.unlink(), "no such file"),
    "empty file": (".mp3", lambda path: path.write_bytes(b""), "Received: an empty file"),
    "no samples": (".wav", lambda path: soundfile.write(path, np.zeros(0), 22050), "Received: no samples"),
    "text": (".mp3", lambda path: path.write_text("hello " * 999), "must be a complete audio file"),
    "text wav": (".wav", lambda path: path.write_text("hello " * 999), "must be a complete audio file"),
    "truncated wav": (".wav", cut_short, "truncated.* 1.50 of 3.00 s.*data.min_share"),
    "truncated flac": (".flac", cut_short, "truncated.* of 3.00 s"),
    "truncated mp3": (".mp3", cut_short, "truncated.* s.*data.min_share"),
    "truncated aiff": (".aiff", cut_short, "truncated.* 1.50 of 3.00 s"),
    "truncated au": (".au", cut_short, "truncated.* 1.50 of 3.00 s"),
    "truncated mp3 in wav": (".wav", lambda path: cut_short(mp3_in_wav(path)), "truncated: .* bytes.*data.min_share"),
    "truncated w64": (".w64", cut_short, "truncated.* of 3.00 s"),
    "truncated caf": (".caf", cut_short, "must be a complete audio file"),
    "truncated ogg": (".ogg", cut_short, "truncated: the last page"),
    "spoilt flac": (".flac", spoil_middle, "damaged: .* of 3.00 s"),
    "text au": (".au", lambda path: path.write_text("hello " * 9999), "must be a complete audio file"),
    "flipped bit": (".au", flip_first_bit, "must be a complete audio file"),
    "nan": (".wav", lambda path: write(path, np.full(999, np.nan), subtype="FLOAT"), "samples must be finite"),
    "slow": (".wav", lambda path: write(path, np.zeros(999), 100), "sample rate must be 1000 to 384000 Hz"),
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


def wav_with_size(raw, size):
    place = raw.index(b"data") + 4
    return raw[:place] + struct.pack("<I", size) + raw[place + 4 :]


def flac_with_length(raw, n_samples):
    return raw[:21] + bytes([raw[21] & 0xF0]) + struct.pack(">I", n_samples) + raw[26:]


def mp3_with_count(raw, factor):
    place = max(raw.find(b"Xing"), raw.find(b"Info")) + 8
    count = int(int.from_bytes(raw[place : place + 4], "big") * factor)
    return raw[:place] + struct.pack(">I", count) + raw[place + 4 :]


ID3 = b"ID3\x03\0\0\0\0\x04\0" + b"\xff\xfb\x90\x64" * 128  # with bytes that look like the header of a frame
TAG = b"TAG".ljust(128, b"x")

# Files of 2 s, or of several joined, whose headers say less than what is there, or nothing.
WRONG_LENGTHS = {
    "wav, 0": ("wav", lambda raw: wav_with_size(raw, 0)),
    "wav, unknown": ("wav", lambda raw: wav_with_size(raw, 0xFFFFFFFF)),
    "wav, too low": ("wav", lambda raw: wav_with_size(raw, 2000)),
    "wav, and a tag": ("wav", lambda raw: raw + TAG),
    "flac, 0": ("flac", lambda raw: flac_with_length(raw, 0)),
    "flac, too low": ("flac", lambda raw: flac_with_length(raw, 9999)),
    "flac, between tags": ("flac", lambda raw: ID3 + raw + TAG),
    "mp3, too low": ("mp3", lambda raw: mp3_with_count(raw, 0.5)),
    "mp3, 0": ("mp3", lambda raw: mp3_with_count(raw, 0)),
}


@pytest.mark.parametrize("kind", WRONG_LENGTHS)
def test_wrong_lengths_in_headers(tmp_path, kind):
    """Of a file whose header says less than what is there, or leaves the length open, every sample is read."""
    suffix, spoil = WRONG_LENGTHS[kind]
    path = write(tmp_path / f"x.{suffix}", chords(2.0))
    expected = read(path, 22050)
    path.write_bytes(spoil(path.read_bytes()))
    np.testing.assert_array_equal(read(path, 22050), expected)
    assert audio.count_samples(path, 22050) == len(expected)


JOINED = {
    "mp3": [("mp3", 1, 22050, {}), ("mp3", 1, 22050, {})],
    "mp3, to stereo": [("mp3", 1, 22050, {}), ("mp3", 2, 22050, {})],
    "mp3, other rates": [("mp3", 1, 22050, {}), ("mp3", 1, 44100, {}), ("mp3", 1, 16000, {})],
    "mp3, other bit rate": [
        ("mp3", 2, 44100, {"bitrate_mode": "CONSTANT", "compression_level": 0.1}),
        ("mp3", 2, 44100, {"bitrate_mode": "VARIABLE", "compression_level": 0.9}),
    ],
    "ogg": [("ogg", 1, 22050, {}), ("ogg", 1, 22050, {})],
    "ogg, other rate": [("ogg", 1, 22050, {}), ("ogg", 2, 48000, {})],
    "opus": [("ogg", 1, 48000, {"subtype": "OPUS"}), ("ogg", 1, 48000, {"subtype": "OPUS"})],
    "flac": [("flac", 1, 22050, {}), ("flac", 1, 22050, {})],
    "wav": [("wav", 1, 22050, {}), ("wav", 2, 22050, {})],
}


@pytest.mark.parametrize("between", [b"", TAG + ID3], ids=["", "tags"])
@pytest.mark.parametrize("kind", JOINED)
def test_joined_files(tmp_path, kind, between):
    """Files that were joined give the samples of each, one after the other, at the wanted rate."""
    if between and not kind.startswith("mp3"):
        pytest.skip("tags stand between mp3s")
    whole, expected = b"", []
    for seed, (suffix, n_channels, rate_hz, options) in enumerate(JOINED[kind]):
        sound = np.stack([chords(1.5, rate_hz, seed=seed)] * n_channels, axis=1)
        path = write(tmp_path / f"{seed}.{suffix}", sound, rate_hz, **options)
        whole += (between if whole else b"") + path.read_bytes()
        expected.append((rate_hz, read(path, rate_hz)))
    joined = tmp_path / f"joined.{suffix}"
    joined.write_bytes(whole)
    blocks = [(rate_hz, block) for rate_hz, block in audio._native_blocks(joined, 1.0) if len(block)]
    for rate_hz, sound in expected:
        n_read = 0
        while n_read < len(sound):
            block_hz, block = blocks.pop(0)
            assert block_hz == rate_hz
            np.testing.assert_array_equal(block, sound[n_read : n_read + len(block)])
            n_read += len(block)
    assert blocks == []
    n_samples = sum(-(-len(sound) * 16000 // rate_hz) for rate_hz, sound in expected)
    assert abs(len(read(joined)) - n_samples) <= len(expected)
    assert audio.count_samples(joined, 16000) == len(read(joined))


def test_a_damaged_end_is_named_with_its_seconds(tmp_path):
    """Where joined music cannot be decoded the error says how much of it could."""
    raw = write(tmp_path / "x.mp3", chords(3.0)).read_bytes()
    (tmp_path / "x.mp3").write_bytes(mp3_with_count(raw, 2))
    with pytest.raises(DataError, match=r"x.mp3: .* the decoder stopped at 3.\d\d of 5.\d\d s"):
        read(tmp_path / "x.mp3")


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".aiff", ".au", ".mp3"])
def test_a_little_may_lack_at_the_end(tmp_path, suffix):
    """A file that lacks 1 % at its end is used as far as it goes; `min_share` says how much may lack."""
    path = write(tmp_path / f"x{suffix}", chords(20.0))
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * 0.99)])
    sound = read(path, 22050)
    assert 0.98 * 20 * 22050 < len(sound) < 20 * 22050
    assert audio.count_samples(path, 22050) == len(sound)
    path.write_bytes(raw[: int(len(raw) * 0.9)])
    assert audio.count_samples(path, 22050, min_share=0.8) == sum(map(len, audio.read_blocks(path, 22050, 0.8)))
    for function in (read, lambda path: audio.count_samples(path, 16000)):
        with pytest.raises(DataError, match=r"of 20.00 s|of 19.\d\d s"):
            function(path)


def test_an_ogg_without_its_last_page_is_used_on_demand(tmp_path):
    """Nobody knows how much is missing: it is used where the config asks for no share at all."""
    path = write(tmp_path / "x.ogg", chords(20.0))
    cut_short(path)
    with pytest.raises(DataError, match=r"x.ogg: truncated: the last page .*data.min_share=0"):
        audio.count_samples(path, 22050)
    n_samples = sum(len(block) for block in audio.read_blocks(path, 22050, min_share=0.0))
    assert 5 * 22050 < n_samples == audio.count_samples(path, 22050, min_share=0.0)


@pytest.mark.parametrize("n_channels", [1, 2])
def test_blocks_of_an_mp3_join_without_clicks(tmp_path, n_channels, monkeypatch):
    """Blocks of a file of changing bit rate are the samples of one read: the decoder keeps its state between them."""
    noise = np.random.default_rng(0).standard_normal(8 * 44100) * 0.05
    sound = np.stack([chords(8.0, 44100) + noise * (np.arange(8 * 44100) % 22050 < 6000)] * n_channels, axis=1)
    path = write(tmp_path / "x.mp3", sound, 44100, bitrate_mode="VARIABLE", compression_level=0.5)
    expected, _ = soundfile.read(path, dtype="float32", always_2d=True)
    monkeypatch.setattr(audio, "_BLOCK_VALUES", 1 << 14)
    np.testing.assert_allclose(read(path, 44100), expected.mean(axis=1), atol=1e-6)


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


def encode(path, codec, container, *, rate_hz=48000, metadata=None):
    """Writes 2 s of chords in stereo through FFmpeg."""
    av = pytest.importorskip("av")
    sound = np.stack([chords(2.0, rate_hz)] * 2)
    with av.open(str(path), "w", format=container) as file:
        file.metadata.update(metadata or {})
        stream = file.add_stream(codec, rate=rate_hz, layout="stereo", bit_rate=128000)
        for begin in range(0, sound.shape[1], 1024):
            part = np.ascontiguousarray(sound[:, begin : begin + 1024])
            frame = av.AudioFrame.from_ndarray(part, format="fltp", layout="stereo")
            frame.sample_rate, frame.pts = rate_hz, begin
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


RIGHT_SUFFIX = {"mp3": ".wav", "flac": ".mp3", "ogg": ".mp3", "wav": ".flac", "aiff": ".ogg", "w64": ".wav"}


@pytest.mark.parametrize("suffix", RIGHT_SUFFIX)
def test_the_content_counts_not_the_suffix(tmp_path, suffix):
    """A file of another format than its suffix says is read as what it is."""
    path = write(tmp_path / f"x.{suffix}", chords(1.0))
    expected = read(path, 22050)
    np.testing.assert_array_equal(read(path.rename(tmp_path / f"y{RIGHT_SUFFIX[suffix]}"), 22050), expected)


@pytest.mark.parametrize(
    ("codec", "container", "name"),
    [
        ("libmp3lame", "wav", "x.wav"),
        ("flac", "ogg", "x.ogg"),
        ("aac", "mp4", "x.mp3"),
        ("aac", "adts", "x.mp3"),
        ("aac", "mp4", "x.wav"),
        ("libopus", "webm", "x.ogg"),
        ("wmav2", "asf", "x.mp3"),
        ("ac3", "wav", "x.wav"),
    ],
)
def test_unusual_files_are_read_as_what_they_are(tmp_path, codec, container, name, monkeypatch):
    """What players play is read, by FFmpeg where libsndfile cannot; without it the error says what the file is."""
    path = encode(tmp_path / name, codec, container)
    sound = read(path, 22050)
    assert len(sound) == audio.count_samples(path, 22050)
    assert abs(len(sound) - 2 * 22050) < 2 * 22050 * 0.06
    if codec == "libmp3lame":
        return
    monkeypatch.setitem(sys.modules, "av", None)
    wanted = r"complete audio file" if container == "wav" else r"is an? .* file, which needs the extra av: pip install"
    with pytest.raises(DataError, match=wanted):
        read(path)


def test_tags_of_no_encoding(tmp_path):
    """A title that is no UTF-8 is of no interest."""
    path = encode(tmp_path / "x.m4a", "aac", "mp4", metadata={"title": "cafeX"})
    raw = path.read_bytes()
    assert raw.count(b"cafeX") == 1
    path.write_bytes(raw.replace(b"cafeX", b"caf\xe9X"))
    assert len(read(path)) == audio.count_samples(path, 16000) > 31000


@pytest.mark.parametrize("content", [b"#EXTM3U\n#EXTINF:1,\nx.m4a\n", b"ffconcat version 1.0\nfile x.m4a\n"])
def test_playlists_are_not_followed(tmp_path, content):
    """A file that names another one is no audio file, whatever FFmpeg would make of it."""
    encode(tmp_path / "x.m4a", "aac", "mp4")
    (tmp_path / "list.m4a").write_bytes(content)
    with pytest.raises(DataError, match=r"list.m4a: must be a complete audio file"):
        read(tmp_path / "list.m4a")


@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_a_truncated_file_of_ffmpeg(tmp_path, container):
    """The header of the container says how long the music is."""
    path = encode(tmp_path / "x.m4a", "aac", container)
    raw = path.read_bytes()
    if container == "mp4":  # the index stands behind the music: damage in place of an early end
        middle, end = raw.index(b"mdat") + len(raw) // 3, raw.index(b"moov") - 4
        raw = raw[:middle] + bytes(end - middle) + raw[end:]
    else:
        raw = raw[: len(raw) // 2]
    path.write_bytes(raw)
    with pytest.raises(DataError, match=r"x.m4a: truncated or damaged: .* s"):
        read(path)


def test_other_formats_through_av(tmp_path):
    """.m4a comes through the extra `av`: the same music, mono, at the wanted rate; faults are one line."""
    sound = chords(2.0)
    path = encode(tmp_path / "x.m4a", "aac", "mp4", rate_hz=22050)
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
    (tmp_path / "x.m4a").write_bytes(b"not music" * 99)
    with pytest.raises(
        DataError, match=r"x.m4a: is a .m4a file, which needs the extra av: pip install 'tfmusic\[av\]'"
    ):
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


@pytest.mark.parametrize(("rate_hz", "channels"), [(655_350, 1), (8000, 40)])
def test_small_files_of_much_sound_are_refused(tmp_path, rate_hz, channels):
    """A rate or a number of channels that would hold a worker for minutes, before anything is decoded."""
    path = tmp_path / ("x.flac" if channels <= 8 else "x.wav")
    soundfile.write(path, np.zeros((rate_hz, channels), np.int16), rate_hz, subtype="PCM_16")
    for read in (audio.read_blocks, lambda *words: [audio.count_samples(*words)]):
        with pytest.raises(DataError, match=r"sample rate must be 1000 to 384000 Hz|at most 32 channels"):
            list(read(path, 16000))


def test_decoding_ends_with_its_time(tmp_path):
    """The file is given up between two blocks, and others are read as before."""
    soundfile.write(tmp_path / "x.flac", np.zeros(4_000_000, np.int16), 44100)
    with audio.time_limit(0.0), pytest.raises(DataError, match=r"x\.flac: takes too long"):
        list(audio.read_blocks(tmp_path / "x.flac", 16000))
    with audio.time_limit(60.0):
        assert sum(map(len, audio.read_blocks(tmp_path / "x.flac", 16000))) > 1_000_000


@pytest.mark.parametrize("name", ["x.wma", os.fsdecode(b"caf\xe9.wma")])
def test_a_container_that_lies_about_its_length(tmp_path, name):
    """One line for a file whose header sends the decoder to where no byte is."""
    pytest.importorskip("av")
    guid = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
    (tmp_path / name).write_bytes(guid + (1 << 62).to_bytes(8, "little") + bytes(400))
    with pytest.raises(DataError, match=r"must be a complete audio file|must contain audio"):
        list(audio.read_blocks(tmp_path / name, 16000))
