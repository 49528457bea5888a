"""Copying heads against the matrix from tokens to tokens multiplied out, and planted ones."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from builders import checkpoint_of, transformer

from diffai_jupyter.evidence import Unknowable
from diffai_jupyter.facts import give
from diffai_jupyter.facts.attention.distances import Reach
from diffai_jupyter.facts.attention.layers import OpenAttention
from diffai_jupyter.facts.attention.roles import Role, roles
from diffai_jupyter.facts.attention.spans import Case, LayerReach, Reaches, reaches
from diffai_jupyter.facts.attention.specialization import (
    TOKENS,
    Copying,
    LayerCopying,
    copying,
    copying_shares,
)
from diffai_jupyter.facts.weights.stored import B
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.scan.pairing import pair_checkpoints

HIDDEN, HEADS, VOCAB = 32, 4, 80
CONFIG = {"num_attention_heads": HEADS, "architectures": ["LlamaForCausalLM"], "model_type": "llama"}


def opened_with(writes: np.ndarray, values: np.ndarray) -> OpenAttention:
    none = np.zeros((len(writes), 2, HIDDEN + 1))
    return OpenAttention(none, none, np.concatenate([values, np.ones((*values.shape[:2], 1))], axis=2), writes)


def share_of(matrix: np.ndarray) -> float:
    found = np.linalg.eigvals(matrix)
    return float(found.real[found.real > 0].sum() / np.abs(found).sum())


@pytest.mark.parametrize("shared", [1, 2, 4])
def test_share_is_that_of_the_matrix_from_tokens_to_tokens(shared):
    draw = np.random.default_rng(shared)
    writes, values = draw.normal(size=(4, HIDDEN, 8)), draw.normal(size=(shared, 8, HIDDEN))
    read, written = draw.normal(size=(50, HIDDEN)), draw.normal(size=(50, HIDDEN))
    found = copying_shares(opened_with(writes, values), read, written)
    expected = [share_of(written @ writes[h] @ values[h // (4 // shared)] @ read.T) for h in range(4)]
    np.testing.assert_allclose(found, expected, rtol=1e-7)


def test_a_head_that_writes_what_it_reads_copies_and_its_opposite_does_not():
    draw = np.random.default_rng(0)
    values, tokens = draw.normal(size=(2, 8, HIDDEN)), draw.normal(size=(70, HIDDEN))
    writes = values.transpose(0, 2, 1) * np.array([1.0, -1.0])[:, np.newaxis, np.newaxis]
    assert copying_shares(opened_with(writes, values), tokens, tokens) == pytest.approx((1.0, 0.0))


def test_random_heads_are_spread_around_one_in_pi():
    draw = np.random.default_rng(1)
    writes, values = draw.normal(size=(40, 64, 24)), draw.normal(size=(40, 24, 64))
    none = np.zeros((40, 2, 65))
    opened = OpenAttention(none, none, np.concatenate([values, np.zeros((40, 24, 1))], axis=2), writes)
    found = copying_shares(opened, draw.normal(size=(300, 64)), draw.normal(size=(300, 64)))
    assert np.mean(found) == pytest.approx(1 / math.pi, abs=0.05)
    assert max(found) < 0.6


def test_heads_that_write_nothing_or_no_number_have_no_share():
    writes, values = np.ones((3, HIDDEN, 2)), np.ones((3, 2, HIDDEN))
    writes[0] = 0.0
    writes[1, 0, 0] = math.nan
    found = copying_shares(opened_with(writes, values), np.ones((5, HIDDEN)), np.ones((5, HIDDEN)))
    assert [math.isnan(share) for share in found] == [True, True, False]


def state(vocab: int = VOCAB) -> dict[str, Any]:
    return transformer(layers=2, hidden=HIDDEN, inner=48, vocab=vocab)


def paired(tensors: dict[str, Any], **config: Any) -> Pair:
    checkpoint = checkpoint_of(tensors, config=CONFIG | config)
    return pair_checkpoints(checkpoint, checkpoint)


def planted(vocab: int = VOCAB) -> dict[str, Any]:
    """Plant a copying head: number 2 of block 1, through the gains of both norms."""
    tensors = state(vocab)
    gain, last = (np.random.default_rng(seed).uniform(0.5, 2, HIDDEN).astype("f4") for seed in (3, 4))
    tensors["model.layers.1.input_layernorm.weight"], tensors["model.norm.weight"] = gain, last
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    values = tensors["model.layers.1.self_attn.v_proj.weight"][16:24] * gain
    tensors["model.layers.1.self_attn.o_proj.weight"][:, 16:24] = values.T / last[:, np.newaxis]
    return tensors


@pytest.mark.parametrize("vocab", [VOCAB, 3 * TOKENS])
def test_a_planted_copying_head_is_found_and_only_that(vocab):
    found = copying(paired(planted(vocab)), B)
    clear = [(layer.key, head) for layer in found.layers for head, share in enumerate(layer.shares) if share >= 0.9]
    assert clear == [("block.1", 2)]
    assert (found.tokens, found.vocabulary, found.is_tied) == (min(vocab, TOKENS), vocab, False)


def test_the_embedding_is_the_head_where_none_is_stored():
    tensors = planted()
    del tensors["lm_head.weight"]
    assert copying(paired(tensors), B).is_tied
    with pytest.raises(Unknowable, match="NEEDS_PROBE"):
        copying(paired(tensors, tie_word_embeddings=False), B)


def test_copying_needs_a_causal_layer_and_a_head_of_tokens():
    with pytest.raises(Unknowable, match="NEEDS_PROBE"):
        copying(paired(state(), is_causal=False), B)
    classes = {**state(), "score.weight": np.ones((3, HIDDEN), "f4")}
    del classes["lm_head.weight"]
    with pytest.raises(Unknowable, match="NEEDS_PROBE"):
        copying(paired(classes), B)
    no_heads = checkpoint_of(state(), config={"architectures": ["LlamaForCausalLM"]})
    with pytest.raises(Unknowable, match="NEEDS_CONFIG"):
        copying(pair_checkpoints(no_heads, no_heads), B)


def test_roles_by_position_are_those_that_are_clear():
    pair = paired(state())
    heads = (Reach(0.05, 0.5, 0.1), Reach(0.2, 0.1, 0.45), Reach(0.9, 0.39, 0.39), Reach(0.02, 0.4, 0.4))
    layer = LayerReach(("one", "two"), ("block.0", "block.1"), heads)
    give(pair, copying, Copying((LayerCopying("block.1", "two", (0.95, 0.2, math.nan, 0.1)),), 9, 9, False), B)
    give(pair, reaches, Reaches(Case.BIAS, 64, (layer,)), B)
    found = roles(pair, B).recognized(0.9, 0.4, 0.1)
    assert [(role.key, role.head, role.role) for role in found] == [
        ("block.0", 0, Role.PREVIOUS), ("block.0", 3, Role.PREVIOUS), ("block.1", 0, Role.PREVIOUS),
        ("block.1", 3, Role.PREVIOUS), ("block.0", 1, Role.CURRENT), ("block.0", 3, Role.CURRENT),
        ("block.1", 1, Role.CURRENT), ("block.1", 3, Role.CURRENT), ("block.1", 0, Role.COPYING),
    ]  # fmt: skip


def test_slopes_show_near_heads_and_a_table_of_positions_shows_none():
    heads = (Reach(0.05, 0.9, 0.9), Reach(0.2, 0.9, 0.9))
    layer = LayerReach(("one",), ("block.0",), heads)
    for case, expected in ((Case.SLOPES, [(0, Role.NEAR)]), (Case.TABLE, [])):
        pair = paired(state())
        give(pair, copying, Copying((), 9, 9, False), B)
        give(pair, reaches, Reaches(case, 64, (layer,)), B)
        assert [(role.head, role.role) for role in roles(pair, B).recognized(0.9, 0.4, 0.1)] == expected
