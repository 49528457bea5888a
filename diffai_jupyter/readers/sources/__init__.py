"""Where checkpoints come from: files, folders, live objects."""
