"""The DataModule under every source of data."""
