"""Records looked at as a whole: checksums of all files, and whether the shards hold what the manifest says."""

import csv
from collections.abc import Iterator

from tfmusic.errors import RecordsError
from tfmusic.records import tfds
from tfmusic.records.manifest import TRACKS_NAME, Manifest, Shard
from tfmusic.records.reader import read_shard


def faults_of(manifest: Manifest, version: str) -> Iterator[str]:
    """Yields a line for every fault of a records folder; `version` is that of its TFDS files."""
    yield from _of_tables(manifest)
    for name, text in tfds.texts(manifest, version).items():
        path = manifest.folder / name
        if not path.is_file() or path.read_bytes() != text.encode():
            yield f"{path}: must be what the manifest says of the records; build the records again"
    for split in manifest.splits.values():
        for shard in split.shards:
            try:
                manifest.check_shard(shard)
                yield from _of_segments(manifest, shard)
            except RecordsError as error:
                yield str(error)


def count_files(manifest: Manifest) -> int:
    """Returns how many files `faults_of` looks at."""
    n_tables = 2 + ("tokens_sha256" in manifest.settings)  # manifest and tracks, and tokens where there are some
    return n_tables + len(tfds.NAMES) + sum(len(split.shards) for split in manifest.splits.values())


def _of_tables(manifest: Manifest) -> Iterator[str]:
    try:
        manifest.verify([])
        manifest.read_tokens()
        n_stored = sum(len(manifest.track_ids([name])) for name in manifest.splits)
    except (RecordsError, KeyError, ValueError, csv.Error) as error:
        yield str(error) if isinstance(error, RecordsError) else f"{manifest.folder / TRACKS_NAME}: {error!r}"
        return
    wanted = sum(split.tracks for split in manifest.splits.values())
    if n_stored != wanted:
        yield f"{manifest.folder / TRACKS_NAME}: must list {wanted} stored tracks by the manifest. Received: {n_stored}"


def _of_segments(manifest: Manifest, shard: Shard) -> Iterator[str]:
    path = manifest.folder / shard.file
    n_segments = sum(1 for _ in read_shard(path, manifest))
    if n_segments != shard.segments:
        yield f"{path}: must hold {shard.segments} segments by the manifest. Received: {n_segments}"
