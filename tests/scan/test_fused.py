"""One network under the names and in the arrangements of several families: every matrix finds its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from builders import checkpoint_of, transformer

from diffai_jupyter.facts.change.changes import Status, changes
from diffai_jupyter.facts.change.update_type import Kind, update_type
from diffai_jupyter.scan.pair import Pair, PairedTensor, Rule
from diffai_jupyter.scan.pairing import pair_checkpoints

State = dict[str, np.ndarray]
DRAW = np.random.default_rng(5)
HIDDEN, HEADS, KV, LAYERS = 48, 6, 2, 2
WIDTH = HIDDEN // HEADS


def matrix(rows: int, cols: int) -> np.ndarray:
    return DRAW.normal(size=(rows, cols)).astype("f4")


def grouped(kv: int = KV) -> State:
    """Return attention blocks with `kv` key/value heads, all projections by themselves."""
    state = {"model.embed_tokens.weight": matrix(40, HIDDEN), "lm_head.weight": matrix(40, HIDDEN)}
    for i in range(LAYERS):
        for name, rows in (("q", HEADS), ("k", kv), ("v", kv)):
            state[f"model.layers.{i}.self_attn.{name}_proj.weight"] = matrix(rows * WIDTH, HIDDEN)
            state[f"model.layers.{i}.self_attn.{name}_proj.bias"] = matrix(1, rows * WIDTH)[0]
        state[f"model.layers.{i}.self_attn.o_proj.weight"] = matrix(HIDDEN, HIDDEN)
        state[f"model.layers.{i}.mlp.gate_proj.weight"] = matrix(80, HIDDEN)
        state[f"model.layers.{i}.mlp.up_proj.weight"] = matrix(80, HIDDEN)
        state[f"model.layers.{i}.mlp.down_proj.weight"] = matrix(HIDDEN, 80)
    return state


def fused(state: State, name: str, join: Any, parts: str = "qkv") -> State:
    """Return the state with q, k and v of each block joined by `join` under `name`."""
    other = dict(state)
    for i in range(LAYERS):
        for kind in ("weight", "bias"):
            found = [other.pop(f"model.layers.{i}.self_attn.{part}_proj.{kind}") for part in parts]
            other[f"model.layers.{i}.self_attn.{name}.{kind}"] = join(*found)
    return other


def contiguous(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.concatenate([q, k, v])


def interleaved(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Falcon's grouped arrangement; with as many key as query heads that of BLOOM and GPT-NeoX."""
    groups = len(k) // WIDTH
    heads = [part.reshape(groups, -1, WIDTH, *part.shape[1:]) for part in (q, k, v)]
    return np.concatenate(heads, axis=1).reshape(-1, *q.shape[1:])


def codegen(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    parts = [part.reshape(4, -1, *part.shape[1:]) for part in (q, v, k)]
    return np.concatenate(parts, axis=1).reshape(-1, *q.shape[1:])


def conv1d(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    return contiguous(q, k, v).T.copy() if q.ndim == 2 else contiguous(q, k, v)


CASES: dict[str, tuple[int, str, Any, dict[str, Any]]] = {
    "phi3": (KV, "qkv_proj", contiguous, {}),
    "mpt": (HEADS, "Wqkv", contiguous, {}),
    "bloom": (HEADS, "query_key_value", interleaved, {"n_head": HEADS}),
    "neox without a configuration": (HEADS, "query_key_value", interleaved, {}),
    "falcon": (KV, "query_key_value", interleaved,
               {"num_attention_heads": HEADS, "num_kv_heads": KV, "new_decoder_architecture": True}),
    "falcon with one key": (1, "query_key_value", contiguous, {"num_attention_heads": HEADS, "multi_query": True}),
    "chatglm": (KV, "query_key_value", contiguous, {"num_attention_heads": HEADS, "num_key_value_heads": KV}),
    "bigcode": (1, "c_attn", contiguous, {"n_head": HEADS, "multi_query": True}),
    "gpt2": (HEADS, "c_attn", conv1d, {}),
    "codegen": (HEADS, "qkv_proj", codegen, {"model_type": "codegen", "n_head": HEADS}),
}  # fmt: skip


def pair(a: State, b: State, config_a: Any = None, config_b: Any = None, formats: Any = ("x", "x")) -> Pair:
    sides = [checkpoint_of(state, config=config or {}) for state, config in ((a, config_a), (b, config_b))]
    for side, form in zip(sides, formats, strict=True):
        object.__setattr__(side, "format", form)
    return pair_checkpoints(*sides)


def pieces(found: Pair) -> list[PairedTensor]:
    return [change.tensor for change in changes(found) if change.tensor.rule is Rule.PIECE]


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_fused_and_split_projections_of_one_network_are_equal(case: str, turned: bool) -> None:
    kv, name, join, config = CASES[case]
    state = grouped(kv)
    sides = [(state, {}), (fused(state, name, join), config)]
    (a, config_a), (b, config_b) = reversed(sides) if turned else sides
    found = pair(a, b, config_a, config_b)
    assert {change.status for change in changes(found)} == {Status.EQUAL}
    assert update_type(found).kind is Kind.RENAMED
    assert len(pieces(found)) == 6 * LAYERS
    # every stored name is in exactly one place
    for side, stored in (("a", a), ("b", b)):
        named = [t.name_a if side == "a" else t.name_b for t in found.tensors]
        assert set(named) == set(stored)


def test_a_planted_change_is_found_in_its_piece_alone() -> None:
    state = grouped()
    other = dict(state)
    name = "model.layers.1.self_attn.k_proj.weight"
    other[name] = other[name] + np.float32(0.5)
    found = pair(fused(state, "qkv_proj", contiguous), other)
    moved = [change.tensor for change in changes(found) if change.status is Status.CHANGED]
    assert [(t.shown_name, t.name_b, t.part.role) for t in moved] == [
        ("model.layers.1.self_attn.qkv_proj.weight[k]", name, "k")
    ]


def test_two_ways_to_fuse_are_compared_piece_by_piece() -> None:
    state = grouped(HEADS)
    a, b = fused(state, "query_key_value", interleaved), fused(state, "attn_qkv", contiguous)
    found = pair(a, b, {"n_head": HEADS}, {"n_head": HEADS})
    assert {change.status for change in changes(found)} == {Status.EQUAL}
    assert len(pieces(found)) == 6 * LAYERS


def test_a_fused_tensor_without_fitting_parts_stays_whole() -> None:
    state = grouped()
    b = fused(state, "qkv_proj", contiguous)
    for i in range(LAYERS):
        b[f"model.layers.{i}.self_attn.qkv_proj.weight"] = matrix(7, HIDDEN)
    rules = {t.name_b or t.name_a: t.rule for t in pair(state, b).tensors}
    assert rules["model.layers.0.self_attn.qkv_proj.weight"] is Rule.ADDED
    assert rules["model.layers.0.self_attn.q_proj.weight"] is Rule.REMOVED


def test_what_has_no_partner_in_a_cut_tensor_is_listed() -> None:
    state = grouped()
    a = {name: values for name, values in state.items() if "v_proj" not in name}
    config = {"num_attention_heads": HEADS, "num_key_value_heads": KV}
    found = pair(a, fused(state, "qkv_proj", contiguous), {}, config)
    assert {t.rule for t in found.tensors if t.part.role == "v"} == {Rule.ADDED}


@pytest.mark.parametrize("is_interleaved", [False, True])
def test_gate_and_up_in_one(is_interleaved: bool) -> None:
    state = grouped()
    other = dict(state)
    for i in range(LAYERS):
        gate, up = (other.pop(f"model.layers.{i}.mlp.{name}_proj.weight") for name in ("gate", "up"))
        both = np.stack([gate, up], axis=1).reshape(160, -1) if is_interleaved else np.concatenate([gate, up])
        other[f"model.layers.{i}.mlp.gate_up_proj.weight"] = both
    found = pair(state, other)
    assert {change.status for change in changes(found)} == {Status.EQUAL}
    words = {tensor.how for tensor in pieces(found)}
    assert all(("interleaved" in word.split(":")[0]) is is_interleaved for word in words)


def experts(stacked: str) -> tuple[State, State]:
    """Return separate experts as Mixtral had them, and the same in stacks."""
    apart: State = {}
    stacks: State = {}
    for i in range(LAYERS):
        w1, w3 = ([matrix(20, HIDDEN) for _ in range(4)] for _ in range(2))
        w2 = [matrix(HIDDEN, 20) for _ in range(4)]
        for e in range(4):
            for number, values in ((1, w1), (2, w2), (3, w3)):
                apart[f"model.layers.{i}.block_sparse_moe.experts.{e}.w{number}.weight"] = values[e]
        if stacked == "gguf":
            for name, values in (("gate", w1), ("down", w2), ("up", w3)):
                stacks[f"blk.{i}.ffn_{name}_exps.weight"] = np.stack(values)
        else:
            both = np.stack([np.concatenate([gate, up]) for gate, up in zip(w1, w3, strict=True)])
            if stacked == "gpt-oss":
                both = np.stack([np.stack([g, u], axis=1).reshape(40, -1) for g, u in zip(w1, w3, strict=True)])
                both, w2 = both.swapaxes(1, 2).copy(), [values.T.copy() for values in w2]
            stacks[f"model.layers.{i}.mlp.experts.gate_up_proj"] = both
            stacks[f"model.layers.{i}.mlp.experts.down_proj"] = np.stack(w2)
    return apart, stacks


@pytest.mark.parametrize("stacked", ["gguf", "mixtral", "gpt-oss"])
@pytest.mark.parametrize("turned", [False, True])
def test_stacked_and_separate_experts(stacked: str, turned: bool) -> None:
    apart, stacks = experts(stacked)
    found = pair(stacks, apart) if turned else pair(apart, stacks)
    assert {change.status for change in changes(found)} == {Status.EQUAL}
    assert len(pieces(found)) == 12 * LAYERS


def gguf_of(state: State, heads: int, kv: int) -> State:
    """Name a Llama-like state as llama.cpp does, with the rows of queries and keys in rotary pairs."""
    places = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
        "model.layers": "blk", "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    }  # fmt: skip
    other = {}
    for name, values in state.items():
        for role, count in (("q_proj.weight", heads), ("k_proj.weight", kv)):
            if name.endswith(role):
                halves = values.reshape(count, 2, len(values) // count // 2, -1)
                values = halves.swapaxes(1, 2).reshape(values.shape)
        for old, new in places.items():
            name = name.replace(old, new)
        other[name] = values
    return other


@pytest.mark.parametrize("turned", [False, True])
def test_rows_that_converters_to_gguf_reorder_are_put_back(turned: bool) -> None:
    heads = {name: values for name, values in grouped().items() if "q_proj.w" in name or "k_proj.w" in name}
    state = {**transformer(layers=2, hidden=48), **heads}
    config = {"num_attention_heads": HEADS, "num_key_value_heads": KV}
    other = gguf_of(state, HEADS, KV)
    found = (
        pair(other, state, config, {}, ("gguf", "safetensors")) if turned
        else pair(state, other, {}, config, ("safetensors", "gguf"))
    )
    assert {change.status for change in changes(found)} == {Status.EQUAL}
    said = [change.tensor.how for change in changes(found) if change.tensor.part.role in ("q", "k")]
    assert len(said) == 4
    assert all(word.startswith("rotary pairs of GGUF put back: relative difference 0, otherwise 1.") for word in said)
    # and rows that were not reordered are left alone
    plain = gguf_of(state, HEADS, KV) | {
        name.replace("model.layers", "blk").replace("self_attn.q_proj", "attn_q"): values
        for name, values in state.items() if "q_proj" in name
    }
    found = pair(state, plain, {}, config, ("safetensors", "gguf"))
    assert {change.status for change in changes(found)} == {Status.EQUAL}


def test_square_matrices_are_turned_where_others_show_that_all_are() -> None:
    state = transformer(layers=2, hidden=48)
    turned = {name: v.T.copy() if "proj" in name else v for name, v in state.items()}
    found = pair(state, turned)
    assert {change.status for change in changes(found)} == {Status.EQUAL}
    square = [c.tensor for c in changes(found) if "q_proj" in c.tensor.shown_name]
    assert all(tensor.how.startswith("transposed: relative difference 0") for tensor in square)
    # without a matrix whose shape tells, square ones are compared as they stand
    squares = {name: v for name, v in state.items() if "self_attn" in name}
    found = pair(squares, {name: v.T.copy() for name, v in squares.items()})
    assert {change.status for change in changes(found)} == {Status.CHANGED}


@pytest.mark.parametrize("turned", [False, True])
def test_a_tied_head_is_compared_with_the_embedding(turned: bool) -> None:
    state = transformer(layers=1)
    state["lm_head.weight"] = state["model.embed_tokens.weight"].copy()
    less = {name: values for name, values in state.items() if name != "lm_head.weight"}
    for config in ({}, {"tie_word_embeddings": True}):
        found = pair(less, state, config) if turned else pair(state, less, {}, config)
        assert {change.status for change in changes(found)} == {Status.EQUAL}, config
        assert [c.tensor.rule for c in changes(found)].count(Rule.TIED) == 1
    # a head of its own is no copy of the embedding
    own = {**state, "lm_head.weight": state["lm_head.weight"] + 1}
    found = pair(less, own) if turned else pair(own, less)
    assert [c.status for c in changes(found)].count(Status.ADDED if turned else Status.REMOVED) == 1


def test_names_that_differ_in_separators() -> None:
    state = transformer(layers=1)
    found = pair(state, {name.replace(".", "_"): values for name, values in state.items()})
    assert {t.rule for t in found.tensors} == {Rule.SEPARATORS}


def test_vectors_as_columns() -> None:
    values = np.arange(7, dtype="f4")
    for other in (values[:, np.newaxis], values[np.newaxis]):
        found = pair({"w": values}, {"w": other})
        assert [change.status for change in changes(found)] == [Status.EQUAL]


def test_a_sample_without_finite_values_decides_nothing_and_says_so() -> None:
    state = transformer(layers=1, hidden=48)
    name = "model.layers.0.self_attn.q_proj.weight"
    state[name] = np.full_like(state[name], np.nan)
    config = {"num_attention_heads": HEADS}
    found = pair(state, gguf_of(state, HEADS, HEADS), {}, config, ("safetensors", "gguf"))
    (tensor,) = [change.tensor for change in changes(found) if change.tensor.name_a == name]
    assert tensor.how == "as stored: nothing in the sample is finite on both sides"
