"""Facts about tables of embeddings: how rows moved, and which of them lie together."""
