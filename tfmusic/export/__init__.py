"""A run to a folder that can be loaded elsewhere: SavedModel, ONNX or LiteRT, with contract, calibration and card."""
