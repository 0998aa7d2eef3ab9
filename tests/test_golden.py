"""Format 1 stays format 1: golden shards are read, and written again to the same bytes."""

import numpy as np

from tests import golden
from tfmusic.core.scale import Encoder
from tfmusic.records.manifest import Manifest
from tfmusic.records.reader import iterate_tracks


def test_golden_records_are_read():
    """Every track of the golden folder comes back with its frames and labels."""
    manifest = Manifest.read(golden.GOLDEN)
    manifest.verify(list(manifest.splits))
    encoder = Encoder(manifest.contract.scale, "uint8")
    tracks = {track.row: track for split in manifest.splits for track in iterate_tracks(manifest, split)}
    assert sorted(tracks) == list(range(len(golden.N_FRAMES)))
    for row, track in tracks.items():
        np.testing.assert_array_equal(track.codes, encoder.encode(golden.mel_of(row)[0]))
    assert manifest.contract.labels == ("R&B/c", "b", "가")
    assert tracks[0].label == (1,)
    assert tracks[2].label == (0, 2)


def test_golden_records_are_written_again(tmp_path):
    """The same input gives the same bytes on every machine, Python and numpy: a change here is a new format.

    croissant.json is no part of the format: it only describes the other files.
    """
    golden.build(tmp_path / "format-1", tmp_path)
    ours = {path.name: path.read_bytes() for path in (tmp_path / "format-1").iterdir()}
    assert ours.pop("croissant.json")
    assert ours == {path.name: path.read_bytes() for path in golden.GOLDEN.iterdir()}
