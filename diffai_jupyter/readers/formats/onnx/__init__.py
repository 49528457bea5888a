"""ONNX files: the wire format, and the initializers in it."""
