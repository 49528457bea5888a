"""PyTorch files: an inert machine for their pickles, and the tensors it finds."""
