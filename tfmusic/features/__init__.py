"""Sound and spectrograms as numpy arrays: reading, scaling, cutting."""
