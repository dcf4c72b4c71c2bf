"""`data check` and `data show`: look at the images before training."""
