"""Pairs on which every analysis is tried: `from bank import BANK, pair_from`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from builders import to_codes, transformer
from optimizer_states import adam

from diffai_jupyter.checkpoint.dtypes import DTYPES, Array, dtype_of, quantized
from diffai_jupyter.checkpoint.model import Checkpoint, Training
from diffai_jupyter.checkpoint.optimizer import OptimizerState
from diffai_jupyter.checkpoint.tensor import ArrayTensor, Span
from diffai_jupyter.evidence import reported
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


def _wide() -> State:
    draw = np.random.default_rng(2)
    return {f"layers.{i}.weight": draw.normal(size=(72, 80)).astype("f4") for i in range(2)}


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


class EightBits(ArrayTensor):
    """A matrix of int8 codes with one scale for all, 1 / 64."""

    def codes(self, rows: Span, cols: Span) -> None:
        return None

    def read(self, rows: Span, cols: Span) -> Array:
        return self.array[slice(*rows), slice(*cols)] / np.float32(64)


def _quantized() -> Sides:
    state, kind = network(), quantized("int8", "int8 with one scale", 8)
    codes = {name: np.rint(64 * v).clip(-127, 127).astype("i1") for name, v in state.items() if v.ndim == 2}
    return state, {**state, **{name: EightBits(values, kind, (name,)) for name, values in codes.items()}}


def _relative_bias() -> Sides:
    """Return an encoder and a decoder with a learned bias by distance, whose columns tell how many heads there are."""
    draw, shapes = np.random.default_rng(9), {"shared.weight": (64, 32)}
    for side, layers in (("encoder", ("SelfAttention",)), ("decoder", ("SelfAttention", "EncDecAttention"))):
        for i in range(2):
            block = f"{side}.block.{i}.layer."
            for j, layer in enumerate(layers):
                shapes |= {f"{block}{j}.{layer}.{part}.weight": (32, 32) for part in "qkvo"}
                shapes[f"{block}{j}.layer_norm.weight"] = (32,)
            shapes[f"{block}{len(layers)}.DenseReluDense.wi.weight"] = (48, 32)
            shapes[f"{block}{len(layers)}.DenseReluDense.wo.weight"] = (32, 48)
        shapes[f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = (16, 4)
    state = {name: draw.normal(size=shape).astype("f4") for name, shape in shapes.items()}
    return state, noised(state, 0.05)


def _grouped() -> Sides:
    """Return tables whose tokens lie in three groups, of which some change theirs."""
    draw, groups = np.random.default_rng(7), np.arange(64) % 3
    centers, noise = draw.normal(size=(3, 48)), 0.7 * draw.normal(size=(64, 48))
    tables = (centers[those] + noise for those in (groups, np.where(np.arange(64) < 5, 0, groups)))
    a, b = ({**network(), "model.embed_tokens.weight": table.astype("f4")} for table in tables)
    return a, b


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
    "spectra asked for": lambda: (_wide(), noised(_wide(), 0.01)),
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
    "quantized": _quantized,
    "A empty": lambda: ({}, network()),
    "B empty": lambda: (network(), {}),
    "both empty": lambda: ({}, {}),
    "vocabulary grown": _grown,
    "tokens in groups": _grouped,
    "relative bias": _relative_bias,
    "heads stated": lambda: (network(), noised(network(), 0.1)),
    "renamed": _renamed,
    "hostile names": _hostile,
    "low rank": _low_rank,
    "deeper": _deeper,
    "saturated": _saturated,
    "one shifted": _one_shifted,
    "loss logged": lambda: (network(), noised(network(), 0.02)),
    "evaluations logged": lambda: (network(), noised(network(), 0.03)),
    "metrics worse": lambda: (network(), noised(network(), 0.01)),
    "optimizer kept": lambda: (network(), noised(network(), 0.02)),
}
"""Name to a function that makes the two states anew."""


def _log(end: int, fall: float, has_evaluations: bool) -> Training:
    """Return the log of a run up to step `end`: a noisy loss every 10 steps that falls by `fall`, or evaluations."""
    noise = np.random.default_rng(6).normal(size=100)
    steps = range(10, end + 1, 10)
    losses = tuple((step, 1 - fall * step / 1000 + 0.08 * float(noise[step // 10 - 1])) for step in steps)
    if not has_evaluations:
        rates = tuple((step, 1e-3 * (1 - step / 2000)) for step in steps)
        norms = tuple((step, 30.0 if step == 930 else 1 + 0.1 * float(noise[step // 10 - 1])) for step in steps)
        found = {"losses": losses, "lr": rates, "grad_norms": norms}
        return Training(step=reported(end, "log"), **{name: reported(log, "log") for name, log in found.items()})
    evaluations = {"eval_loss": losses, "eval_accuracy": tuple((step, 1 - loss / 2) for step, loss in losses)}
    return Training(step=reported(end, "log"), metrics=reported(evaluations, "log"))


def _stated(**metrics: float) -> Training:
    return Training(final=reported(metrics, "eval_results.json"))


LOGS: Mapping[str, tuple[Training, Training]] = {
    "loss logged": (_log(800, 0.05, False), _log(1000, 0.05, False)),
    "evaluations logged": (_log(200, 0.8, True), _log(1000, 0.8, True)),
    "metrics worse": (_stated(accuracy=0.90, f1=0.80), _stated(accuracy=0.80, f1=0.81)),
}
"""Name to the logs of the two, for those that have one."""


def _kept() -> OptimizerState:
    """Return a state of Adam in which the gradient vanishes over depth, and one tensor gets none."""
    draw, state = np.random.default_rng(8), network()
    scales = np.geomspace(1e-7, 1e-3, len(state))
    found = {name: scale * draw.normal(size=state[name].shape) for scale, name in zip(scales, state, strict=True)}
    return adam({name: [0 * gradient if name == UP else gradient] * 5 for name, gradient in found.items()})


OPTIMIZERS: Mapping[str, Callable[[], OptimizerState]] = {"optimizer kept": _kept}
"""Name to the state of the optimizer of B, for those that have one."""


CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "heads stated": {
        "num_attention_heads": 6, "num_key_value_heads": 6, "alibi": True, "architectures": ["OwnForCausalLM"],
        "max_position_embeddings": 64,
    },
}  # fmt: skip
"""Name to the configuration of both, for those that have one."""

SPECTRAL = frozenset({"spectra asked for"})
"""Pairs that are compared with ``--spectral``."""


def pair_from(
    sides: Sides, logs: tuple[Training, ...] = (Training(), Training()), kept: OptimizerState | None = None,
    config: Mapping[str, Any] | None = None,
) -> Pair:  # fmt: skip
    """Pair two states whose values are arrays or tensors."""
    a, b = (replace(_opened(side, log), config=config or {}) for side, log in zip(sides, logs, strict=True))
    return pair_checkpoints(a, replace(b, optimizer_state=kept))


def pair_anew(name: str, sides: Sides) -> Pair:
    """Return a pair of the bank with nothing remembered, from its two states."""
    logs = LOGS.get(name, (Training(), Training()))
    pair = pair_from(sides, logs, OPTIMIZERS[name]() if name in OPTIMIZERS else None, CONFIGS.get(name))
    pair.is_spectral = name in SPECTRAL
    return pair


@functools.cache
def pair_called(name: str) -> Pair:
    """Return a pair of the bank, made once: the facts that one test asks for serve the next."""
    return pair_anew(name, BANK[name]())


def _opened(state: State, log: Training) -> Checkpoint:
    tensors = {
        name: value if isinstance(value, ArrayTensor) else ArrayTensor(value, dtype_of(value), (name,))
        for name, value in sorted(state.items())
    }
    source = "`<b>|x` $y$ *z*" if HOSTILE[0] in state else "memory"
    return Checkpoint(source, "live", tensors, training=log)


def bytes_of(sides: Sides) -> list[tuple[str, bytes]]:
    """Return every stored byte of two states."""
    return [
        (name, (value.array if isinstance(value, ArrayTensor) else value).tobytes())
        for side in sides
        for name, value in side.items()
    ]
