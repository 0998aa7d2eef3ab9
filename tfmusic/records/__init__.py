"""The file format alone: what a record, a shard and a records folder hold, how they are written and read."""
