"""Hidden units of B put into the order of A's: exact for a renumbered network, without touching the function."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from builders import checkpoint_of, pair_of, transformer

from diffai_jupyter.checkpoint.dtypes import DTYPES
from diffai_jupyter.checkpoint.tensor import ArrayTensor
from diffai_jupyter.checkpoint.views import Reordered
from diffai_jupyter.evidence import Unknowable
from diffai_jupyter.facts.alignment import matching
from diffai_jupyter.facts.alignment.alignment import aligned, alignment, alignment_made
from diffai_jupyter.facts.alignment.chains import chains
from diffai_jupyter.facts.change.changes import displacement
from diffai_jupyter.facts.change.lineage import SHARED, lineage
from diffai_jupyter.facts.change.update_type import Kind, update_type
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.scan.pairing import pair_checkpoints

State = dict[str, np.ndarray]


def perceptron(seed: int = 0, widths: tuple[int, ...] = (12, 40, 32, 24, 5)) -> State:
    draw = np.random.default_rng(seed)
    state = {}
    for i, (inputs, outputs) in enumerate(pairwise(widths)):
        state[f"net.{2 * i}.weight"] = draw.normal(size=(outputs, inputs)).astype("f4")
        state[f"net.{2 * i}.bias"] = draw.normal(size=outputs).astype("f4")
    return state


def run_perceptron(state: State, x: np.ndarray) -> np.ndarray:
    layers = sorted({int(name.split(".")[1]) for name in state})
    for i in layers:
        x = state[f"net.{i}.weight"].astype("f8") @ x + state[f"net.{i}.bias"][:, np.newaxis]
        x = x if i == layers[-1] else np.maximum(x, 0)
    return x


def renumbered(state: State, seed: int = 1) -> State:
    draw, new = np.random.default_rng(seed), dict(state)
    layers = sorted({int(name.split(".")[1]) for name in state})
    for i, following in pairwise(layers):
        order = draw.permutation(len(new[f"net.{i}.bias"]))
        for kind in ("weight", "bias"):
            new[f"net.{i}.{kind}"] = new[f"net.{i}.{kind}"][order]
        new[f"net.{following}.weight"] = new[f"net.{following}.weight"][:, order]
    return new


def state_of(pair: Pair) -> State:
    """Return the tensors of B as they read now."""
    return {name: tensor.read_all().reshape(tensor.shape) for name, tensor in pair.b.tensors.items()}


def is_equal(pair: Pair) -> bool:
    a = {name: tensor.read_all().reshape(tensor.shape) for name, tensor in pair.a.tensors.items()}
    b = state_of(pair)
    return set(a) == set(b) and all(np.array_equal(a[name], b[name]) for name in a)


def test_renumbered_perceptron_comes_back_bit_for_bit():
    state = perceptron()
    pair = pair_of(state, renumbered(state))
    found = alignment(pair)
    assert [group.units for group in found.groups] == [40, 32, 24]
    assert found.moved >= 90
    assert found.raw > 1
    assert found.aligned == 0
    assert is_equal(aligned(pair))
    assert displacement(aligned(pair)).relative == 0


def test_independent_networks_come_closer_and_compute_what_they_did():
    pair = pair_of(perceptron(0), perceptron(5))
    found, x = alignment(pair), np.random.default_rng(2).normal(size=(12, 7))
    assert found.aligned < 0.95 * found.raw
    after = state_of(aligned(pair))
    assert run_perceptron(after, x) == pytest.approx(run_perceptron(perceptron(5), x), rel=1e-9)


def test_raw_and_aligned_distances_are_those_of_the_files():
    a, b = perceptron(0), perceptron(5)
    pair = pair_of(a, b)
    found = alignment(pair)
    norm = np.sqrt(sum(np.square(v, dtype="f8").sum() for v in a.values()))
    for distance, side in ((found.raw, b), (found.aligned, state_of(aligned(pair)))):
        expected = np.sqrt(sum(np.square(side[n].astype("f8") - a[n]).sum() for n in a)) / norm
        # The bias of the last layer belongs to no hidden unit.
        assert distance == pytest.approx(expected, rel=0.02)


def test_equal_networks_are_left_as_they_are():
    pair = pair_of(perceptron(), perceptron())
    assert alignment(pair).moved == 0
    assert "already" in aligned(pair).b.notes[-1].template
    assert not any(isinstance(tensor, Reordered) for tensor in aligned(pair).b.tensors.values())


def test_alignment_is_known_of_the_pair_that_went_through_it():
    pair = pair_of(perceptron(), renumbered(perceptron()))
    assert alignment_made(pair) is None
    made = alignment_made(aligned(pair))
    assert made is not None
    assert made.moved


def heads_and_units_renumbered(state: State, size: int, shared: int, seed: int = 3) -> State:
    """Renumber key heads, query heads inside of each, and feed-forward units of every block."""
    draw, new = np.random.default_rng(seed), dict(state)
    for block in sorted({name.split(".")[2] for name in state if ".layers." in name}):
        at = f"model.layers.{block}."
        q, k, v, o = (new[f"{at}self_attn.{p}_proj.weight"] for p in "qkvo")
        each = q.shape[0] // size // shared
        keys = draw.permutation(shared)
        queries = np.concatenate([key * each + draw.permutation(each) for key in keys])
        rows = (queries[:, None] * size + np.arange(size)).ravel()
        kept = (keys[:, None] * size + np.arange(size)).ravel()
        new[f"{at}self_attn.q_proj.weight"], new[f"{at}self_attn.o_proj.weight"] = q[rows], o[:, rows]
        new[f"{at}self_attn.k_proj.weight"], new[f"{at}self_attn.v_proj.weight"] = k[kept], v[kept]
        order = draw.permutation(new[f"{at}mlp.up_proj.weight"].shape[0])
        for part in ("up", "gate"):
            new[f"{at}mlp.{part}_proj.weight"] = new[f"{at}mlp.{part}_proj.weight"][order]
        new[f"{at}mlp.down_proj.weight"] = new[f"{at}mlp.down_proj.weight"][:, order]
    return new


def grouped_transformer() -> tuple[State, dict[str, int]]:
    state = transformer(layers=2, hidden=64, inner=96)
    draw = np.random.default_rng(9)
    for block in range(2):
        for part in "kv":
            state[f"model.layers.{block}.self_attn.{part}_proj.weight"] = draw.normal(size=(32, 64)).astype("f4")
    return state, {"num_attention_heads": 8, "num_key_value_heads": 4}


def test_renumbered_heads_and_units_of_a_transformer_come_back():
    state, config = grouped_transformer()
    b = heads_and_units_renumbered(state, size=8, shared=4)
    pair = pair_checkpoints(checkpoint_of(state, config=config), checkpoint_of(b, config=config))
    found = alignment(pair)
    assert found.aligned == 0
    assert found.raw > 1
    assert is_equal(aligned(pair))
    assert {group.what.split(" of ")[0] for group in found.groups} == {"hidden units", "key heads", "query heads"}


def test_fused_projection_stored_inputs_by_outputs_comes_back():
    draw = np.random.default_rng(0)
    width, heads = 24, 4
    shapes = {
        "h.0.attn.c_attn.weight": (width, 3 * width), "h.0.attn.c_attn.bias": (3 * width,),
        "h.0.attn.c_proj.weight": (width, width), "h.0.attn.c_proj.bias": (width,),
        "h.0.mlp.c_fc.weight": (width, 4 * width), "h.0.mlp.c_fc.bias": (4 * width,),
        "h.0.mlp.c_proj.weight": (4 * width, width), "h.0.mlp.c_proj.bias": (width,),
        "wte.weight": (50, width),
    }  # fmt: skip
    state = {name: draw.normal(size=shape).astype("f4") for name, shape in shapes.items()}
    b = dict(state)
    order = draw.permutation(heads)
    rows = (order[:, None] * (width // heads) + np.arange(width // heads)).ravel()
    fused = np.concatenate([part * width + rows for part in range(3)])
    b["h.0.attn.c_attn.weight"] = state["h.0.attn.c_attn.weight"][:, fused]
    b["h.0.attn.c_attn.bias"] = state["h.0.attn.c_attn.bias"][fused]
    b["h.0.attn.c_proj.weight"] = state["h.0.attn.c_proj.weight"][rows]
    units = draw.permutation(4 * width)
    b["h.0.mlp.c_fc.weight"] = state["h.0.mlp.c_fc.weight"][:, units]
    b["h.0.mlp.c_fc.bias"] = state["h.0.mlp.c_fc.bias"][units]
    b["h.0.mlp.c_proj.weight"] = state["h.0.mlp.c_proj.weight"][units]
    config = {"model_type": "gpt2", "n_head": heads}
    pair = pair_checkpoints(checkpoint_of(state, config=config), checkpoint_of(b, config=config))
    assert alignment(pair).aligned == 0
    assert is_equal(aligned(pair))


def convolutions() -> State:
    draw = np.random.default_rng(0)
    shapes = {
        "conv1.weight": (16, 3, 3, 3), "bn1.weight": (16,), "bn1.bias": (16,), "bn1.running_mean": (16,),
        "bn1.running_var": (16,), "bn1.num_batches_tracked": (),
        "conv2.weight": (20, 16, 3, 3), "bn2.weight": (20,), "bn2.bias": (20,), "bn2.running_mean": (20,),
        "bn2.running_var": (20,), "bn2.num_batches_tracked": (),
        "fc1.weight": (30, 20 * 4), "fc1.bias": (30,), "fc2.weight": (7, 30), "fc2.bias": (7,),
    }  # fmt: skip
    return {
        name: np.array(3, "i8") if name.endswith("tracked") else draw.normal(size=shape).astype("f4")
        for name, shape in shapes.items()
    }


def test_convolutions_take_their_normalization_along():
    state = convolutions()
    order = np.random.default_rng(1).permutation(20)
    b = {n: v[order] if n.startswith(("bn2", "conv2")) and v.ndim else v for n, v in state.items()}
    b["fc1.weight"] = state["fc1.weight"].reshape(30, 20, 4)[:, order].reshape(30, 80)
    pair = pair_of(state, b)
    assert alignment(pair).aligned == 0
    assert is_equal(aligned(pair))


def names_of(shapes: dict[str, tuple[int, ...]]) -> list[tuple[str, str]]:
    made = {n: ArrayTensor(np.zeros(s, "f4"), DTYPES["f32"], (n,)) for n, s in shapes.items()}
    return [(first.path, second.path) for chain in chains(made, frozenset()) for first, second, _ in chain]


def test_only_the_inside_of_residual_blocks_is_a_chain():
    shapes = {
        "conv1.weight": (8, 3, 7, 7),
        "bn1.weight": (8,),
        "layer1.0.conv1.weight": (8, 8, 3, 3),
        "layer1.0.bn1.weight": (8,),
        "layer1.0.conv2.weight": (8, 8, 3, 3),
        "layer1.0.bn2.weight": (8,),
        "layer1.0.downsample.0.weight": (8, 8, 1, 1),
        "layer1.0.downsample.1.weight": (8,),
        "fc.weight": (10, 64),
    }
    assert names_of(shapes) == [("layer1.0.conv1", "layer1.0.conv2")]


def test_outputs_of_a_grouped_convolution_do_not_mix():
    shapes = {"b.conv1.weight": (8, 4, 1, 1), "b.conv2.weight": (8, 2, 3, 3), "b.conv3.weight": (4, 8, 1, 1)}
    assert names_of(shapes) == []


def test_layers_that_do_not_fit_are_no_chain():
    assert names_of({"a.fc1.weight": (8, 16), "a.fc2.weight": (8, 16)}) == []
    assert names_of({"policy.weight": (8, 16), "value.weight": (1, 16)}) == []


def test_nothing_to_align_is_said():
    pair = pair_of({"w": np.ones((4, 4), "f4")}, {"w": np.ones((4, 4), "f4")})
    with pytest.raises(Unknowable, match="NO_TARGET"):
        alignment(pair)
    assert aligned(pair).tensors == pair.tensors
    assert "no hidden units" in aligned(pair).b.notes[-1].template


def test_groups_above_the_limit_are_left_and_named(monkeypatch):
    monkeypatch.setattr(matching, "MOST_UNITS", 30)
    state = perceptron()
    found = alignment(pair_of(state, renumbered(state)))
    assert [group.reason for group in found.groups] == ["TOO_LARGE", "TOO_LARGE", ""]


def test_nan_does_not_stop_it():
    state = perceptron()
    b = renumbered(state)
    b["net.0.weight"][3, 4] = np.nan
    found = alignment(pair_of(state, b))
    assert found.aligned < 0.05


def test_lineage_of_aligned_networks_needs_more_than_the_matching_alone_gives():
    wide = (30, 120, 90, 10)
    independent = pair_of(perceptron(0, wide), perceptron(5, wide))
    assert lineage(independent).word == "independent"
    after = lineage(aligned(independent))
    assert after.cosine > SHARED
    assert after.word == "independent"
    assert after.stored == pytest.approx(lineage(independent).cosine, abs=0.02)
    same = aligned(pair_of(perceptron(0, wide), renumbered(perceptron(0, wide))))
    assert lineage(same).word == "shared"


def test_a_renumbered_network_is_permuted_not_identical():
    pair = aligned(pair_of(perceptron(), renumbered(perceptron())))
    found = update_type(pair)
    assert found.kind is Kind.PERMUTED
    assert not found.is_equal
