"""What every part may import: contract, feature, scale, windows, tracks, run folders, and how files are written."""
