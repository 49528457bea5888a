"""GGUF files: header, configuration, blocks."""
