"""The header parser is never laxer than the reference implementation, and lets no other error out."""

from __future__ import annotations

import json
import random
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError, safe_open

from diffai_jupyter.checkpoint.storage import StoredFile
from diffai_jupyter.errors import FormatError
from diffai_jupyter.readers.formats.safetensors import read_safetensors

Facts = dict[str, tuple[str, tuple[int, ...]]]

BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
}
ODD_VALUES: list[Any] = [
    None,
    True,
    False,
    -1,
    0,
    1,
    2,
    3,
    2**31,
    2**62,
    2**63,
    2**64,
    1.0,
    0.5,
    1e3,
    "",
    "1",
    "F32",
    [],
    [1],
    {},
    [0, 0],
    {"a": 1},
    [[1]],
    [2**62, 2**62, 0],
    "\ud800",
    "é",
]
ODD_BYTES = [
    b"NaN",
    b"Infinity",
    b"-0",
    b"1e5",
    b"01",
    b"\\ud800",
    b"\\u0000",
    b"\xef\xbb\xbf",
    b"\t",
    b"\n",
    b"\0",
    b"'",
    b"//",
]


def valid_parts(rng: random.Random) -> tuple[dict[str, Any], int]:
    header: dict[str, Any] = {}
    if rng.random() < 0.5:
        header["__metadata__"] = {"format": "pt"}
    position = 0
    for i in range(rng.randint(0, 4)):
        dtype = rng.choice(list(BITS))
        shape = [rng.choice([0, 1, 2, 4, 8]) for _ in range(rng.randint(0, 3))]
        size = BITS[dtype]
        for length in shape:
            size *= length
        if size % 8:
            shape, size = [*shape, 4], size * 4
        header[f"t{i}"] = {"dtype": dtype, "shape": shape, "data_offsets": [position, position + size // 8]}
        position += size // 8
    return header, position


def mutate_values(rng: random.Random, header: dict[str, Any]) -> None:
    """Change one value, wherever it is."""
    tensors = [entry for entry in header.values() if isinstance(entry, dict) and "shape" in entry]
    if not tensors or rng.random() < 0.15:
        header[rng.choice(["t0", "x", "__metadata__", ""])] = rng.choice(ODD_VALUES)
        return
    entry = rng.choice(tensors)
    field = rng.choice(["dtype", "shape", "data_offsets", "extra"])
    found = entry.get(field)
    if isinstance(found, list) and found and rng.random() < 0.8:
        at = rng.randrange(len(found))
        near = isinstance(found[at], int) and rng.random() < 0.4
        found[at] = found[at] + rng.choice([-4, -1, 1, 4]) if near else rng.choice(ODD_VALUES)
    elif rng.random() < 0.2:
        entry.pop(field, None)
    elif field == "dtype" and rng.random() < 0.5:
        entry[field] = rng.choice([*BITS, "I4", "C128", "f32"])
    else:
        entry[field] = rng.choice(ODD_VALUES)


def mutate_bytes(rng: random.Random, raw: bytearray) -> None:
    at = rng.randrange(len(raw))
    action = rng.randrange(5)
    if action == 0:
        raw[at] = rng.randrange(256)
    elif action == 1:
        del raw[at : at + rng.randint(1, 8)]
    elif action == 2:
        raw[at:at] = rng.choice(ODD_BYTES)
    elif action == 3:
        raw[at:at] = raw[at : at + rng.randint(1, 40)]
    else:
        digits = [i for i, byte in enumerate(raw) if 48 <= byte <= 57]
        if digits:
            raw[rng.choice(digits)] = rng.choice(b"0123456789-.e")


def mutant(rng: random.Random) -> bytes:
    header, size = valid_parts(rng)
    for _ in range(rng.choice([0, 1, 1, 1, 2])):
        mutate_values(rng, header)
    raw = bytearray(json.dumps(header, separators=(",", ":")).encode())
    if rng.random() < 0.5:
        mutate_bytes(rng, raw)
    length = len(raw) + (rng.choice([-1, 1, 2**20, 2**63]) if rng.random() < 0.05 else 0)
    length = max(length, 0)
    size = max(0, size + (rng.choice([-1, 1, 4]) if rng.random() < 0.05 else 0))
    return struct.pack("<Q", length) + bytes(raw) + bytes(size)


def theirs(path: Path) -> Facts | None:
    try:
        with safe_open(path, "np") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
            return {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
    except (SafetensorError, OSError, UnicodeError):
        return None


def ours(path: Path) -> Facts | None:
    try:
        tensors = read_safetensors(StoredFile.at(path)).tensors
    except FormatError:
        return None
    return {name: (tensor.dtype.name.upper(), tensor.shape) for name, tensor in tensors.items()}


def compare_on_mutants(folder: Path, seed: int, count: int) -> Counter[str]:
    rng = random.Random(seed)
    outcomes: Counter[str] = Counter()
    path = folder / "mutant.safetensors"
    for _ in range(count):
        content = mutant(rng)
        path.write_bytes(content)
        reference, found = theirs(path), ours(path)
        if reference is None:
            assert found is None, f"laxer than the reference: {content!r}"
            outcomes["both refuse"] += 1
        elif found is None:
            outcomes["stricter"] += 1
        else:
            assert found == reference, content
            outcomes["both accept"] += 1
    return outcomes


def test_never_laxer_than_the_reference(tmp_path: Path) -> None:
    outcomes = compare_on_mutants(tmp_path, seed=0, count=800)
    # the mutants must reach both sides for this to mean anything
    assert outcomes["both accept"] > 50
    assert outcomes["both refuse"] > 300


@pytest.mark.slow
def test_never_laxer_than_the_reference_on_many_mutants(tmp_path: Path) -> None:
    outcomes = compare_on_mutants(tmp_path, seed=1, count=20_000)
    assert outcomes["both accept"] > 1000
    assert outcomes["both refuse"] > 10_000
