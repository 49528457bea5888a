"""One file or folder per container format, and what they share."""
