"""One file per behaviour that a user may delete."""
