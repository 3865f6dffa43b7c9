"""From files to batches on the device: images, their cache, the samples of a batch, the loader."""
