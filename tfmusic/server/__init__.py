"""The local page and the JSON endpoint of `tfmusic serve`."""
