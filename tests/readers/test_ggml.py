"""Blocks read as the gguf package reads them, bit for bit, whichever part is asked for."""

from __future__ import annotations

import pickle
import sys
from dataclasses import dataclass, field
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize, quantize

from diffai_jupyter.checkpoint.storage import Storage
from diffai_jupyter.checkpoint.tensor import Tensor
from diffai_jupyter.checkpoint.views import Interleaved, Reshaped, RotaryPairs, Rows, Transposed, Unstacked
from diffai_jupyter.errors import MissingPackageError
from diffai_jupyter.readers.formats.gguf.blocks import (
    REMOVED,
    TYPES,
    GgmlBlocks,
    GgmlType,
    block_bytes,
    ggml_tensor,
)

BY_NAME = {kind.name: kind for kind in TYPES.values()}
UNDECODED = ("Q8_1", "Q8_K", "Q1_0")
DECODED = [name for name, kind in BY_NAME.items() if kind.block > 1 and name not in UNDECODED]
NEEDS_PACKAGE = [name for name in DECODED if name.startswith(("IQ1", "IQ2", "IQ3", "TQ", "NVFP4")) or name == "IQ4_XS"]
OFFSET = 7


@dataclass(frozen=True)
class Memory(Storage):
    """Bytes in memory that remember what was read of them."""

    content: bytes
    path: str = "memory.gguf"
    reads: list[tuple[int, int]] = field(default_factory=list, compare=False)

    @property
    def size(self) -> int:  # type: ignore[override]
        return len(self.content)

    def read(self, offset: int, count: int) -> Any:
        assert 0 <= offset <= offset + count <= self.size
        self.reads.append((offset, count))
        return np.frombuffer(self.content, np.uint8)[offset : offset + count].copy()


def blocks_of(
    name: str, shape: tuple[int, ...], seed: int = 0, is_swapped: bool = False
) -> tuple[Any, np.ndarray]:
    """Return a tensor of random blocks, and their bytes row by row."""
    kind = BY_NAME[name]
    draw = np.random.default_rng(seed)
    raw = draw.integers(0, 256, block_bytes(kind, shape), dtype=np.uint8)
    file = Memory(bytes(OFFSET) + raw.tobytes())
    stored = raw.reshape(*shape[:-1], shape[-1] // kind.block * kind.nbytes)
    return ggml_tensor(file, OFFSET, shape, kind, "w", is_swapped), stored


def reference(name: str, raw: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        return dequantize(raw, gguf.GGMLQuantizationType[name])


def assert_same_bits(found: np.ndarray, wanted: np.ndarray) -> None:
    assert found.dtype == np.float32
    assert found.shape == wanted.shape
    same = (np.ascontiguousarray(found).view("<u4") == np.ascontiguousarray(wanted).view("<u4")) | (
        np.isnan(found) & np.isnan(wanted)
    )
    assert same.all()


@pytest.mark.parametrize("kind", TYPES.values(), ids=lambda kind: kind.name)
def test_the_table_is_that_of_the_package(kind: GgmlType) -> None:
    theirs = gguf.GGMLQuantizationType(kind.number)
    assert theirs.name == kind.name
    # ggml has had 36 since 2023 (static_assert in ggml-common.h): two half-precision numbers before the codes
    sizes = (32, 36) if kind.name == "Q8_1" else gguf.GGML_QUANT_SIZES[theirs]
    assert (kind.block, kind.nbytes) == sizes


def test_the_table_holds_every_type_of_the_package() -> None:
    assert {kind.value for kind in gguf.GGMLQuantizationType} == set(TYPES)
    assert not set(REMOVED) & set(TYPES)


@pytest.mark.parametrize("name", DECODED)
def test_all_values_are_those_of_the_package(name: str) -> None:
    tensor, raw = blocks_of(name, (6, 4 * 256))
    assert_same_bits(tensor.read_all(), reference(name, raw))
    # the scales of random bytes reach all numbers, those that are not finite too
    assert np.isfinite(tensor.read_all()).any()


@pytest.mark.parametrize("name", DECODED)
def test_parts_are_parts_of_the_whole(name: str) -> None:
    tensor, raw = blocks_of(name, (5, 3 * 256), seed=1)
    whole = reference(name, raw)
    draw = np.random.default_rng(2)
    spans = [((0, 5), (0, 1)), ((4, 5), (767, 768)), ((1, 3), (255, 257)), ((2, 2), (0, 9)), ((0, 5), (9, 9))]
    for _ in range(20):
        top, bottom = sorted(draw.integers(0, 6, 2).tolist())
        left, right = sorted(draw.integers(0, 769, 2).tolist())
        spans.append(((top, bottom), (left, right)))
    for rows, cols in spans:
        assert_same_bits(tensor.read(rows, cols), whole[slice(*rows), slice(*cols)])


def test_more_than_one_step_of_decoding() -> None:
    tensor, raw = blocks_of("Q4_K", (700, 512), seed=3)
    assert_same_bits(tensor.read_all(), reference("Q4_K", raw))


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4"])
def test_what_was_quantized_comes_back_near(name: str) -> None:
    values = np.random.default_rng(4).normal(0, 1, (8, 256)).astype(np.float32)
    raw = quantize(values, gguf.GGMLQuantizationType[name])
    tensor = ggml_tensor(Memory(raw.tobytes()), 0, values.shape, BY_NAME[name], "w", False)
    largest = np.abs(values).reshape(8, -1, 32).max(axis=2).repeat(32, axis=1)
    # a step is at most the range over the codes; of MXFP4 up to two of its gaps, which are a third of the largest
    step = {"Q4_0": 1 / 8, "Q4_1": 2 / 15, "Q5_0": 1 / 16, "Q5_1": 2 / 31, "Q8_0": 1 / 127, "MXFP4": 0.34}[name]
    assert (np.abs(tensor.read_all() - values) <= 1.01 * step * largest).all()


def test_blocks_by_hand() -> None:
    codes = np.arange(-16, 16, dtype=np.int8)
    raw = np.float16(0.5).tobytes() + codes.tobytes()
    found = ggml_tensor(Memory(raw), 0, (32,), BY_NAME["Q8_0"], "w", False).read_all()
    assert np.array_equal(found, codes[np.newaxis] * 0.5)
    low, high = np.arange(16), 15 - np.arange(16)
    raw = np.float16(2).tobytes() + (low | high << 4).astype(np.uint8).tobytes()
    found = ggml_tensor(Memory(raw), 0, (32,), BY_NAME["Q4_0"], "w", False).read_all()
    assert np.array_equal(found[0], 2.0 * (np.concatenate([low, high]) - 8))


def test_only_covering_blocks_are_read() -> None:
    tensor, _ = blocks_of("Q4_0", (4, 128))
    file = tensor.payload.file
    tensor.read((1, 3), (0, 128))
    tensor.read((2, 3), (33, 64))
    tensor.read((0, 2), (32, 65))
    row, block = 4 * 18, 18
    assert file.reads == [
        (OFFSET + row, 2 * row),
        (OFFSET + 2 * row + block, block),
        (OFFSET + block, 2 * block), (OFFSET + row + block, 2 * block),
    ]


@pytest.mark.parametrize("name", ["Q8_0", "Q4_K", "MXFP4"])
def test_stacks_of_experts_come_apart(name: str) -> None:
    tensor, raw = blocks_of(name, (3, 10, 512), seed=5)
    whole = reference(name, raw)
    assert tensor.grid == (3, 5120)
    for index in range(3):
        expert = Unstacked(tensor, index)
        assert expert.shape == (10, 512)
        assert expert.nbytes * 3 == tensor.nbytes
        assert_same_bits(expert.read_all(), whole[index])
        assert_same_bits(expert.read((3, 7), (5, 300)), whole[index, 3:7, 5:300])
        assert_same_bits(Rows(expert, 2, 8).read((1, 3), (1, 511)), whole[index, 3:5, 1:511])
        turned = Transposed(expert)
        assert_same_bits(turned.read((31, 65), (2, 9)), whole[index].T[31:65, 2:9])


@pytest.mark.parametrize("name", ["Q4_0", "Q6_K"])
def test_views_of_matrices(name: str) -> None:
    tensor, raw = blocks_of(name, (12, 256), seed=6)
    whole = reference(name, raw)
    pairs = whole.reshape(3, 2, 2, 256).swapaxes(1, 2).reshape(12, 256)
    assert_same_bits(RotaryPairs(tensor, 3).read((1, 11), (3, 200)), pairs[1:11, 3:200])
    runs = whole.reshape(2, 3, 2, 256)[:, 1:2].reshape(4, 256)
    assert_same_bits(Interleaved(tensor, 3, 2, 1, 1).read((1, 4), (7, 9)), runs[1:4, 7:9])
    assert_same_bits(Rows(tensor, 5, 9).read_all(), whole[5:9])
    assert_same_bits(Reshaped(tensor, (6, 512)).read((1, 5), (255, 257)), whole.reshape(6, 512)[1:5, 255:257])
    assert RotaryPairs(tensor, 3).codes((0, 1), (0, 1)) is None


def test_what_a_tensor_says_of_itself() -> None:
    tensor, raw = blocks_of("Q4_K", (2, 512))
    assert (tensor.dtype.name, tensor.dtype.packing, tensor.dtype.bits) == ("q4_k", "GGUF Q4_K", 4)
    assert tensor.nbytes == raw.size == 2 * 2 * 144
    assert tensor.size == 1024
    assert tensor.parts == ("w",)
    assert tensor.homes == {"memory.gguf"}
    assert tensor.codes((0, 1), (0, 1)) is None
    assert np.array_equal(tensor.stored[0].read_all(), raw)
    same = pickle.loads(pickle.dumps(tensor))
    assert same == tensor
    assert_same_bits(same.read_all(), reference("Q4_K", raw))


@pytest.mark.parametrize(
    ("name", "is_swapped", "reason"),
    [
        *[(name, False, f"GGUF {name} blocks have no decoder") for name in UNDECODED],
        *[(name, True, f"GGUF {name} blocks in big-endian order are not decoded") for name in ("Q4_0", "Q6_K")],
    ],
)
def test_blocks_that_are_not_decoded_keep_their_bytes(name: str, is_swapped: bool, reason: str) -> None:
    tensor, raw = blocks_of(name, (2, 512), is_swapped=is_swapped)
    assert tensor.shape == (2, 512)
    assert tensor.nbytes == raw.size
    assert tensor.grid == (1, raw.size)
    assert tensor.dtype.opaque == reason
    assert tensor.dtype.packing == f"GGUF {name}"
    assert tensor.parts == ("w",)
    assert np.array_equal(tensor.read_all(), raw.reshape(1, -1))
    assert np.array_equal(tensor.codes((0, 1), (3, 40)), raw.reshape(1, -1)[:, 3:40])
    assert pickle.loads(pickle.dumps(tensor)) == tensor


def test_without_the_package_the_commonest_blocks_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {name: blocks_of(name, (2, 256)) for name in DECODED}
    values = {name: reference(name, raw) for name, (_, raw) in wanted.items()}
    for module in [name for name in sys.modules if name.partition(".")[0] == "gguf"]:
        monkeypatch.setitem(sys.modules, module, None)
    for name, (tensor, _) in wanted.items():
        assert isinstance(tensor, Tensor)
        if name in NEEDS_PACKAGE:
            with pytest.raises(MissingPackageError) as caught:
                tensor.read_all()
            assert str(caught.value) == f"Dequantizing {name} needs gguf: pip install 'diffai-jupyter[gguf]'"
        else:
            assert_same_bits(tensor.read_all(), values[name])


def test_an_old_package_that_does_not_know_a_type(monkeypatch: pytest.MonkeyPatch) -> None:
    def older(number: int) -> None:
        msg = f"{number} is not a valid GGMLQuantizationType"
        raise ValueError(msg)

    monkeypatch.setattr(gguf, "GGMLQuantizationType", older)
    with pytest.raises(MissingPackageError, match="Dequantizing NVFP4 needs gguf"):
        blocks_of("NVFP4", (2, 256))[0].read_all()


@pytest.mark.parametrize("shape", [(0, 256), (3, 0), (0, 2, 256), (0,)])
def test_nothing(shape: tuple[int, ...]) -> None:
    tensor, _ = blocks_of("Q4_K", shape)
    assert isinstance(tensor, GgmlBlocks)
    assert tensor.nbytes == 0
    assert tensor.read_all().shape == tensor.grid
