"""What the families share: names of stored tensors, streams of bits, and constants laid over matrices."""
