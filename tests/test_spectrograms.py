"""Features of sound: the law of frames, agreement with librosa, values that can be worked out by hand."""

import numpy as np
import pytest

from tests.sounds import chords
from tfmusic.config.loading import config_from_text
from tfmusic.core.feature import C1_HZ, DEFAULTS, PRESETS, Feature
from tfmusic.errors import ConfigError
from tfmusic.features.read import COMPUTE, compute, frames_of
from tfmusic.features.spectrograms import CentredWindows

MINIMAL = "task: q2\ndata: {loader: airush, question: q2}\n"
FEATURES = {name: Feature(name=name) for name in DEFAULTS}


def of(sound, feature, pieces=1):
    return compute(iter(np.array_split(sound, pieces)), feature)


def db_apart(found, expected, *, above_db):
    """Returns by how many dB two powers differ where the expected one is that close to its maximum."""
    loud = expected > expected.max() * 10 ** (-above_db / 10)
    return np.abs(10 * np.log10(found[loud] / expected[loud]))


def test_every_feature_has_defaults_and_code():
    """The names of the config are those that can be computed."""
    assert set(DEFAULTS) == set(COMPUTE)


@pytest.mark.parametrize("name", COMPUTE)
@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_law_of_frames(name, extra):
    """n samples have 1 + n // hop frames, at multiples of the hop and beside them; raw has n / hop rounded up."""
    feature = FEATURES[name]
    n_samples = 8 * feature.hop_length + extra
    expected = {-1: 8, 0: 8, 1: 9} if name == "raw" else {-1: 8, 0: 9, 1: 9}
    values = of(chords(1.0)[:n_samples], feature, pieces=3)
    assert values.shape == (feature.n_bins, expected[extra])
    assert values.dtype == np.float32
    assert values.flags.c_contiguous
    assert frames_of(n_samples, feature) == expected[extra]


@pytest.mark.parametrize("name", COMPUTE)
def test_blocks_do_not_matter(name):
    """However the sound is cut into blocks, the feature is the same."""
    sound = chords(3.0)
    whole = of(sound, FEATURES[name])
    np.testing.assert_allclose(of(sound, FEATURES[name], pieces=17), whole, rtol=1e-4, atol=1e-6 * np.abs(whole).max())


@pytest.mark.parametrize("hop_length", [3, 8, 11])
def test_windows_are_centred(hop_length):
    """Window t is centred on sample t x hop, zeros beyond the ends; a hop may be longer than the window."""
    samples = np.arange(1, 41, dtype=np.float32)
    cutter = CentredWindows(8, hop_length)
    views = [view.copy() for block in np.array_split(samples, 7) for view in cutter.push(block)]
    found = np.concatenate([*views, *cutter.finish()])
    padded = np.pad(samples, 4)
    expected = [padded[begin : begin + 8] for begin in range(0, 41, hop_length)]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", COMPUTE)
def test_silence(name):
    """Silence is 0 everywhere, -100 dB of log-mel, never NaN."""
    values = of(np.zeros(9000, np.float32), FEATURES[name])
    np.testing.assert_allclose(values, -100.0 if name == "log-mel" else 0.0, rtol=1e-6)


def test_cqt_of_a_tone():
    """A full tone is loudest in the bin of its pitch, where its power is a quarter of the window's length."""
    feature = FEATURES["cqt"]
    at = np.arange(22050 * 2) / 22050
    for bin_index in (5, 40, 57, 83):  # both halves of the transform
        pitch_hz = C1_HZ * 2 ** (bin_index / 12)
        power = of(np.sin(2 * np.pi * pitch_hz * at).astype(np.float32), feature)[:, 40]
        periods = (2 ** (1 / 6) + 1) / (2 ** (1 / 6) - 1)
        assert power.argmax() == bin_index
        np.testing.assert_allclose(power[bin_index], periods * 22050 / pitch_hz / 4, rtol=0.01)


def test_ten_seconds_of_cqt():
    """Ten seconds have 431 frames by the law; the 430 x 84 excerpts of FMA are the whole hops, 220,500 // 512."""
    feature = Feature.model_validate("fma-cqt")
    assert frames_of(220_500, feature) == 431
    assert 220_500 // 512 == 430
    assert of(chords(10.0), feature).shape == (84, 431)


def test_normalised_cqt_has_a_maximum_of_one_in_every_frame():
    """A frame's magnitudes divided by their maximum, as powers: loudness is gone, the shape of a frame stays."""
    sound = chords(3.0) * np.linspace(0.01, 1.0, 3 * 22050, dtype=np.float32)[: len(chords(3.0))]
    plain, found = of(sound, FEATURES["cqt"]), of(sound, FEATURES["cqt_normalised"])
    magnitude = np.sqrt(plain)
    np.testing.assert_allclose(np.sqrt(found), magnitude / magnitude.max(0), rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(found.max(0), np.ones(found.shape[1], np.float32))


def test_chroma_of_a_tone():
    """A tone lies in its pitch class, whatever its octave; C comes first."""
    at = np.arange(22050) / 22050
    for name in ("chroma_stft", "chroma_cqt"):
        for pitch in (57, 60, 76):  # A, C, E
            tone = np.sin(2 * np.pi * 440 * 2 ** ((pitch - 69) / 12) * at).astype(np.float32)
            chroma = of(tone, FEATURES[name])[:, 20]
            assert chroma.argmax() == pitch % 12
            assert chroma.max() == 1.0


def test_tempogram_of_a_beat():
    """Clicks every 16 frames come back at lags of 16, 32, ... frames."""
    sound = np.zeros(22050 * 10, np.float32)
    sound[:: 16 * 512] = 0.9
    strength = of(sound, FEATURES["tempogram"])[:, 200]
    peaks = [lag for lag in range(1, 60) if strength[lag] > max(strength[lag - 1], strength[lag + 1], 0.2)]
    assert peaks == [16, 32, 48]


def test_raw_is_the_sound():
    """Frames laid end to end are the samples, with zeros behind."""
    sound = chords(1.0)
    found = of(sound, FEATURES["raw"], pieces=5).T.reshape(-1)
    np.testing.assert_array_equal(found[: len(sound)], sound)
    assert not found[len(sound) :].any()


@pytest.mark.slow
@pytest.mark.parametrize("preset", [name for name, feature in PRESETS.items() if feature["name"] == "mel"])
def test_mel_agrees_with_librosa(preset):
    """Within .001 dB down to 100 dB below the loudest cell; `log-mel` is its power_to_db without a range."""
    librosa = pytest.importorskip("librosa")
    feature = Feature.model_validate(preset)
    sound = chords(5.0, feature.sample_rate_hz)
    expected = librosa.feature.melspectrogram(
        y=sound.astype(np.float64), sr=feature.sample_rate_hz, n_fft=feature.n_fft,
        hop_length=feature.hop_length, n_mels=feature.n_bins,
    )  # fmt: skip
    assert db_apart(of(sound, feature, pieces=4), expected, above_db=100).max() < 1e-3
    log_mel = of(sound, feature.model_copy(update={"name": "log-mel"}))
    np.testing.assert_allclose(log_mel, librosa.power_to_db(expected, top_db=None), atol=1e-3)


@pytest.mark.slow
def test_others_agree_with_librosa():
    """At librosa's defaults, its tuning estimate off: exact but for the CQT, whose windows librosa rounds."""
    librosa = pytest.importorskip("librosa")
    sound = chords(6.0)
    y = sound.astype(np.float64)
    expected = {
        "stft": np.abs(librosa.stft(y, n_fft=1024, hop_length=512)) ** 2,
        "chroma_stft": librosa.feature.chroma_stft(y=y, sr=22050, tuning=0.0),
        "tempogram": librosa.feature.tempogram(y=y, sr=22050),
    }
    for name, values in expected.items():
        feature = FEATURES[name].model_copy(update={"sample_rate_hz": 22050})
        np.testing.assert_allclose(of(sound, feature, pieces=4), values, rtol=1e-4, atol=1e-6 * values.max())
    cqt = db_apart(of(sound, FEATURES["cqt"]), np.abs(librosa.cqt(y, sr=22050)) ** 2, above_db=20)
    assert cqt.mean() < 0.1
    assert cqt.max() < 1.0
    chroma = librosa.feature.chroma_cqt(y=y, sr=22050, tuning=0.0)
    assert np.abs(of(sound, FEATURES["chroma_cqt"]) - chroma).mean() < 0.005


def test_presets_fill_the_section():
    """A preset in place of the section gives its keys; a name gives its defaults, which n_fft is not always among."""
    for name, preset in PRESETS.items():
        assert config_from_text(f"{MINIMAL}feature: {name}\n", "x").feature.model_dump() == preset
    raw = config_from_text(f"{MINIMAL}feature: {{name: raw}}\nrecord: {{scale: identity, dtype: float16}}\n", "x")
    assert raw.feature.model_dump() == {"name": "raw", "sample_rate_hz": 22050, "hop_length": 243, "n_bins": 243}
    mel = config_from_text(f"{MINIMAL}feature: {{n_bins: 96}}\n", "x").feature.model_dump()
    assert mel == {"name": "mel", "sample_rate_hz": 16000, "n_fft": 1024, "hop_length": 512, "n_bins": 96}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("feature: gtzam\n", "x.yaml:3: feature must be a mapping, or one of airush, .*'gtzam'"),
        ("feature: {name: mfcc}\n", "x.yaml:3: feature.name: .*'mfcc'"),
        (
            "feature: {name: stft}\nrecord: {scale: identity}\n",
            "dtype must be float16 or float32 for record.scale=identity",
        ),
        ("feature: {name: stft, n_bins: 128}\n", "feature.n_bins must be 513 for stft. Received: 128"),
        ("feature: {name: chroma_cqt, n_bins: 24}\n", "feature.n_bins must be 12 for chroma_cqt"),
        ("feature: {name: cqt, n_fft: 1024}\n", "feature.n_fft must be left out for cqt"),
        ("feature: {n_fft: 1023}\n", "feature.n_fft must be even"),
        ("feature: {name: cqt, sample_rate_hz: 8000}\n", "feature.sample_rate_hz must be at least 8372 for cqt"),
        ("feature: {name: raw}\n", "record.scale must be identity for raw, .* Received: db"),
        ("feature: {name: tempogram}\nrecord: {scale: log10_1p10}\n", "record.scale must be identity for tempogram"),
        (
            "record: {scale: identity, dtype: float16}\n",
            "record.dtype must be float32 for record.scale=identity and mel",
        ),
        (
            "record: {scale: identity, dtype: float32}\naugment: {gain_db: 3.0}\n",
            "augment.gain_db and equalizer_db must be 0 for record.scale=identity. Received: 3 and 0",
        ),
        (
            "feature: {name: raw}\nrecord: {scale: identity, dtype: float16}\naugment: {freq_shift_bins: 2}\n",
            "augment.time_stretch, freq_stretch, freq_shift_bins must be 0 for raw",
        ),
        ("offline_augment: {stretch: []}\n", "offline_augment.stretch: .*at least 1 item"),
        ("offline_augment: {stretch: [0.1]}\n", "offline_augment.stretch: .*greater than or equal to 0.5"),
    ],
)
def test_what_cannot_work_is_refused(text, message):
    """A feature that cannot be computed or stored as asked for is one line."""
    with pytest.raises(ConfigError, match=message) as caught:
        config_from_text(MINIMAL + text, "x.yaml")
    assert "\n" not in str(caught.value)
