"""Two checkpoints, paired and scanned once."""
