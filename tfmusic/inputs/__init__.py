"""Records to batches of codes: cropping, augmentation, batching."""
