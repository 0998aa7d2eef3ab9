"""Evaluation to numbers, tables and files that people read."""
