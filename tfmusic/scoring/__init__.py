"""Segment logits to track scores, calibration and metrics; numpy only."""
