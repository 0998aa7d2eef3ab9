"""A trained model and tracks to predictions, embeddings and explanations; for run folders and exports alike."""
