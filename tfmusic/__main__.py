"""Runs the command line as `python -m tfmusic`."""

from tfmusic.cli import entry_point

if __name__ == "__main__":
    entry_point()
