"""Records and a config to a run folder."""
