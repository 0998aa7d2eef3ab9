"""Config files: their sections with every key, and how YAML and overrides become a checked `Config`."""
