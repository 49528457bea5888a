"""Facts about the order of hidden units: which axes share one, and which order of B's is closest to A's."""
