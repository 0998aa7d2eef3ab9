"""Weights that others have trained, and how they find their place in a model of ours."""
