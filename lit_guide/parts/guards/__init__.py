"""A run that can't succeed stops, and says why: a loss that is not finite, weights that DDP waits for."""
