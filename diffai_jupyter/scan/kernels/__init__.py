"""The arithmetic of the pass over one tile."""
