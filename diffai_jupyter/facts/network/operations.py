"""Floating-point operations and bytes of each module for one piece of work, from headers and configuration.

A matrix costs two operations for each element and each position that passes through it; attention costs two for each
number that a query meets in the keys and values it sees. Look-ups, norms, activation functions and rotary positions
are left out, as they are no matrix products: that is what ``torch.utils.flop_counter`` counts of a forward pass. The
half that a causal mask hides is counted, as it is there.

References
----------
Kaplan et al. 2020, Scaling Laws for Neural Language Models; Hoffmann et al. 2022, appendix F; Chowdhery et al. 2022
(PaLM), appendix B; Gu & Dao 2023 (Mamba) for the scan.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from diffai_jupyter.facts.network.computation import Attention, Module, Network
from diffai_jupyter.facts.network.passage import Passes


@dataclass(frozen=True, slots=True)
class Work:
    """One piece of work.

    Parameters
    ----------
    batch : int
        Sequences, images or rows at a time.
    tokens : int
        New tokens of each sequence.
    context : int
        Tokens that the last of them sees, itself included; tokens that an encoder reads.
    words : int
        Tokens of each sequence whose next word is predicted.
    is_cached : bool
        Whether what came before is in the cache, so that only the new tokens are computed.
    """

    batch: int
    tokens: int
    context: int
    words: int
    is_cached: bool = False


def forward(tokens: int, batch: int = 1) -> Work:
    """Return a forward pass that predicts a word at every token."""
    return Work(batch, tokens, tokens, tokens)


def prompt(tokens: int, batch: int = 1) -> Work:
    """Return the reading of a prompt: only the last token predicts a word."""
    return Work(batch, tokens, tokens, 1)


def next_token(context: int, batch: int = 1) -> Work:
    """Return the making of one token for each sequence, with everything before it in the cache."""
    return Work(batch, 1, context, 1, is_cached=True)


@dataclass(frozen=True, slots=True)
class Operation:
    """What one module does in a piece of work.

    Parameters
    ----------
    name : str
        Stored name of the module.
    role : str
        What it does, such as ``"feed-forward out"``.
    block : int, optional
        Index of its block.
    flops : float
        Floating-point operations; a multiplication and its addition are two.
    weights : float
        Bytes of stored weights that are read.
    numbers : float
        Activations and cached keys and values that are read and written.
    dtype : str
        Stored dtype of its weights; empty for attention scores.
    """

    name: str
    role: str
    block: int | None
    flops: float
    weights: float
    numbers: float
    dtype: str = ""


def operations(network: Network, work: Work) -> tuple[Operation, ...]:
    """List what every module does in a piece of work; modules that rest are left out."""
    return (*_products(network, work), *_scores(network, work))


def _positions(passes: Passes, each: float, network: Network, work: Work) -> float:
    """Return how many positions of one sequence or image pass."""
    if passes is Passes.FIXED:
        return each
    if passes is Passes.SOURCE:
        return 0 if work.is_cached else each * (network.source or work.context)
    return each * (work.words if passes is Passes.WORDS else work.tokens)


def _products(network: Network, work: Work) -> Iterator[Operation]:
    for module in network.modules:
        positions = work.batch * _positions(module.passes, module.positions, network, work)
        if not positions:
            continue
        operation = Operation(
            module.name,
            module.role,
            module.block,
            2.0 * module.elements * positions * module.active / module.experts,
            module.stored * _touched(module, positions),
            module.width * positions * module.active,
            module.dtype,
        )
        for _ in range(module.repeats):
            yield operation


def _touched(module: Module, positions: float) -> float:
    """Return the share of the experts that some position passes through, if each chooses at random."""
    return float(1.0 - (1.0 - module.active / module.experts) ** positions)


def _scores(network: Network, work: Work) -> Iterator[Operation]:
    for layer in network.attentions:
        queries = work.batch * _positions(layer.queries, layer.positions, network, work)
        keys = _keys(layer, network, work)
        if not queries or not keys:
            continue
        operation = Operation(
            layer.name,
            "attention scores",
            layer.block,
            2.0 * layer.scored * queries * keys,
            0.0,
            layer.scored * queries + layer.cached * keys * work.batch,
        )
        for _ in range(layer.repeats):
            yield operation


def _keys(layer: Attention, network: Network, work: Work) -> float:
    """Return how many keys one query sees."""
    if layer.keys is Passes.FIXED:
        keys = layer.positions
    elif layer.keys is Passes.SOURCE:
        keys = network.source or work.context
    else:
        keys = work.context
    return min(keys, layer.window) if layer.window else keys
