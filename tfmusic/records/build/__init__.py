"""Raw data to records: `plan.py` decides, `shard.py` writes a shard, `places.py` says where, `build.py` runs it all."""
