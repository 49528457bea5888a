"""Checkpoints: stored dtypes, tensors, and who is who among them."""
