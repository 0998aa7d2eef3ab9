"""Scores and labels of tracks to metrics: on held-out splits, out of fold, and beside what training has seen."""
