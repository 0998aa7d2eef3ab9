"""Raw data on disk to tracks; one file a loader, all with the same sections in the same order."""

from collections.abc import Callable

from tfmusic.core.track import Dataset
from tfmusic.datasets import airush, fma, folder, gtzan, jamendo, table

LOADERS: dict[str, Callable[..., Dataset]] = {
    "airush": airush.load,
    "gtzan": gtzan.load,
    "fma": fma.load,
    "jamendo": jamendo.load,
    "folder": folder.load,
    "table": table.load,
}
