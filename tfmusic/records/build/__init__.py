"""Tracks on disk to a records folder: `plan.py` decides, `shard.py` writes one shard, `build.py` runs the whole."""
