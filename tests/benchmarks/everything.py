"""Time and memory of all analyses together on a pair of Llama-shaped checkpoints in BF16, of 1.1 billion parameters.

    python tests/benchmarks/everything.py [--layers 22] [--flags all] [--align] [--keep FOLDER]

The checkpoints are made at random in a temporary folder: B is A with a small change in every matrix, so that nothing
is skipped as equal. Nothing is asserted: machines differ. The time by stage is what ``--timings`` prints.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

HIDDEN, INNER, VOCAB, HEADS, KEY_HEADS = 2048, 5632, 32000, 32, 4
CHANGE = 0.02
CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": HIDDEN, "intermediate_size": INNER,
    "num_attention_heads": HEADS, "num_key_value_heads": KEY_HEADS, "vocab_size": VOCAB, "hidden_act": "silu",
    "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False,
}  # fmt: skip


def main() -> None:
    """Make the checkpoints, compare them in a process of its own, print time and peak memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--flags", nargs="*", default=["all"], help="analyses, without dashes in front")
    parser.add_argument("--align", action="store_true")
    parser.add_argument("--keep", type=Path, help="make the checkpoints there, or use those that are there")
    asked = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, NumPy {np.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        place = asked.keep or Path(folder)
        sides = [place / "a", place / "b"]
        for change, side in zip((0.0, CHANGE), sides, strict=True):
            if not (side / "model.safetensors").exists():
                write(side, asked.layers, change)
        flags = [f"--{flag}" for flag in asked.flags] + (["--align"] if asked.align else [])
        command = [sys.executable, "-m", "diffai_jupyter", *map(str, sides), *flags, "--timings"]
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(done.stdout[-6000:], done.stderr[-2000:], sep="\n")
    print(f"\n{seconds:.0f} s, peak {peak:.0f} MiB, exit code {done.returncode}")


def shapes(layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the names and shapes of a Llama-shaped network."""
    yield "model.embed_tokens.weight", (VOCAB, HIDDEN)
    shared = HIDDEN // HEADS * KEY_HEADS
    for i in range(layers):
        at = f"model.layers.{i}."
        yield f"{at}input_layernorm.weight", (HIDDEN,)
        for part, rows in (("q", HIDDEN), ("k", shared), ("v", shared), ("o", HIDDEN)):
            yield f"{at}self_attn.{part}_proj.weight", (rows, HIDDEN)
        yield f"{at}post_attention_layernorm.weight", (HIDDEN,)
        yield f"{at}mlp.gate_proj.weight", (INNER, HIDDEN)
        yield f"{at}mlp.up_proj.weight", (INNER, HIDDEN)
        yield f"{at}mlp.down_proj.weight", (HIDDEN, INNER)
    yield "model.norm.weight", (HIDDEN,)
    yield "lm_head.weight", (VOCAB, HIDDEN)


def write(folder: Path, layers: int, change: float) -> None:
    """Write a checkpoint tensor by tensor; a matrix moves by `change` of its norm."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    header, offset = {}, 0
    for name, shape in shapes(layers):
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for i, (_, shape) in enumerate(shapes(layers)):
            file.write(to_bf16(tensor(i, shape, change)))


def tensor(seed: int, shape: tuple[int, ...], change: float) -> np.ndarray:
    """Return the values of one tensor: norms near one, matrices of the usual scale."""
    draw = np.random.default_rng(seed)
    if len(shape) == 1:
        return (1 + 0.1 * draw.standard_normal(shape, dtype=np.float32) + change * 0.1).astype(np.float32)
    values = draw.standard_normal(shape, dtype=np.float32) * np.float32(shape[1] ** -0.5)
    if change:
        values += change * np.random.default_rng(seed + 10_000).standard_normal(shape, dtype=np.float32) * np.float32(
            shape[1] ** -0.5
        )
    return values


def to_bf16(values: np.ndarray) -> bytes:
    """Round to nearest, ties to even."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16).tobytes()


if __name__ == "__main__":
    main()
