"""Whose moments an optimizer keeps: a name is attached where there is no doubt, and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from builders import checkpoint_of
from torch_bytes import adam_state

from diffai_jupyter.readers import open_checkpoint
from diffai_jupyter.readers.sidecars.optimizer import names
from diffai_jupyter.readers.sidecars.optimizer.order import orders
from diffai_jupyter.wording import say


def assigned(
    shapes: Mapping[str, tuple[int, ...]], taken: list[list[str]], order: list[str] | None = None, family: str = ""
) -> tuple[list[str], str]:
    """Return the names that are attached to an optimizer over some of the weights, group by group."""
    flat = [name for group in taken for name in group]
    edges = np.cumsum([len(group) for group in taken])[:-1]
    root = adam_state([shapes[name] for name in flat], split=tuple(int(edge) for edge in edges))
    graph = open_checkpoint({"optimizer": root, "model": {"w": np.ones(1)}}).optimizer_state
    assert graph is not None
    weights = checkpoint_of({name: np.zeros(shape, np.float32) for name, shape in shapes.items()})
    state, reason = names.named(graph, weights.tensors, order, family)
    return [slot.name for slot in state.slots], reason


BLOCK = {
    "embed.weight": (50, 8), "blocks.0.attn.weight": (8, 8), "blocks.0.attn.bias": (8,), "blocks.0.norm.weight": (8,),
    "blocks.0.norm.bias": (8,), "blocks.1.attn.weight": (8, 8), "blocks.1.attn.bias": (8,),
    "blocks.1.norm.weight": (8,), "blocks.1.norm.bias": (8,), "head.weight": (5, 8),
}  # fmt: skip


def test_one_group_in_the_order_of_the_model() -> None:
    order = list(BLOCK)
    assert assigned(BLOCK, [order], order) == (order, "")


def test_decay_and_no_decay() -> None:
    order = list(BLOCK)
    spared = [name for name in order if "bias" in name or "norm" in name]
    decayed = [name for name in order if name not in spared]
    assert assigned(BLOCK, [decayed, spared], order) == ([*decayed, *spared], "")
    assert assigned(BLOCK, [spared, decayed], order) == ([*spared, *decayed], "")
    # a vector among the matrices: which of the vectors it is, the rule of the trainer tells
    shapes = {"blocks.0.scale": (8,), **BLOCK}
    groups = [["blocks.0.scale", *decayed], spared]
    assert assigned(shapes, groups, list(shapes)) == ([*groups[0], *spared], "")


def test_frozen_parameters_are_left_out() -> None:
    order = list(BLOCK)
    assert assigned(BLOCK, [order[1:]], order) == (order[1:], "")
    assert assigned(BLOCK, [["head.weight"]], order) == (["head.weight"], "")
    # which of the two equal blocks was trained cannot be told
    found, reason = assigned(BLOCK, [order[5:]], order)
    assert (set(found), reason) == ({""}, names.AMBIGUOUS)
    found, reason = assigned(BLOCK, [["blocks.0.attn.weight"]], order)
    assert (set(found), reason) == ({""}, names.AMBIGUOUS)


def test_parameters_that_never_moved_keep_their_place() -> None:
    shapes = {"a": (2, 2), "unused": (3, 3), "b": (2, 2)}
    root = adam_state([(2, 2), (3, 3), (2, 2)])
    del root["state"][1]
    checkpoint = open_checkpoint({"model": {n: np.ones(s) for n, s in shapes.items()}, "optimizer": root})
    assert checkpoint.optimizer_state is not None
    assert [(slot.id, slot.name) for slot in checkpoint.optimizer_state.slots] == [(0, "a"), (2, "b")]
    assert checkpoint.optimizer_state.groups[0].ids == (0, 1, 2)


def test_buffers_and_tied_weights_are_no_parameters() -> None:
    shared = np.ones((6, 4), np.float32)
    weights = {
        "embed.weight": shared, "bn.weight": np.ones(4, np.float32), "bn.bias": np.ones(4, np.float32),
        "bn.running_mean": np.ones(4, np.float32), "bn.num_batches_tracked": np.array(1),
        "fc.weight": np.ones((4, 4), np.float32), "head.weight": shared,
    }  # fmt: skip
    root = adam_state([(6, 4), (4,), (4,), (4, 4)])
    checkpoint = open_checkpoint({"model": weights, "optimizer": root})
    assert checkpoint.optimizer_state is not None
    assert [slot.name for slot in checkpoint.optimizer_state.slots] == [
        "embed.weight", "bn.weight", "bn.bias", "fc.weight",
    ]  # fmt: skip


def test_other_shapes_are_refused() -> None:
    order = list(BLOCK)
    changed = {**BLOCK, "head.weight": (6, 8)}
    root = adam_state([BLOCK[name] for name in order])
    checkpoint = open_checkpoint({"model": {n: np.ones(s) for n, s in changed.items()}, "optimizer": root}, "m")
    assert checkpoint.optimizer_state is not None
    assert not any(slot.name for slot in checkpoint.optimizer_state.slots)
    said = "".join(say(note.template, note.said) for note in checkpoint.notes)
    assert f"10 parameters in m belong to is not known: {names.DISAGREE}" in said


def test_sorted_names_tell_the_order_only_where_shapes_do() -> None:
    shapes = {"fc1.weight": (8, 4), "fc1.bias": (8,), "fc2.weight": (6, 8), "fc2.bias": (6,), "out.weight": (2, 6)}
    order = list(shapes)
    assert assigned(shapes, [order]) == (order, "")
    # two weights of one shape, under names without numbers: either could be the first
    equal = {"up.weight": (4, 4), "down.weight": (4, 4)}
    found, reason = assigned(equal, [list(equal)])
    assert (found, reason) == (["", ""], names.NO_ORDER)
    # numbers and lists say which is first
    numbered = {"fc2.weight": (4, 4), "fc10.weight": (4, 4), "layers.2.weight": (3, 3), "layers.10.weight": (3, 3)}
    assert assigned(numbered, [list(numbered)]) == (list(numbered), "")


def llama(heads: int = 4) -> dict[str, tuple[int, ...]]:
    """Return the parameters of a LLaMA in the order in which transformers builds them."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (32, 16)}
    for i in range(2):
        at = f"model.layers.{i}"
        shapes |= {f"{at}.self_attn.{name}_proj.weight": (16, 16) for name in ("q", "k", "v", "o")}
        shapes |= {f"{at}.mlp.{name}_proj.weight": (24, 16) for name in ("gate", "up")}
        shapes[f"{at}.mlp.down_proj.weight"] = (16, 24)
        shapes |= {f"{at}.{name}_layernorm.weight": (16,) for name in ("input", "post_attention")}
    return {**shapes, "model.norm.weight": (16,), "lm_head.weight": (32, 16)}


def test_a_known_family_has_one_order() -> None:
    shapes = llama()
    order = list(shapes)
    groups = [[n for n in order if "norm" not in n], [n for n in order if "norm" in n]]
    assert assigned(shapes, groups, family="llama") == ([name for group in groups for name in group], "")
    # every projection of attention has one shape: without the family, nothing tells them apart
    found, reason = assigned(shapes, groups, family="mystery")
    assert (set(found), reason) == ({""}, names.NO_ORDER)


def test_too_many_orders_are_not_tried() -> None:
    assert orders([f"part{letter}.weight" for letter in "abcdefgh"], "") is None
    assert orders([".".join("a" * 100)], "") is None
    few = orders(["b.x", "b.weight", "a.weight", "weight", "bias"], "")
    assert few is not None
    assert set(few) == {
        ("weight", "bias", *last)
        for last in (
            ("b.x", "b.weight", "a.weight"), ("b.weight", "b.x", "a.weight"),
            ("a.weight", "b.x", "b.weight"), ("a.weight", "b.weight", "b.x"),
        )
    }  # fmt: skip
    recurrent = [f"rnn.{kind}_l{i}" for i in range(3) for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    found = orders(sorted(recurrent), "")
    assert found is not None
    assert list(found) == [tuple(recurrent)]
