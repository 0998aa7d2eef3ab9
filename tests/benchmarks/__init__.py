"""Ratios measured side by side in one run: converter, inputs, models, serving, start-up."""
