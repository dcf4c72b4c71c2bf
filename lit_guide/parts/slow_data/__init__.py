"""`slow_data`: tells that training waits for its data, and what brings them faster."""
