"""What logs, optimizers and the user tell of the training."""
