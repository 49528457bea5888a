"""For each reason code a pair that it applies to and one that it just does not: `from code_pairs import case`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from bank import noised
from builders import checkpoint_of, transformer

from diffai_jupyter.checkpoint.dtypes import Array, Dtype, quantized
from diffai_jupyter.checkpoint.model import Checkpoint, Tokenizer, Training
from diffai_jupyter.checkpoint.tensor import Span, Tensor
from diffai_jupyter.evidence import reported
from diffai_jupyter.facts import give
from diffai_jupyter.facts.training.gradients import Gradient, Gradients, Source, gradients
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.scan.pairing import pair_checkpoints

State = dict[str, Any]
Make = Callable[[], Pair]
UP = "model.layers.0.mlp.up_proj.weight"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
LAYERS, HIDDEN, INNER, VOCAB = 1, 64, 96, 80
CONFIG: Mapping[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "hidden_act": "silu",
}  # fmt: skip


@dataclass(frozen=True)
class Packed(Tensor):
    """A matrix that decodes to `values` and is stored in `bits` for each element."""

    values: Array
    bits: int
    parts: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return tuple(self.values.shape)

    @property
    def dtype(self) -> Dtype:  # type: ignore[override]
        return quantized(f"test{self.bits}", "test", self.bits)

    @property
    def nbytes(self) -> int:  # type: ignore[override]
        return self.bits * self.size // 8

    def codes(self, rows: Span, cols: Span) -> Array | None:
        return None

    def read(self, rows: Span, cols: Span) -> Array:
        return np.asarray(self.values.reshape(self.grid)[slice(*rows), slice(*cols)])


def rounded(values: np.ndarray, levels: int, group: int = 32) -> np.ndarray:
    """Round each group of neighbours to nearest on `levels` steps either side of zero, scaled by its largest value."""
    grouped = values.astype("f8").reshape(-1, group)
    step = np.abs(grouped).max(axis=1, keepdims=True) / levels
    return (np.rint(grouped / np.where(step, step, 1)) * step).reshape(values.shape).astype("f4")


def packed(state: State, levels: int, bits: int) -> State:
    """Return a state whose matrices are stored quantized."""
    return {
        name: Packed(rounded(values, levels), bits, (name,)) if values.ndim == 2 else values
        for name, values in state.items()
    }


def network(seed: int = 0, layers: int = LAYERS, hidden: int = HIDDEN, vocab: int = VOCAB) -> State:
    """Return a state dict with values that no 16-bit dtype holds exactly."""
    state = transformer(seed, layers, hidden, INNER, vocab)
    draw = np.random.default_rng(seed + 100)
    return {name: (v * (1 + 1e-3 * draw.uniform(size=v.shape))).astype("f4") for name, v in state.items()}


def opened(state: State, **said: Any) -> Checkpoint:
    """Return a checkpoint of arrays and tensors; `said` are its fields."""
    plain = {name: value for name, value in state.items() if not isinstance(value, Tensor)}
    checkpoint = checkpoint_of(plain)
    tensors = {**checkpoint.tensors, **{name: value for name, value in state.items() if isinstance(value, Tensor)}}
    return replace(checkpoint, tensors=dict(sorted(tensors.items())), **said)


def with_metrics(**values: float) -> Training:
    return Training(final=reported(values, "eval_results.json"))


def pair(a: State, b: State, of_a: Mapping[str, Any] | None = None, of_b: Mapping[str, Any] | None = None) -> Pair:
    return pair_checkpoints(opened(a, **(of_a or {})), opened(b, **(of_b or {})))


def tuned(of_a: Mapping[str, Any] | None = None, of_b: Mapping[str, Any] | None = None, **changes: Any) -> Pair:
    """Return a network and the same a little further, with some of B's tensors replaced."""
    a = network()
    return pair(a, {**noised(a, 0.005), **changes}, of_a, of_b)


def metrics(a: Mapping[str, float], b: Mapping[str, float]) -> Pair:
    return tuned({"training": with_metrics(**a)}, {"training": with_metrics(**b)})


def configured(a: Mapping[str, Any], b: Mapping[str, Any]) -> Pair:
    return tuned({"config": {**CONFIG, **a}}, {"config": {**CONFIG, **b}})


def _with(name: str, change: Callable[[np.ndarray], None]) -> State:
    values = noised(network(), 0.005)[name].copy()
    change(values)
    return {name: values}


def _put(value: float, *places: int) -> Callable[[np.ndarray], None]:
    def put(values: np.ndarray) -> None:
        values.flat[list(places)] = value

    return put


def _dead(rows: int) -> Callable[[np.ndarray], None]:
    def kill(values: np.ndarray) -> None:
        values[:rows] = 0

    return kill


def _in_f16(value: float) -> Pair:
    a = {name: values.astype("f2") for name, values in network().items()}
    b = {name: values.astype("f2") for name, values in noised(network(), 0.005).items()}
    b[UP].flat[3] = value
    return pair(a, b)


def _tied(state: State) -> State:
    return {**state, HEAD: state[EMBEDDING]}


def _ties(is_kept: bool) -> Pair:
    a = _tied(network())
    b = noised(a, 0.005)
    return pair(a, _tied(b) if is_kept else b)


def scaled(count: int) -> Pair:
    """Return a pair in which some matrices grew by more than half, which moves their distribution."""
    a = network(layers=4)
    chosen = [name for name in a if "mlp" in name][:count]
    return pair(a, noised(a, 0.005) | {name: (a[name] * 1.6).astype("f4") for name in chosen})


def with_gradients(*sizes: float) -> Pair:
    """Return a pair whose optimizer kept gradients of these root mean squares, from the first matrix to the last."""
    made = tuned()
    kept = tuple(
        Gradient(f"l{i}.weight", f"l{i}", True, (8, 8), True, 64, 64 * size * size) for i, size in enumerate(sizes)
    )
    give(made, gradients, Gradients(Source.ADAM, "optimizer.pt", kept, ()))
    return made


def with_subnormals() -> Pair:
    """Return a pair in which some elements became too small to be normal numbers."""
    return tuned(**_with(UP, _put(1e-40, *range(30))))


def copied(levels: int, bits: int) -> Pair:
    return pair(network(), packed(network(), levels, bits))


def stored_as(dtype: str) -> Pair:
    """Return the same numbers, which f32 holds, in another dtype."""
    a = {name: values.astype("f4") for name, values in transformer(layers=LAYERS).items()}
    return pair(a, {name: values.astype(dtype) for name, values in a.items()})


def tokenizers(a: str, b: str, is_file: bool = True) -> Pair:
    def said(digest: str) -> dict[str, Any]:
        tokenizer = Tokenizer(digest, VOCAB, ("tokenizer.json",)) if digest else None
        return {"tokenizer": tokenizer, "files": ("a file",) if is_file else ()}

    return tuned(said(a), said(b))


def _norms(usual: float, last: float) -> Pair:
    """Return a pair with a log of gradient norms that ends in a jump."""
    log = (*((step, usual) for step in range(100)), (100, last))
    return tuned(of_b={"training": Training(step=reported(100, "log"), grad_norms=reported(log, "log"))})


def _grown(share: float) -> Pair:
    a = {"w": np.ones((10, 20), "f4")}
    rows = round(200 * share / 20)
    return pair(a, {"w": 2 * a["w"], "v": np.ones((rows, 20), "f4")})


CASES: Mapping[str, tuple[Make, Make]] = {
    "NONFINITE": (
        lambda: tuned(**_with(UP, _put(np.nan, 5))),
        lambda: pair(*[{**network(), **_with(UP, _put(np.nan, 5))}] * 2),
    ),
    "UNLOADABLE": (
        lambda: tuned(of_b={"missing": ("model.layers.9.mlp.up_proj.weight",)}),
        lambda: tuned(of_a={"missing": ("model.layers.9.mlp.up_proj.weight",)}),
    ),
    "METRIC_CRIT": (
        lambda: metrics({"accuracy": 0.90}, {"accuracy": 0.81}),
        lambda: metrics({"accuracy": 0.90}, {"accuracy": 0.8101}),
    ),
    "METRIC_WARN": (
        lambda: metrics({"loss": 2.0}, {"loss": 2.1}),
        lambda: metrics({"loss": 2.0}, {"loss": 2.099}),
    ),
    "METRIC_UNKNOWN": (tuned, lambda: metrics({"loss": 2.0}, {"loss": 1.9})),
    "INTERFACE": (
        lambda: pair(network(), network(vocab=VOCAB + 8)),
        lambda: pair(network(), network(hidden=HIDDEN + 32)),
    ),
    "ARCH": (
        lambda: pair(network(), network(layers=LAYERS + 1)),
        lambda: pair(network(), network(vocab=VOCAB + 8)),
    ),
    "CONFIG": (
        lambda: configured({}, {"hidden_act": "gelu"}),
        lambda: configured({}, {"dropout": 0.1, "torch_dtype": "float32"}),
    ),
    "TOKENIZER": (lambda: tokenizers("one", "other"), lambda: tokenizers("one", "one")),
    "TIE_BROKEN": (lambda: _ties(False), lambda: _ties(True)),
    "SATURATION": (lambda: _in_f16(65504.0), lambda: _in_f16(65472.0)),
    "QUANT_POOR": (lambda: copied(2, 3), lambda: copied(4, 4)),
    "QUANT_FAIR": (lambda: copied(4, 4), lambda: copied(7, 4)),
    "SHIFT_MANY": (lambda: scaled(12), lambda: scaled(2)),
    "SHIFT_FEW": (lambda: scaled(1), lambda: scaled(0)),
    "INDEPENDENT": (lambda: pair(network(), network(seed=1)), tuned),
    "GRAD": (lambda: _norms(3.0, 40.0), lambda: _norms(3.0, 4.0)),
    "MEMORY": (lambda: _grown(0.2), lambda: _grown(0.1)),
    "LATENCY": (lambda: pair(network(), network(layers=LAYERS + 1)), tuned),
    "DTYPE": (lambda: stored_as("f2"), lambda: stored_as("f4")),
    "PICKLE": (lambda: tuned(of_b={"format": "pytorch"}), lambda: tuned(of_a={"format": "pytorch"})),
    "DEAD_UNITS": (
        lambda: tuned(**_with(UP, _dead(3))),
        lambda: tuned(**_with(UP, _dead(1))),
    ),
}  # fmt: skip
"""Code to a pair that triggers it and one that does not."""


@functools.cache
def case(code: str, applies: bool = True) -> Pair:
    """Return one of the two pairs of a code, made once: the facts that one test asks for serve the next."""
    return CASES[code][0 if applies else 1]()


def evaluated(a: Mapping[str, float], b: Mapping[str, float]) -> Pair:
    """Return a pair whose metrics were measured by running both models."""
    found = tuned()
    answers = [a, b]
    found.evaluate = lambda model: answers.pop(0)
    return found
