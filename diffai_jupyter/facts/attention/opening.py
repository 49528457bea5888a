"""The matrices of one attention layer, read and cut by head, with the norm in front folded in.

A norm divides each position by a number of its own, which no matrix holds; only its gain is folded, and what a
LayerNorm adds. So it is with norms of queries, keys and compressed vectors: their gains scale rows.

Converters to GGUF reorder the rows of queries and of keys inside each head, both in the same way, so that the
products of a head stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffai_jupyter.checkpoint.pieces import FUSED, cut_qkv, is_interleaved
from diffai_jupyter.checkpoint.views import Interleaved
from diffai_jupyter.evidence import Unknowable
from diffai_jupyter.facts.attention.finding import Projections, Stored
from diffai_jupyter.facts.attention.heads import Heads, heads_by_count
from diffai_jupyter.facts.attention.norms import Norm
from diffai_jupyter.scan.products import plain_algebra
from diffai_jupyter.scan.run import Run
from diffai_jupyter.wording import show_name

Array64 = NDArray[np.float64]
Cuts = Mapping[str, Stored]


@dataclass(frozen=True, slots=True, eq=False)
class OpenAttention:
    """The matrices of one attention layer, read and cut by head.

    The gain of the norm in front is folded into queries, keys and values (``W diag(gain)``). Their last column is the
    bias, zeros where there is none.

    Parameters
    ----------
    q : ndarray of float64, shape (count, size, inputs + 1)
    k : ndarray of float64, shape (shared, size, inputs of keys + 1)
    v : ndarray of float64, shape (shared, value_size, inputs of keys + 1)
    o : ndarray of float64, shape (count, outputs, value_size)
    """

    q: Array64
    k: Array64
    v: Array64
    o: Array64


def open_layer(layer: Projections, heads: Heads, run: Run, cuts: Cuts | None = None) -> OpenAttention:
    """Read the matrices of a layer.

    Parameters
    ----------
    layer : Projections
        The layer.
    heads : Heads
        How to cut it.
    run : Run
        Its limit for one matrix.
    cuts : mapping of str to Stored, optional
        Queries, keys and values of a fused projection, where it is known how it is to be cut.

    Raises
    ------
    Unknowable
        ``NOT_DEQUANTIZABLE`` for packed codes, ``NO_TARGET`` without values or an output projection,
        ``SHAPE_MISMATCH`` where the heads do not share out the rows, ``NEEDS_CONFIG`` where a layer has to be cut and
        was asked for whole, ``TOO_LARGE`` for a matrix above the limit.
    """
    if layer.is_hidden:
        raise Unknowable("NOT_DEQUANTIZABLE")
    with plain_algebra():
        return open_latent(layer, heads, run) if layer.is_latent else _open_plain(layer, heads, run, cuts)


def _open_plain(layer: Projections, heads: Heads, run: Run, cuts: Cuts | None) -> OpenAttention:
    parts = (cuts or _cut(layer, heads)) if layer.is_fused else _separate(layer, heads)
    missing = [role for role in ("q", "k", "v") if role not in parts] + ["o"] * ("o" not in layer.weights)
    if missing:
        raise Unknowable("NO_TARGET", missing=", ".join(missing))
    if not heads.size:
        heads = _whole(parts, layer.values)
    rows = {"q": heads.count * heads.size, "k": heads.shared * heads.size, "v": heads.shared * heads.value_size}
    width, own = (parts[role].tensor.grid[1] + 1 for role in "qk")
    if any(parts[role].tensor.grid[0] != count for role, count in rows.items()) or 1 in (width, own):
        raise Unknowable("SHAPE_MISMATCH", layer=show_name(layer.path))
    norms = layer.norms
    memory = norms.memory if layer.is_cross else norms.front
    return OpenAttention(
        scaled(affine(parts["q"], norms.front, run), norms.q).reshape(heads.count, heads.size, width),
        scaled(affine(parts["k"], memory, run), norms.k).reshape(heads.shared, heads.size, own),
        affine(parts["v"], memory, run).reshape(heads.shared, heads.value_size, own),
        outputs(layer, heads, run),
    )


def _separate(layer: Projections, heads: Heads) -> Cuts:
    if not layer.is_gated:
        return layer.weights
    if not heads.size:
        raise Unknowable("NEEDS_CONFIG")
    name, tensor, bias = layer.weights["q"]
    queries, bias = (None if part is None else Interleaved(part, 2, heads.size, 0, 1) for part in (tensor, bias))
    assert queries is not None
    return {**layer.weights, "q": Stored(name, queries, bias)}


def _cut(layer: Projections, heads: Heads) -> Cuts:
    """Cut a fused projection as its family does."""
    name, tensor, bias = layer.weights["qkv"]
    total = tensor.grid[0]
    sizes = [heads.count * heads.size, heads.shared * heads.size, heads.shared * heads.value_size]
    if not heads.size:
        if is_interleaved(name, layer.config) or total % 3:
            raise Unknowable("NEEDS_CONFIG")
        sizes = [total // 3] * 3
    if sum(sizes) != total:
        raise Unknowable("SHAPE_MISMATCH", layer=show_name(layer.path))
    ways = [
        None if part is None else next(iter(cut_qkv(name, part, layer.config, sizes, [heads.size]).values()))
        for part in (tensor, bias)
    ]
    assert ways[0] is not None
    return {role: Stored(name, ways[0][role], ways[1][role] if ways[1] else None) for role in FUSED["qkv"]}


def _whole(parts: Cuts, values: int) -> Heads:
    """Return a whole layer as one head, which takes one key and one value for each query."""
    rows = [parts[role].tensor.grid[0] for role in FUSED["qkv"]]
    if rows[0] != rows[1] or rows[2] != values or not all(rows):
        raise Unknowable("NEEDS_CONFIG")
    return Heads(1, 1, rows[0], rows[2])


def open_latent(layer: Projections, heads: Heads, run: Run) -> OpenAttention:
    """Read multi-head latent attention: queries, keys and values as the products that they come out of.

    A query is its rows without positions above those with. A key is its rows of the product of both projections above
    the rows with positions, which all heads share.
    """
    if not heads.size:
        raise Unknowable("NEEDS_CONFIG")
    if "o" not in layer.weights:
        raise Unknowable("NO_TARGET", missing="o")
    if heads_by_count(layer, heads.count) != heads:
        raise Unknowable("SHAPE_MISMATCH", layer=show_name(layer.path))
    if heads.count * heads.size * (layer.inputs + 1) * 8 > run.matrix_bytes:
        raise Unknowable("TOO_LARGE", shape=f"{heads.count * heads.size}x{layer.inputs + 1}")
    norms = layer.norms
    if "q_b" in layer.weights:
        inner = scaled(affine(layer.weights["q_a"], norms.front, run), norms.q_a)
        queries = _composed(layer.weights["q_b"], inner, run)
    else:
        queries = affine(layer.weights["q"], norms.front, run)
    compressed = affine(layer.weights["kv_a"], norms.front, run)
    rank, plain = len(compressed) - layer.rotated, heads.size - layer.rotated
    latent = scaled(_of_unit_size(compressed[:rank], norms.kv_a), norms.kv_a)
    keys = np.empty((heads.count, heads.size, compressed.shape[1]))
    keys[:, plain:] = compressed[rank:]
    if "k_b" in layer.weights:
        # GGUF has the part of the keys turned, so that it can be multiplied with queries first.
        turned = run.whole(layer.weights["k_b"].tensor).reshape(heads.count, rank, plain)
        keys[:, :plain] = turned.transpose(0, 2, 1).astype(np.float64) @ latent
        values = run.whole(layer.weights["v_b"].tensor).reshape(-1, rank).astype(np.float64) @ latent
        values = values.reshape(heads.count, heads.value_size, -1)
    else:
        both = _composed(layer.weights["kv_b"], latent, run)
        both = both.reshape(heads.count, plain + heads.value_size, -1)
        keys[:, :plain], values = both[:, :plain], np.ascontiguousarray(both[:, plain:])
    queries = queries.reshape(heads.count, heads.size, -1)
    return OpenAttention(queries, keys, values, outputs(layer, heads, run))


def _of_unit_size(rows: Array64, norm: Norm | None) -> Array64:
    """Divide rows by what a norm behind them divides by for an input of equal, independent elements.

    The other rows of a key pass no norm: were this left out, rows that only grow would turn the whole.
    """
    size = 0.0 if norm is None else float(np.sqrt(np.square(rows).sum() / max(1, len(rows))))
    return rows / size if size else rows


def _composed(part: Stored, inner: Array64, run: Run) -> Array64:
    """Return the product of a projection and an affine map, its bias added."""
    found: Array64 = np.asarray(run.whole(part.tensor), dtype=np.float64) @ inner
    if part.bias is not None:
        found[:, -1] += part.bias.read_all().reshape(-1)
    return found


def affine(part: Stored, norm: Norm | None, run: Run) -> Array64:
    """Return a projection with its bias as the last column, the gain of a norm in front folded in.

    What a LayerNorm adds goes through the projection into the bias: ``W (g * x + s) + b = W diag(g) x + (W s + b)``.

    Returns
    -------
    ndarray of float64, shape (outputs, inputs + 1)
    """
    n_rows, n_cols = part.tensor.grid
    found = np.empty((n_rows, n_cols + 1))
    found[:, :-1] = run.whole(part.tensor)
    found[:, -1] = 0.0 if part.bias is None else part.bias.read_all().reshape(-1)
    if norm is not None and norm.size == n_cols:
        if norm.shift is not None:
            found[:, -1] += found[:, :-1] @ np.asarray(norm.shift.read_all(), dtype=np.float64).reshape(-1)
        found[:, :-1] *= _gain(norm)
    return found


def scaled(rows: Array64, norm: Norm | None) -> Array64:
    """Multiply rows, in place, by the gain of the norm behind them, which may be that of one head for all."""
    if norm is not None and norm.size and len(rows) % norm.size == 0:
        rows *= np.tile(_gain(norm), len(rows) // norm.size)[:, np.newaxis]
    return rows


def _gain(norm: Norm) -> Array64:
    gain = np.concatenate([np.asarray(part.read_all(), dtype=np.float64).reshape(-1) for part in norm.gains])
    return gain + 1.0 if norm.is_offset else gain


def outputs(layer: Projections, heads: Heads, run: Run) -> Array64:
    """Return what each head's values are multiplied with to be written.

    Returns
    -------
    ndarray of float64, shape (heads, outputs, rows of one value)
    """
    stored = layer.weights["o"].tensor
    rows, cols = stored.grid
    if cols != heads.count * heads.value_size:
        raise Unknowable("SHAPE_MISMATCH", layer=show_name(layer.path))
    whole = run.whole(stored)
    found = np.empty((heads.count, rows, heads.value_size))
    for head in range(heads.count):
        found[head] = whole[:, head * heads.value_size : (head + 1) * heads.value_size]
    return found
