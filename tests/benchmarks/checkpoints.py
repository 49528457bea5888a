"""Checkpoints that are measured: the tensors of a Llama-like network, at random, in any size and encoding."""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.encodings import Encoding

FILE = "model.safetensors"
CHANGE = 0.02
"""How far every matrix of B is from that of A, by its norm."""
HALF = 0.67448975
"""Half of the magnitudes of a normal distribution are below this many standard deviations."""
BASE, CHANGED, PRUNED = "base", "changed", "pruned"
_WRITTEN = 64
_PAGE = 4096

Part = tuple[str, str, tuple[int, ...]]


@dataclass(frozen=True)
class Network:
    """The proportions of TinyLlama, which has 22 layers 2048 wide.

    Parameters
    ----------
    hidden : int
        Width.
    layers : int
        Depth.
    """

    hidden: int
    layers: int

    @classmethod
    def of(cls, elements: int) -> Network:
        """Return the widest network of at least six layers with about so many elements."""
        hidden = 64
        while elements >= 94.25 * (2 * hidden) ** 2:
            hidden *= 2
        return cls(hidden, max(1, round((elements / hidden**2 - 31.25) / 10.5)))

    @property
    def heads(self) -> int:
        """Query heads."""
        return max(1, self.hidden // 64)

    @property
    def key_heads(self) -> int:
        """Heads of keys and values."""
        return max(1, self.heads // 8)

    @property
    def inner(self) -> int:
        """Hidden units: a multiple of 64, as blocks of quantized numbers want it."""
        return -(-self.hidden * 11 // 256) * 64

    @property
    def vocab(self) -> int:
        """Rows of the embedding."""
        return self.hidden * 125 // 8

    def config(self) -> dict[str, object]:
        """Return what stands in config.json."""
        return {
            "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": self.hidden,
            "intermediate_size": self.inner, "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_heads, "vocab_size": self.vocab, "hidden_act": "silu",
            "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False,
        }  # fmt: skip

    def shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield names and shapes."""
        hidden, inner, shared = self.hidden, self.inner, self.hidden // self.heads * self.key_heads
        yield "model.embed_tokens.weight", (self.vocab, hidden)
        for i in range(self.layers):
            at = f"model.layers.{i}."
            yield f"{at}input_layernorm.weight", (hidden,)
            for part, rows in (("q", hidden), ("k", shared), ("v", shared), ("o", hidden)):
                yield f"{at}self_attn.{part}_proj.weight", (rows, hidden)
            yield f"{at}post_attention_layernorm.weight", (hidden,)
            yield f"{at}mlp.gate_proj.weight", (inner, hidden)
            yield f"{at}mlp.up_proj.weight", (inner, hidden)
            yield f"{at}mlp.down_proj.weight", (hidden, inner)
        yield "model.norm.weight", (hidden,)
        yield "lm_head.weight", (self.vocab, hidden)

    @property
    def elements(self) -> int:
        """How many numbers it has."""
        return sum(math.prod(shape) for _, shape in self.shapes())


def write(folder: Path, network: Network, encoding: Encoding, kind: str = BASE) -> Path:
    """Write a checkpoint tensor by tensor, and return its folder.

    Parameters
    ----------
    folder : Path
        Where it goes; made if needed.
    network : Network
        Which tensors.
    encoding : Encoding
        How their numbers are stored.
    kind : str
        ``base``; ``changed``, in which each matrix is moved by `CHANGE` of its norm; or ``pruned``, in which the
        smaller half of each matrix is zero.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(network.config()))
    parts = [part for name, shape in network.shapes() for part in encoding.parts(name, shape)]
    check_room(folder, sum(nbytes(dtype, shape) for _, dtype, shape in parts))
    with (folder / FILE).open("wb") as file:
        file.write(header_of(parts))
        for i, (name, shape) in enumerate(network.shapes()):
            for raw in encoding.encode(name, values_of(i, shape, kind)):
                file.write(np.ascontiguousarray(raw).data)
    return folder


def values_of(seed: int, shape: tuple[int, ...], kind: str) -> np.ndarray:
    """Return the values of one tensor in float32: norms near one, matrices of the usual scale."""
    draw = np.random.default_rng(seed)
    values = draw.standard_normal(shape, dtype=np.float32)
    if kind == CHANGED:
        values += np.float32(CHANGE) * np.random.default_rng(seed + 10_000).standard_normal(shape, dtype=np.float32)
    if len(shape) == 1:
        return 1 + np.float32(0.1) * values
    if kind == PRUNED:
        values[np.abs(values) < HALF] = 0
    values *= np.float32(shape[1] ** -0.5)
    return values


def copy(source: Path, target: Path) -> Path:
    """Write the same bytes into another folder: no link, so that both are read."""
    check_room(source, (source / FILE).stat().st_size)
    target.mkdir(parents=True)
    for path in source.iterdir():
        shutil.copyfile(path, target / path.name)
    return target


def write_small(path: Path, count: int, kind: str = BASE) -> Path:
    """Write a file of many small matrices in F32."""
    shape = (16, 16)
    name = "blocks.{}.adapter.weight"
    check_room(path.parent, count * nbytes("F32", shape))
    draw = np.random.default_rng(0 if kind == BASE else 1)
    pool = draw.standard_normal((count + 1, 256), dtype=np.float32)
    with path.open("wb") as file:
        file.write(header_of((name.format(i), "F32", shape) for i in range(count)))
        file.write(pool[:count].data)
    return path


def write_sparse(folder: Path, network: Network, seed: int) -> Path | None:
    """Write a checkpoint in BF16 that is holes but for a few pages; None where the system makes no holes."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(network.config()))
    header = header_of((name, "BF16", shape) for name, shape in network.shapes())
    size = len(header) + 2 * network.elements
    draw = np.random.default_rng(seed)
    with (folder / FILE).open("wb") as file:
        file.write(header)
        file.truncate(size)
        for place in np.linspace(0, 2 * network.elements - _PAGE, _WRITTEN):
            # Whole numbers from the first on, each finite and around one.
            file.seek(len(header) + int(place) // 2 * 2)
            file.write(draw.integers(0x3F00, 0x3FFF, _PAGE // 2, dtype=np.uint16).data)
    return folder if on_disk(folder / FILE) < size // 2 else None


def on_disk(path: Path) -> int:
    """Return the bytes that a file takes on the disk; its size where the system does not tell."""
    status = path.stat()
    return getattr(status, "st_blocks", -(-status.st_size // 512)) * 512


def header_of(parts: Iterable[Part]) -> bytes:
    """Return the head of a safetensors file with its length in front."""
    header, offset = {}, 0
    for name, dtype, shape in parts:
        end = offset + nbytes(dtype, shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text


def nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Return how many bytes a stored array takes."""
    return math.prod(shape) * {"F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "U8": 1}[dtype]


def check_room(folder: Path, wanted: int) -> None:
    """Stop before a disk is full: a tenth of the free space stays free.

    Raises
    ------
    SystemExit
        If there is too little room.
    """
    free = shutil.disk_usage(folder).free
    if wanted > 0.9 * free:
        msg = f"{wanted >> 20} MiB are needed in {folder}, and {free >> 20} are free: give --folder or a smaller --mib"
        raise SystemExit(msg)


def size_of(*folders: Path) -> int:
    """Return the bytes of the weights of several checkpoints."""
    return sum(path_of(folder).stat().st_size for folder in folders)


def path_of(place: Path) -> Path:
    """Return the file of a checkpoint."""
    return place / FILE if place.is_dir() else place


def written(*folders: Path) -> None:
    """Wait until files are on the disk, so that the system does not write while something is measured."""
    for folder in folders:
        with path_of(folder).open("rb+") as file:
            os.fsync(file.fileno())
