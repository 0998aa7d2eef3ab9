"""Made-up sound for the tests of audio."""

import numpy as np
import soundfile


def chords(seconds, rate_hz=22050, seed=0):
    """Returns decaying chords over a little noise, float32 [n]: tones, onsets and a floor, as music has them."""
    rng = np.random.default_rng(seed)
    at = np.arange(int(seconds * rate_hz)) / rate_hz
    sound = 0.003 * rng.standard_normal(len(at))
    for begin in np.arange(0.0, seconds, 0.4):
        since = at - begin
        envelope = np.where(since >= 0, np.exp(-4.0 * np.maximum(since, 0)), 0.0)
        for note in rng.integers(36, 84, 3):
            sound += 0.08 * envelope * np.sin(2 * np.pi * 440.0 * 2 ** ((note - 69) / 12) * at)
    return sound.astype(np.float32)


def write(path, samples, rate_hz=22050, **options):
    """Writes a sound file, with its folder, and returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate_hz, **options)
    return path


def music(folder, names, seconds=3.0, suffix=".wav"):
    """Writes a file of chords for every name below a folder, each another, and returns the folder."""
    for seed, name in enumerate(names):
        write(folder / f"{name}{suffix}", chords(seconds + 0.1 * seed, seed=seed))
    return folder
