"""tfmusic: music classification from whole tracks, from spectrogram to prediction."""

__version__ = "0.2.0"
