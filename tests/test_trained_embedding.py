"""Embeddings of networks trained here, with known tokens that never occur."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import pytest
from embeddings import embedded, tokenizer

from diffai_jupyter.facts.embedding.drift import moves, needs_alignment
from diffai_jupyter.facts.embedding.geometry import geometry
from diffai_jupyter.facts.embedding.preservation import Preservation
from diffai_jupyter.facts.embedding.rotation import alignment
from diffai_jupyter.facts.embedding.undertrained import LIKE_UNUSED, undertrained
from diffai_jupyter.scan.pair import Pair

pytestmark = pytest.mark.torch

TOKENS, WIDTH, GROUPS, STEPS = 600, 16, 12, 900
NEVER = frozenset(range(0, TOKENS, 25))


@functools.cache
def trained(seed: int, decay: float = 0.1, is_tied: bool = False) -> Mapping[float, np.ndarray]:
    """Return the table by share of the training: tokens of one group are followed by those of another one."""
    torch = pytest.importorskip("torch")
    draw = torch.Generator().manual_seed(seed)
    live = np.random.default_rng(9).permutation([token for token in range(TOKENS) if token not in NEVER])
    members = torch.tensor(live.reshape(GROUPS, -1))
    table, head = (torch.nn.Parameter(0.3 * torch.randn(TOKENS, WIDTH, generator=draw)) for _ in range(2))
    inner = torch.nn.Parameter(torch.eye(WIDTH) + 0.1 * torch.randn(WIDTH, WIDTH, generator=draw))
    head = table if is_tied else head
    optimizer = torch.optim.AdamW([table, inner, *([] if is_tied else [head])], lr=0.01, weight_decay=decay)
    shares = torch.arange(1, members.shape[1] + 1) ** -0.7
    saved = {0.0: table.detach().numpy().copy()}
    for step in range(1, STEPS + 1):
        group = torch.randint(GROUPS, (256,), generator=draw)
        first = members[group, torch.multinomial(shares, 256, True, generator=draw)]
        second = members[(group * 5 + 1) % GROUPS, torch.multinomial(shares, 256, True, generator=draw)]
        loss = torch.nn.functional.cross_entropy(table[first] @ inner @ head.T, second)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step in (STEPS * 3 // 4, STEPS):
            saved[step / STEPS] = table.detach().numpy().copy()
    return MappingProxyType(saved)


def kept(pair: Pair) -> float:
    found = geometry(pair).preservation
    assert isinstance(found, Preservation)
    return found.value


def test_the_end_of_a_training_moves_little() -> None:
    run = trained(0)
    pair = embedded(run[0.75], run[1.0], cosine=None)
    assert not needs_alignment(pair)
    assert moves(pair).drift < 0.1
    assert kept(pair) > 0.9


def test_two_seeds_agree_behind_a_rotation_only() -> None:
    pair = embedded(trained(0)[1.0], trained(1)[1.0], cosine=0.0)
    assert needs_alignment(pair)
    assert moves(pair).drift == pytest.approx(1.0, abs=0.2)
    assert alignment(pair).drift < 0.75
    assert 0.25 < kept(pair) < 0.9


def test_a_start_has_nothing_of_an_end() -> None:
    pair = embedded(trained(0)[0.0], trained(1)[1.0], cosine=0.0)
    assert alignment(pair).drift == pytest.approx(1.0, abs=0.05)
    assert kept(pair) == pytest.approx(0.0, abs=0.05)


def test_tokens_that_never_occur_are_found_where_weights_decay() -> None:
    end = trained(0, decay=0.5)[1.0]
    found = {suspect.row for suspect in undertrained(embedded(end, end), 1).suspects}
    assert len(found & NEVER) >= 0.9 * len(NEVER)
    assert len(found - NEVER) <= 1


def test_in_a_tied_table_they_are_found_by_rows_that_no_token_uses() -> None:
    end = trained(0, is_tied=True)[1.0]
    unused = {25, 50, 75, 100, 125}
    words = tokenizer({row: f"w{row}" for row in range(TOKENS) if row not in unused})
    found = undertrained(embedded(end, end, words, words), 1)
    rows = {suspect.row for suspect in found.suspects}
    assert (found.unnamed, bool(rows - NEVER)) == (5, False)
    assert len(rows) >= 0.8 * (len(NEVER) - 5)
    assert any(LIKE_UNUSED in suspect.signs for suspect in found.suspects)
