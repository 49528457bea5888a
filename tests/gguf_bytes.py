"""GGUF files written byte by byte, right or wrong: `from gguf_bytes import info, key, packed, text`."""

from __future__ import annotations

import struct
from collections.abc import Iterable


def text(content: str | bytes) -> bytes:
    """Return a text with its length."""
    raw = content if isinstance(content, bytes) else content.encode()
    return struct.pack("<Q", len(raw)) + raw


def key(name: str | bytes, kind: int, value: bytes) -> bytes:
    """Return a key with its value, of any kind."""
    return text(name) + struct.pack("<I", kind) + value


def info(
    name: str | bytes, lengths: Iterable[int], kind: int = 0, offset: int = 0, axes: int | None = None
) -> bytes:
    """Return the header of one tensor; `lengths` as the file has them, the fastest first."""
    lengths = tuple(lengths)
    dims = struct.pack(f"<I{len(lengths)}Q", len(lengths) if axes is None else axes, *lengths)
    return text(name) + dims + struct.pack("<IQ", kind, offset)


def packed(
    keys: list[bytes], tensors: list[bytes], payload: bytes = b"", alignment: int = 32, version: int = 3,
    n_keys: int | None = None, n_tensors: int | None = None,
) -> bytes:
    """Return a whole file; the counts may lie."""
    counts = len(tensors) if n_tensors is None else n_tensors, len(keys) if n_keys is None else n_keys
    head = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join(keys) + b"".join(tensors)
    return head + bytes(-len(head) % alignment) + payload


def nested(depth: int) -> bytes:
    """Return a list in a list in a list."""
    return struct.pack("<IQ", 9, 1) * depth + struct.pack("<IQ", 0, 0)


def listed(kind: int, count: int, content: bytes = b"") -> bytes:
    """Return the value of a key of kind 9."""
    return struct.pack("<IQ", kind, count) + content
