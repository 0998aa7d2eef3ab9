"""A trained model to answers for whole tracks, here and in the exported graph."""
