"""A run to a folder that others can load: SavedModel, ONNX or LiteRT, with contract, calibration and model card."""
