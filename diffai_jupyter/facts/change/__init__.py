"""What happened from A to B, read off the tensors."""
