"""Pairs on which every analysis is tried: `from bank import BANK, pair_from`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from builders import to_codes, transformer

from diffai_jupyter.checkpoint.dtypes import DTYPES, dtype_of
from diffai_jupyter.checkpoint.model import Checkpoint
from diffai_jupyter.checkpoint.tensor import ArrayTensor
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.scan.pairing import pair_checkpoints

State = dict[str, Any]
Sides = tuple[State, State]

UP = "model.layers.1.mlp.up_proj.weight"
HOSTILE = (
    "<b>|x",
    "$y$",
    "a`b*c_d_[e](f)",
    "line\nbreak\x1b[31m",
    "\u202eevil",
    "</pre><i>",
    "{0}{key}",
    "= 1 | 2",
)


def network() -> State:
    return transformer(layers=3, hidden=48, inner=64, vocab=64)


def noised(state: Mapping[str, Any], share: float, seed: int = 11) -> State:
    """Return a state in which every float tensor moved by `share` of its root mean square."""
    draw = np.random.default_rng(seed)
    moved = dict(state)
    for name, values in state.items():
        step = share * np.sqrt(np.mean(np.square(values, dtype=np.float64)) or 1.0)
        moved[name] = (values + step * draw.normal(size=values.shape)).astype(values.dtype)
    return moved


def codes_of(dtype: str, state: Mapping[str, Any]) -> dict[str, ArrayTensor]:
    """Return the float tensors of a state as stored in `dtype`."""
    return {
        name: ArrayTensor(to_codes(dtype, values), DTYPES[dtype], (name,)) for name, values in state.items()
    }


def _with(state: State, name: str, place: tuple[int, ...], value: float) -> State:
    changed = {**state, name: state[name].copy()}
    changed[name][place] = value
    return changed


def _nonfinite() -> Sides:
    state = network()
    return state, _with(_with(noised(state, 0.01), UP, (3, 5), np.nan), UP, (4, 5), -np.inf)


def _nonfinite_twice() -> Sides:
    state = _with(network(), UP, (3, 5), np.nan)
    return state, dict(state)


def _nothing() -> Sides:
    draw = np.random.default_rng(1)
    shapes = {"conv1.weight": (16, 3, 3, 3), "conv2.weight": (32, 16, 3, 3), "fc.weight": (10, 32)}
    return network(), {name: draw.normal(size=shape).astype("f4") for name, shape in shapes.items()}


def _in_dtype(dtype: str) -> Sides:
    state = network()
    return codes_of(dtype, state), codes_of(dtype, noised(state, 0.02))


def _buffers() -> Sides:
    draw = np.random.default_rng(2)
    state = {f"b{i}.bias_table": draw.integers(-99, 99, (30, 40), dtype=np.int8) for i in range(3)}
    return state, {**state, "b1.bias_table": state["b1.bias_table"] // 2}


def _retyped() -> Sides:
    state = network()
    return state, {**state, **codes_of("bf16", {UP: state[UP]})}


def _grown() -> Sides:
    state = network()
    rows = np.random.default_rng(3).normal(size=(8, 48)).astype("f4")
    names = ("model.embed_tokens.weight", "lm_head.weight")
    return state, {**state, **{name: np.concatenate([state[name], rows]) for name in names}}


def _renamed() -> Sides:
    state = network()
    return state, {name.replace("model.layers", "transformer.h"): values for name, values in state.items()}


def _hostile() -> Sides:
    draw = np.random.default_rng(4)
    state = {f"{name}.weight": draw.normal(size=(50, 44)).astype("f4") for name in HOSTILE}
    state |= {name: draw.normal(size=(50, 44)).astype("f4") for name in HOSTILE}
    # One of them grows a row, so that names reach the tables of structural differences, too.
    changed = noised(state, 3.0)
    # And there are alarms about the worst of them.
    for name in ("line\nbreak\x1b[31m", "$y$"):
        changed[name][0, 0] = np.nan
    changed["<b>|x.weight"][7] = 0
    return state, {**changed, "<b>|x": np.ones((51, 44), "f4"), "$new$|<b>": np.ones((2, 2), "f4")}


def _low_rank() -> Sides:
    state, draw = network(), np.random.default_rng(5)
    update = draw.normal(size=(64, 2)) @ draw.normal(size=(2, 48)) * 0.05
    return state, {**state, UP: (state[UP] + update).astype("f4")}


def _deeper() -> Sides:
    return transformer(layers=2, hidden=48, inner=64, vocab=64), network()


def _saturated() -> Sides:
    state = {name: values.astype("f2") for name, values in network().items()}
    clipped = state[UP].copy()
    clipped[:, 0], clipped[:, 1] = 65504, 1e-6
    return state, {**state, UP: clipped}


def _one_shifted() -> Sides:
    state = network()
    moved = noised(state, 0.01)
    # About 0.5 in PSI, and no other limit is reached.
    return state, {**moved, UP: (state[UP] * 1.6).astype("f4")}


BANK: Mapping[str, Callable[[], Sides]] = {
    "equal": lambda: (network(), network()),
    "moved": lambda: (network(), noised(network(), 0.01)),
    "moved more": lambda: (network(), noised(network(), 3.0)),
    "nothing in common": _nothing,
    "nan and inf in B": _nonfinite,
    "nan on both sides": _nonfinite_twice,
    "A all zero": lambda: ({name: 0 * v for name, v in network().items()}, network()),
    "empty tensors only": lambda: ({"w": np.zeros((0, 4), "f4"), "v": np.zeros(0, "f4")},) * 2,
    "0-d only": lambda: ({"s": np.array(1.5, "f4"), "t": np.array(2.0, "f4")}, {"s": np.array(3.0, "f4")}),
    "fp16": lambda: _in_dtype("f16"),
    "bf16": lambda: _in_dtype("bf16"),
    "int8 buffers only": _buffers,
    "retyped": _retyped,
    "A empty": lambda: ({}, network()),
    "B empty": lambda: (network(), {}),
    "both empty": lambda: ({}, {}),
    "vocabulary grown": _grown,
    "renamed": _renamed,
    "hostile names": _hostile,
    "low rank": _low_rank,
    "deeper": _deeper,
    "saturated": _saturated,
    "one shifted": _one_shifted,
}
"""Name to a function that makes the two states anew."""


def pair_from(sides: Sides) -> Pair:
    """Pair two states whose values are arrays or tensors."""
    return pair_checkpoints(*(_opened(side) for side in sides))


@functools.cache
def pair_called(name: str) -> Pair:
    """Return a pair of the bank, made once: the facts that one test asks for serve the next."""
    return pair_from(BANK[name]())


def _opened(state: State) -> Checkpoint:
    tensors = {
        name: value if isinstance(value, ArrayTensor) else ArrayTensor(value, dtype_of(value), (name,))
        for name, value in sorted(state.items())
    }
    return Checkpoint("`<b>|x` $y$ *z*" if HOSTILE[0] in state else "memory", "live", tensors)


def bytes_of(sides: Sides) -> list[tuple[str, bytes]]:
    """Return every stored byte of two states."""
    return [
        (name, (value.array if isinstance(value, ArrayTensor) else value).tobytes())
        for side in sides
        for name, value in side.items()
    ]
