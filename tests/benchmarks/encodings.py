"""How the numbers of a checkpoint are stored: each encoding says which arrays a tensor becomes, and makes them."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from builders import to_codes
from rtn import is_linear, nf4

Part = tuple[str, str, tuple[int, ...]]
GROUP = 64
LARGEST_FP8 = 448.0


@dataclass(frozen=True)
class Encoding:
    """Numbers as they are, in one dtype.

    Parameters
    ----------
    dtype : str
        As safetensors calls it.
    """

    dtype: str

    @property
    def title(self) -> str:
        """What tables call it."""
        return "FP8 (E4M3)" if self.dtype == "F8_E4M3" else self.dtype

    def parts(self, name: str, shape: tuple[int, ...]) -> list[Part]:
        """Return name, dtype and shape of each array that a tensor becomes."""
        return [(name, self.dtype, shape)]

    def encode(self, name: str, values: np.ndarray) -> Iterator[np.ndarray]:
        """Yield these arrays, in their order."""
        del name
        yield stored(self.dtype, values)


@dataclass(frozen=True)
class Fp8(Encoding):
    """Projections in E4M3 with a scale for each row, everything else in BF16."""

    dtype: str = "BF16"

    @property
    def title(self) -> str:
        return "FP8 with scales"

    def parts(self, name: str, shape: tuple[int, ...]) -> list[Part]:
        if not is_linear(name):
            return super().parts(name, shape)
        return [(name, "F8_E4M3", shape), (f"{name}_scale", "F32", (shape[0], 1))]

    def encode(self, name: str, values: np.ndarray) -> Iterator[np.ndarray]:
        if not is_linear(name):
            yield from super().encode(name, values)
            return
        scales = np.abs(values).max(axis=1, keepdims=True) / np.float32(LARGEST_FP8)
        yield looked_up(_fp8_codes(), values / scales)
        yield scales


@dataclass(frozen=True)
class Nf4(Encoding):
    """Projections in NF4 as bitsandbytes stores them, in blocks of 64 with a scale in F32, everything else in BF16."""

    dtype: str = "BF16"

    @property
    def title(self) -> str:
        return "4-bit NF4"

    def parts(self, name: str, shape: tuple[int, ...]) -> list[Part]:
        if not is_linear(name):
            return super().parts(name, shape)
        size = math.prod(shape)
        return [
            (name, "U8", (size // 2, 1)), (f"{name}.absmax", "F32", (size // GROUP,)),
            (f"{name}.quant_map", "F32", (16,)),
            (f"{name}.quant_state.bitsandbytes__nf4", "U8", (len(_state(shape)),)),
        ]  # fmt: skip

    def encode(self, name: str, values: np.ndarray) -> Iterator[np.ndarray]:
        if not is_linear(name):
            yield from super().encode(name, values)
            return
        blocks = values.reshape(-1, GROUP)
        largest = np.abs(blocks).max(axis=1)
        # A block of zeros has no scale; its codes stand for zero.
        codes = looked_up(_nf4_codes(), blocks / np.where(largest, largest, 1)[:, None]).reshape(-1, 2)
        yield codes[:, 0] << 4 | codes[:, 1]
        yield largest
        yield nf4().astype(np.float32)
        yield np.frombuffer(_state(values.shape), np.uint8)


F32, BF16, F16 = Encoding("F32"), Encoding("BF16"), Encoding("F16")
ENCODINGS = (F32, BF16, F16, Encoding("F8_E4M3"), Fp8(), Nf4())
"""All that the scan is measured with."""


def stored(dtype: str, values: np.ndarray) -> np.ndarray:
    """Round float32 values to nearest in a dtype, and return their codes."""
    if dtype == "BF16":
        bits = np.ascontiguousarray(values).view(np.uint32)
        # Ties go to even.
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    if dtype == "F8_E4M3":
        return looked_up(_fp8_codes(), values)
    return values.astype({"F32": np.float32, "F16": np.float16}[dtype])


def looked_up(table: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the codes of values through a table of all numbers in F16: fast, and near enough for random ones."""
    return table[values.astype(np.float16).view(np.uint16)]


def _all_halves() -> np.ndarray:
    return np.nan_to_num(np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32))


@functools.cache
def _fp8_codes() -> np.ndarray:
    return to_codes("f8_e4m3", _all_halves().clip(-LARGEST_FP8, LARGEST_FP8))


@functools.cache
def _nf4_codes() -> np.ndarray:
    levels = nf4()
    return np.searchsorted((levels[1:] + levels[:-1]) / 2, _all_halves()).astype(np.uint8)


def _state(shape: tuple[int, ...]) -> bytes:
    said = {"quant_type": "nf4", "blocksize": GROUP, "dtype": "float32", "shape": list(shape)}
    return json.dumps(said).encode()
