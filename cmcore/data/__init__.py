"""Data sets of images: sources, the prepared arrays, batches and augmentation."""
