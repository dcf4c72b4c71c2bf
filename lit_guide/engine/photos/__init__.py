"""Image files: from a folder to batches."""
