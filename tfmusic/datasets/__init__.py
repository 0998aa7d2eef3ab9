"""Raw data on disk to tracks; one file a loader, all with the same sections in the same order."""

from tfmusic.datasets import airush

LOADERS = {"airush": airush.load}
