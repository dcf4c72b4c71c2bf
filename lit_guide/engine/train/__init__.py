"""The training loop's helpers: the module under the model, callbacks, optimizers."""
