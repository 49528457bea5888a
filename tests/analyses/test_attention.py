"""attention-analysis: known heads, layouts of one model, and what cannot be known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from bank import noised
from builders import checkpoint_of, to_codes, transformer

from diffai_jupyter.analyses import all_analyses
from diffai_jupyter.analyses.shown.attention_pictures import MOST_CELLS, head_map
from diffai_jupyter.checkpoint.dtypes import DTYPES
from diffai_jupyter.checkpoint.model import Checkpoint
from diffai_jupyter.checkpoint.tensor import ArrayTensor
from diffai_jupyter.contract.blocks import Matrix, Sentence, Table
from diffai_jupyter.contract.result import Result
from diffai_jupyter.evidence import Evidence
from diffai_jupyter.scan.pairing import pair_checkpoints

State = dict[str, np.ndarray]
ANALYSIS = all_analyses()["attention-analysis"]
HEADS, SHARED, SIZE, HIDDEN = 8, 4, 8, 64
CONFIG: dict[str, Any] = {"model_type": "llama", "num_attention_heads": HEADS, "num_key_value_heads": SHARED}
Q = "model.layers.1.self_attn.q_proj.weight"


def grouped(seed: int = 0, layers: int = 3) -> State:
    """Return a LLaMA with 8 heads of 8 rows, two of them on each key; gains are not one."""
    state, draw = transformer(seed, layers=layers, hidden=HIDDEN, inner=96), np.random.default_rng(seed + 100)
    for name in state:
        if "k_proj" in name or "v_proj" in name:
            state[name] = state[name][: SHARED * SIZE]
        if "norm" in name:
            state[name] = draw.uniform(0.5, 1.5, HIDDEN).astype("f4")
    return state


def result_of(a: State, b: State, config: Any = CONFIG, config_b: Any = None, least: float = 0.95) -> Result:
    sides = checkpoint_of(a, config=config), checkpoint_of(b, config=config if config_b is None else config_b)
    return ANALYSIS.run(pair_checkpoints(*sides), {"qk_changed": least})


def numbers(result: Result) -> dict[str, object]:
    return {key: value.value for key, value in result.values.items()}


def reasons(result: Result) -> dict[str, str | None]:
    return {key: value.reason for key, value in result.values.items()}


def table(result: Result, title: str) -> Table:
    return {block.title: block for block in result.blocks if isinstance(block, Table)}[title]


def maps(result: Result) -> dict[str, Matrix]:
    return {block.key: block for block in result.blocks if isinstance(block, Matrix)}


def with_rows(state: State, name: str, rows: slice, seed: int = 1) -> State:
    values = state[name].copy()
    values[rows] = np.random.default_rng(seed).normal(0, values.std(), values[rows].shape)
    return {**state, name: values}


def test_line_of_a_planted_head():
    a = grouped()
    b = with_rows(a, Q, slice(3 * SIZE, 4 * SIZE))
    result = result_of(a, b)
    gain = a["model.layers.1.input_layernorm.weight"].astype(float)
    q, p, k = (
        state[name].astype(float)[rows] * gain
        for state, name, rows in ((a, Q, slice(24, 32)), (b, Q, slice(24, 32)),
                                  (a, Q.replace("q_proj", "k_proj"), slice(8, 16)))
    )  # fmt: skip
    one, other = q.T @ k, p.T @ k
    turn = 1 - (one * other).sum() / np.linalg.norm(one) / np.linalg.norm(other)
    assert result.values["focus_shift"].value == pytest.approx(turn / 24, rel=1e-9)
    assert ANALYSIS.line(result) == f"attention_analysis: layers=3, pattern_changes=1, focus_shift={turn / 24:.4f}"
    (row,) = table(result, "Heads that turned most").rows
    assert row[:2] == ("model.layers.1.self_attn", 3)
    assert row[2] == pytest.approx(turn, rel=1e-9)
    assert row[3] == 0.0
    assert result.values["focus_shift"].evidence is Evidence.DERIVED


def test_heatmaps_show_both_circuits_of_every_head():
    a = grouped()
    b = with_rows(with_rows(a, Q, slice(0, 8)), "model.layers.2.self_attn.v_proj.weight", slice(8, 16))
    found = maps(result_of(a, b))
    assert set(found) == {"qk_turn_by_head", "ov_turn_by_head"}
    for key, places in (("qk_turn_by_head", {(1, 0)}), ("ov_turn_by_head", {(2, 2), (2, 3)})):
        cells = np.array(found[key].cells, dtype=float)
        assert cells.shape == (3, HEADS)
        assert {(int(i), int(j)) for i, j in np.argwhere(cells > 1e-9)} == places


def test_equal_and_scaled_networks_shift_no_focus():
    a = grouped()
    same = result_of(a, dict(a))
    assert numbers(same) == {"layers": 3, "pattern_changes": 0, "focus_shift": 0.0}
    assert not maps(same)
    assert not same.findings
    scaled = numbers(result_of(a, {name: np.float32(1.7) * values for name, values in a.items()}))
    assert scaled["pattern_changes"] == 0
    assert 0 <= scaled["focus_shift"] < 1e-12


def test_threshold_moves_the_count_and_never_the_shift():
    a = grouped()
    b = noised(a, 0.2)
    counts = [result_of(a, b, least=least) for least in (0.0, 0.9, 0.95, 1.0)]
    assert [result.values["pattern_changes"].value for result in counts] == sorted(
        result.values["pattern_changes"].value for result in counts
    )
    assert (counts[0].values["pattern_changes"].value, counts[3].values["pattern_changes"].value) == (0, 24)
    assert len({result.values["focus_shift"].value for result in counts}) == 1


def test_a_cast_changes_no_head():
    a = grouped()
    codes = {n: ArrayTensor(to_codes("bf16", values), DTYPES["bf16"], (n,)) for n, values in sorted(a.items())}
    b = Checkpoint("memory", "live", codes, config=CONFIG)
    result = ANALYSIS.run(pair_checkpoints(checkpoint_of(a, config=CONFIG), b), {"qk_changed": 0.95})
    assert result.values["pattern_changes"].value == 0
    assert 0 < result.values["focus_shift"].value < 1e-4


# One model in several layouts.


def split(seed: int = 0, biased: bool = False) -> State:
    """Return attention of 4 heads of 8 rows in 2 blocks, as separate projections with the names of Phi and LLaMA."""
    draw = np.random.default_rng(seed)
    state: State = {"model.embed_tokens.weight": draw.normal(size=(50, 32)).astype("f4")}
    for i in range(2):
        block = f"model.layers.{i}."
        for role in "qkvo":
            state[f"{block}self_attn.{role}_proj.weight"] = draw.normal(size=(32, 32)).astype("f4")
            if biased:
                state[f"{block}self_attn.{role}_proj.bias"] = draw.normal(size=32).astype("f4")
        for name, shape in (("mlp.gate_proj", (48, 32)), ("mlp.up_proj", (48, 32)), ("mlp.down_proj", (32, 48))):
            state[f"{block}{name}.weight"] = draw.normal(size=shape).astype("f4")
        for name in ("input_layernorm", "post_attention_layernorm"):
            state[f"{block}{name}.weight"] = draw.uniform(0.5, 1.5, 32).astype("f4")
    return state


def fused(state: State) -> State:
    """Stack queries, keys and values, as Phi-3 does."""
    found = {name: values for name, values in state.items() if not any(f".{r}_proj." in name for r in "qkv")}
    for i in range(2):
        place = f"model.layers.{i}.self_attn."
        found[f"{place}qkv_proj.weight"] = np.concatenate([state[f"{place}{role}_proj.weight"] for role in "qkv"])
    return found


ALIKE = {"num_attention_heads": 4, "num_key_value_heads": 4}


@pytest.mark.parametrize("is_turned_round", [False, True])
def test_fused_and_split_projections_of_one_model_are_equal_head_by_head(is_turned_round):
    states = [split(), fused(split())]
    configs = [{**ALIKE, "model_type": "llama"}, {**ALIKE, "model_type": "phi3"}]
    if is_turned_round:
        states, configs = states[::-1], configs[::-1]
    result = result_of(*states, *configs)
    assert numbers(result) == {"layers": 2, "pattern_changes": 0, "focus_shift": 0.0}
    changed = with_rows(split(), "model.layers.0.self_attn.k_proj.weight", slice(16, 24))
    moved = result_of(states[0], changed if is_turned_round else fused(changed), configs[0], configs[1])
    assert numbers(moved)["pattern_changes"] == 1
    assert table(moved, "Heads that turned most").rows[0][1] == 2


def test_interleaved_and_transposed_projections_are_cut_alike():
    draw = np.random.default_rng(2)
    parts = [draw.normal(size=(4, 8, 32)).astype("f4") for _ in "qkv"]
    biases = [draw.normal(size=(4, 8)).astype("f4") for _ in "qkv"]
    shared = {"out": draw.normal(size=(32, 32)).astype("f4"), "gain": draw.uniform(0.5, 1.5, 32).astype("f4")}
    shared |= {"shift": draw.normal(size=32).astype("f4"), "wte": draw.normal(size=(50, 32)).astype("f4")}
    neox = {
        "gpt_neox.embed_in.weight": shared["wte"],
        "gpt_neox.layers.0.input_layernorm.weight": shared["gain"],
        "gpt_neox.layers.0.input_layernorm.bias": shared["shift"],
        "gpt_neox.layers.0.attention.query_key_value.weight": np.stack(parts, axis=1).reshape(96, 32),
        "gpt_neox.layers.0.attention.query_key_value.bias": np.stack(biases, axis=1).reshape(96),
        "gpt_neox.layers.0.attention.dense.weight": shared["out"],
    }
    gpt2 = {
        "transformer.wte.weight": shared["wte"],
        "transformer.h.0.ln_1.weight": shared["gain"],
        "transformer.h.0.ln_1.bias": shared["shift"],
        "transformer.h.0.attn.c_attn.weight": np.concatenate([part.reshape(32, 32) for part in parts]).T.copy(),
        "transformer.h.0.attn.c_attn.bias": np.concatenate([bias.reshape(32) for bias in biases]),
        "transformer.h.0.attn.c_proj.weight": shared["out"].T.copy(),
    }
    configs = {"model_type": "gpt_neox", "num_attention_heads": 4}, {"model_type": "gpt2", "n_head": 4}
    assert numbers(result_of(neox, gpt2, *configs)) == {"layers": 1, "pattern_changes": 0, "focus_shift": 0.0}


# Independent networks.


def permuted(state: State) -> State:
    """Renumber heads and hidden units: the network computes what it did."""
    draw, found = np.random.default_rng(3), dict(state)
    for i in range(2):
        place = f"model.layers.{i}."
        rows = np.arange(32).reshape(4, 8)[[2, 3, 1, 0]].ravel()
        for role in "qkv":
            found[f"{place}self_attn.{role}_proj.weight"] = state[f"{place}self_attn.{role}_proj.weight"][rows]
        found[f"{place}self_attn.o_proj.weight"] = state[f"{place}self_attn.o_proj.weight"][:, rows]
        units = draw.permutation(48)
        for role in ("gate", "up"):
            found[f"{place}mlp.{role}_proj.weight"] = state[f"{place}mlp.{role}_proj.weight"][units]
        found[f"{place}mlp.down_proj.weight"] = state[f"{place}mlp.down_proj.weight"][:, units]
    return found


@pytest.mark.parametrize("has_embedding", [True, False])
def test_renumbered_heads_are_matched_first(has_embedding):
    a = split()
    b = permuted(a)
    if not has_embedding:
        # Without it nothing is left in its place, and the lineage is independent.
        a, b = ({n: x for n, x in side.items() if "embed" not in n} for side in (a, b))
    result = result_of(a, b, ALIKE)
    assert numbers(result) == {"layers": 2, "pattern_changes": 0, "focus_shift": 0.0}
    assert [finding.template[:32] for finding in result.findings] == ["Heads stand in another order tha"]
    assert any("matched" in assumption for assumption in result.assumptions)


def test_of_networks_trained_apart_no_head_is_counted():
    result = result_of(split(0), split(1), ALIKE)
    assert reasons(result) == {"layers": None, "pattern_changes": "INDEPENDENT", "focus_shift": None}
    assert result.values["focus_shift"].value > 0.9
    assert "trained apart" in result.meaning.template
    assert all(row[2] is None for row in table(result, "Layers by how far their heads turned").rows)


# What cannot be known.


def test_without_a_number_of_heads_layers_are_compared_as_a_whole():
    a = transformer(hidden=48)
    b = with_rows(a, Q, slice(0, 48))
    result = result_of(a, b, {})
    assert reasons(result) == {"layers": None, "pattern_changes": "NEEDS_CONFIG", "focus_shift": None}
    one, other = (
        state[Q].astype(float).T @ state[Q.replace("q_proj", "k_proj")].astype(float) for state in (a, b)
    )
    turn = 1 - (one * other).sum() / np.linalg.norm(one) / np.linalg.norm(other)
    assert result.values["focus_shift"].value == pytest.approx(turn / 3, rel=1e-9)
    assert "as a whole" in result.meaning.template
    assert not maps(result)


def test_another_number_of_heads_leaves_no_counterparts():
    a = split()
    two = {"num_attention_heads": 2, "num_key_value_heads": 2}
    assert reasons(result_of(a, a, ALIKE, two)) == {
        "layers": None, "pattern_changes": "SHAPE_MISMATCH", "focus_shift": "SHAPE_MISMATCH",
    }  # fmt: skip


def test_without_attention_there_is_nothing_to_compare():
    state = {"fc1.weight": np.ones((8, 8), "f4"), "fc2.weight": np.ones((8, 8), "f4")}
    result = result_of(state, state, {})
    assert ANALYSIS.line(result) == "attention_analysis: layers=0, pattern_changes=unknown, focus_shift=unknown"
    assert reasons(result) == {"layers": None, "pattern_changes": "NO_TARGET", "focus_shift": "NO_TARGET"}


def test_guessed_heads_make_an_estimate():
    a = transformer(hidden=128, layers=2)
    result = result_of(a, noised(a, 0.1), {})
    for key in ("pattern_changes", "focus_shift"):
        value = result.values[key]
        assert value.evidence is Evidence.ESTIMATED
        assert 0 < (value.confidence or 0) < 1
        assert "64 rows" in value.assumption


def test_heads_that_are_not_finite_are_listed_and_not_counted():
    a = grouped()
    b = {**a, Q: a[Q].copy()}
    b[Q][5 * SIZE, 3] = np.nan
    result = result_of(a, b)
    assert numbers(result) == {"layers": 3, "pattern_changes": 0, "focus_shift": 0.0}
    assert result.unreached == ("1 head without a cosine (1 not finite): model.layers.1.self_attn head 5",)
    b = {**b, Q: b[Q].copy()}
    b[Q][:SIZE] = 0
    assert "2 heads without a cosine (1 not finite, 1 zero on one side only): " in result_of(a, b).unreached[0]
    every = result_of({name: x * np.nan for name, x in a.items()}, a)
    assert reasons(every)["focus_shift"] == "ALL_NONFINITE"


def test_layers_of_one_side_are_left_out_and_said():
    result = result_of(grouped(layers=3), grouped(layers=2))
    assert numbers(result)["layers"] == 2
    assert result.unreached[0].startswith("1 attention layer, NO_COMMON: ")


def test_every_stack_is_listed():
    draw, state = np.random.default_rng(4), {}
    for side, names in (("encoder", ["SelfAttention"]), ("decoder", ["SelfAttention", "EncDecAttention"])):
        for i in range(2):
            for j, name in enumerate(names):
                for role in "qkvo":
                    state[f"{side}.block.{i}.layer.{j}.{name}.{role}.weight"] = draw.normal(size=(32, 32)).astype("f4")
    state["shared.weight"] = draw.normal(size=(40, 32)).astype("f4")
    config = {"model_type": "t5", "num_heads": 4, "d_kv": 8, "is_encoder_decoder": True}
    b = with_rows(state, "decoder.block.1.layer.1.EncDecAttention.k.weight", slice(8, 16))
    result = result_of(state, b, config)
    assert numbers(result)["layers"] == 6
    assert numbers(result)["pattern_changes"] == 1
    assert [row[:3] for row in table(result, "Attention layers").rows] == [
        ("encoder, self", 2, 2), ("decoder, self", 2, 2), ("decoder, cross", 2, 2),
    ]  # fmt: skip


# Rotary positions.


@pytest.mark.parametrize(
    ("more", "bands"),
    [({"rope_theta": 1e4}, 3), ({}, 0), ({"rope_theta": 1e4, "partial_rotary_factor": 0.25}, 0),
     ({"position_embedding_type": "absolute"}, 0)],
)  # fmt: skip
def test_bands_are_shown_where_positions_are_rotary(more, bands):
    a = grouped()
    found = table(result_of(a, with_rows(a, Q, slice(0, 8)), {**CONFIG, **more}), "Heads that turned most")
    assert sum(column.title.startswith("cos, ") for column in found.columns) == bands


def test_bands_tell_which_frequencies_turned():
    # Heads of 16 rows turn rows i and i + 8 together: rows 0, 1, 2 are the fast third.
    a, config = transformer(hidden=64), {"num_attention_heads": 4, "model_type": "llama", "rope_theta": 1e4}
    values = a[Q].copy()
    values[[0, 1, 2, 8, 9, 10]] = np.random.default_rng(0).normal(0, 0.1, (6, 64))
    row = table(result_of(a, {**a, Q: values}, config), "Heads that turned most").rows[0]
    assert row[1] == 0
    assert abs(row[-3]) < 0.3  # type: ignore[arg-type]
    assert row[-2:] == (pytest.approx(1.0), pytest.approx(1.0))


def test_heatmaps_are_cut_to_what_can_be_read():
    rows = [(f"block.{i}", [0.0] * 140 if i % 2 else [1.0] * 140) for i in range(200)]
    found = head_map("key", "Turn", rows, "1 − cosine", Sentence("All."))
    assert (len(found.rows), len(found.columns)) == (MOST_CELLS, MOST_CELLS)
    assert found.title == "Turn (128 of 200 layers, the first 128 of 140 heads)"
    # All that turned are there, in their order.
    turned = [row for row in found.rows if int(row.partition(".")[2]) % 2 == 0]
    assert turned == [f"block.{i}" for i in range(0, 200, 2)]
    uneven = head_map("key", "Turn", [("a", [1.0]), ("b", [2.0, float("nan")])], "1 − cosine", Sentence("All."))
    assert uneven.cells == ((1.0, None), (2.0, None))
    assert uneven.title == "Turn"
