"""Features a project can do without: a folder each, which may be deleted."""
