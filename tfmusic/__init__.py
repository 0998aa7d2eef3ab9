"""tfmusic: music classification from whole tracks, spectrogram to answer."""

__version__ = "0.2.0"
