"""Names of shards and which tracks go into which, by ranges of a hash order."""

import hashlib
from collections.abc import Sequence

_COPIES = "_copies"


def copies_of(split: str) -> str:
    """Returns the split that holds the changed copies of the tracks of a split, which train and are never scored."""
    return f"{split}{_COPIES}"


def holds_copies(split: str) -> bool:
    """Returns whether a split is one of changed copies."""
    return split.endswith(_COPIES)


def shard_name(name: str, split: str, index: int, count: int) -> str:
    """Returns the file name of a shard, such as `q2-fold0.tfrecord-00000-of-00008`."""
    return f"{name}-{split}.tfrecord-{index:05d}-of-{count:05d}"


def order_key(seed: int, track_id: str, start: int | None = None) -> bytes:
    """Returns the place of a track, or of one of its segments, in an order that looks random and never changes."""
    text = f"{seed}/{track_id}" if start is None else f"{seed}/{track_id}/{start}"
    return hashlib.sha256(text.encode()).digest()


def n_shards(total_bytes: int, *, at_least: int, shard_bytes: int, n_tracks: int) -> int:
    """Returns how many shards a split gets: as many as asked for, more where shards would be too large."""
    wanted = max(at_least, -(-total_bytes // shard_bytes))
    return max(min(wanted, n_tracks), 1)


def deal_ranges(sizes: Sequence[int], count: int) -> list[range]:
    """Returns `count` contiguous ranges of items, none empty, whose sums of sizes are as even as cuts allow.

    Cut k stands where the running sum comes nearest to k / count of the total.

    Raises:
        ValueError: there are fewer items than ranges.
    """
    if not 1 <= count <= len(sizes):
        raise ValueError(f"need 1 to {len(sizes)} ranges, got {count}")
    total, running, cuts = sum(sizes), 0, [0]
    for item, size in enumerate(sizes):
        wanted = total * len(cuts) / count
        left_items, left_ranges = len(sizes) - item, count - len(cuts)
        must_cut = left_items == left_ranges  # one item for each range still to come
        if len(cuts) < count and item > cuts[-1] and (must_cut or running + size / 2 >= wanted):
            cuts.append(item)
        running += size
    return [range(first, last) for first, last in zip(cuts, [*cuts[1:], len(sizes)], strict=True)]
