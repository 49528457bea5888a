"""The matrices of one attention layer, read and cut by head, with the norm in front folded in.

A norm divides each position by a number of its own, which no matrix holds; only its gain is folded, and what a
LayerNorm adds. So it is with norms of queries, keys and compressed vectors: their gains scale rows.

Converters to GGUF reorder the rows of queries and of keys inside each head, both in the same way, so that the
products of a head stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffai_jupyter.checkpoint.dtypes import Array
from diffai_jupyter.checkpoint.pieces import FUSED, cut_qkv, is_interleaved
from diffai_jupyter.checkpoint.tensor import Span, Tensor
from diffai_jupyter.checkpoint.views import Interleaved
from diffai_jupyter.evidence import Unknowable
from diffai_jupyter.facts.attention.finding import Projections, Stored
from diffai_jupyter.facts.attention.heads import Heads, heads_by_count
from diffai_jupyter.facts.attention.norms import Norm
from diffai_jupyter.scan.one_thread import plain_algebra
from diffai_jupyter.scan.run import Run, blocks
from diffai_jupyter.wording import show_name

Array64 = NDArray[np.float64]
Cuts = Mapping[str, Stored]

PART_BYTES = 1 << 27
"""Float64 of one side that is held at once, where a single head is not larger."""


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


def open_in_parts(layer: Projections, heads: Heads, run: Run, cuts: Cuts | None = None) -> Iterator[OpenAttention]:
    """Read a layer some heads at a time, as many as fit in 128 MiB: usually all.

    Parameters
    ----------
    layer, heads, run, cuts
        As in `open_layer`. One head of size zero is a single part.

    Yields
    ------
    OpenAttention
        Consecutive heads of keys and values with the heads that read them.

    Raises
    ------
    Unknowable
        As `open_layer`; ``TOO_LARGE`` where one head of keys and values is above the limit with those that read it.
    """
    own = _bytes_of_part(layer, heads)
    step = min(PART_BYTES, run.matrix_bytes) // own if own else heads.shared
    if not heads.size or step >= heads.shared:
        yield open_layer(layer, heads, run, cuts)
        return
    if layer.is_hidden:
        raise Unknowable("NOT_DEQUANTIZABLE")
    if own > run.matrix_bytes:
        raise Unknowable("TOO_LARGE", head=f"{own} bytes")
    step = max(1, step)
    spans = ((first, min(heads.shared, first + step)) for first in range(0, heads.shared, step))
    if not layer.is_latent:
        for span in spans:
            run.check()
            with plain_algebra():
                found = _open_plain(layer, heads, run, cuts, span)
            yield found
        return
    with plain_algebra():
        latent = _Latent.of(layer, heads, run)
    for span in spans:
        run.check()
        with plain_algebra():
            found = latent.opened(span)
        yield found


def part_bytes(layer: Projections, heads: Heads) -> int:
    """Return the bytes of float64 that a part of `open_in_parts` takes."""
    return min(PART_BYTES, heads.shared * _bytes_of_part(layer, heads)) if heads.size else 0


def _bytes_of_part(layer: Projections, heads: Heads) -> int:
    """Return the bytes of float64 of one head of keys and values with the heads that read it."""
    group = heads.count // max(1, heads.shared)
    outputs = layer.weights["o"].tensor.grid[0] if "o" in layer.weights else 0
    rows = (group + 1) * heads.size + heads.value_size
    return 8 * (rows * (layer.inputs + 1) + group * heads.value_size * outputs)


def _open_plain(
    layer: Projections, heads: Heads, run: Run, cuts: Cuts | None, span: Span | None = None
) -> OpenAttention:
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
    if span is None:
        of_q = of_k = of_v = asked = None
    else:
        asked = _asking(heads, span)
        of_q, of_k, of_v = _times(asked, heads.size), _times(span, heads.size), _times(span, heads.value_size)
    return OpenAttention(
        scaled(affine(parts["q"], norms.front, run, of_q), norms.q, of_q, rows["q"]).reshape(-1, heads.size, width),
        scaled(affine(parts["k"], memory, run, of_k), norms.k, of_k, rows["k"]).reshape(-1, heads.size, own),
        affine(parts["v"], memory, run, of_v).reshape(-1, heads.value_size, own),
        outputs(layer, heads, run, asked),
    )


def _asking(heads: Heads, span: Span) -> Span:
    """Return the heads that read some heads of keys and values."""
    return _times(span, heads.count // heads.shared)


def _times(span: Span, factor: int) -> Span:
    return span[0] * factor, span[1] * factor


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
    return _Latent.of(layer, heads, run).opened((0, heads.count))


@dataclass(frozen=True, slots=True, eq=False)
class _Latent:
    """A layer of latent attention with what all its heads come out of.

    Parameters
    ----------
    inner : ndarray of float64, optional
        What queries come out of, shape (rank, inputs + 1); None where they have a projection of their own.
    latent : ndarray of float64, shape (rank, inputs + 1)
        What keys and values come out of.
    positions : ndarray of float64, shape (rows, inputs + 1)
        Rows of keys with positions.
    """

    layer: Projections
    heads: Heads
    run: Run
    inner: Array64 | None
    latent: Array64
    positions: Array64

    @classmethod
    def of(cls, layer: Projections, heads: Heads, run: Run) -> _Latent:
        if "o" not in layer.weights:
            raise Unknowable("NO_TARGET", missing="o")
        if heads_by_count(layer, heads.count) != heads:
            raise Unknowable("SHAPE_MISMATCH", layer=show_name(layer.path))
        norms = layer.norms
        inner = None
        if "q_b" in layer.weights:
            inner = scaled(affine(layer.weights["q_a"], norms.front, run), norms.q_a)
        compressed = affine(layer.weights["kv_a"], norms.front, run)
        rank = len(compressed) - layer.rotated
        latent = scaled(_of_unit_size(compressed[:rank], norms.kv_a), norms.kv_a)
        return cls(layer, heads, run, inner, latent, compressed[rank:])

    def opened(self, span: Span) -> OpenAttention:
        """Multiply out some heads."""
        weights, heads, run, rank = self.layer.weights, self.heads, self.run, len(self.latent)
        count, plain = span[1] - span[0], heads.size - self.layer.rotated
        of_q = _times(span, heads.size)
        if self.inner is not None:
            queries = _composed(weights["q_b"], self.inner, run, of_q)
        else:
            queries = affine(weights["q"], self.layer.norms.front, run, of_q)
        keys = np.empty((count, heads.size, self.latent.shape[1]))
        keys[:, plain:] = self.positions
        if "k_b" in weights:
            # GGUF has the part of the keys turned, so that it can be multiplied with queries first.
            turned = self._of_heads(weights["k_b"].tensor, span).reshape(count, rank, plain)
            keys[:, :plain] = turned.transpose(0, 2, 1) @ self.latent
            values = self._of_heads(weights["v_b"].tensor, span).reshape(-1, rank) @ self.latent
            values = values.reshape(count, heads.value_size, -1)
        else:
            both = _composed(weights["kv_b"], self.latent, run, _times(span, plain + heads.value_size))
            both = both.reshape(count, plain + heads.value_size, -1)
            keys[:, :plain], values = both[:, :plain], np.ascontiguousarray(both[:, plain:])
        queries = queries.reshape(count, heads.size, -1)
        return OpenAttention(queries, keys, values, outputs(self.layer, heads, run, span))

    def _of_heads(self, tensor: Tensor, span: Span) -> Array64:
        rows = _times(span, tensor.grid[0] // self.heads.count)
        return np.asarray(_some(tensor, rows, self.run), dtype=np.float64)


def _of_unit_size(rows: Array64, norm: Norm | None) -> Array64:
    """Divide rows by what a norm behind them divides by for an input of equal, independent elements.

    The other rows of a key pass no norm: were this left out, rows that only grow would turn the whole.
    """
    size = 0.0 if norm is None else float(np.sqrt(np.square(rows).sum() / max(1, len(rows))))
    return rows / size if size else rows


def _composed(part: Stored, inner: Array64, run: Run, rows: Span) -> Array64:
    """Return the product of some rows of a projection and an affine map, its bias added."""
    found: Array64 = np.asarray(_some(part.tensor, rows, run), dtype=np.float64) @ inner
    if part.bias is not None:
        found[:, -1] += part.bias.read_all().reshape(-1)[slice(*rows)]
    return found


def _some(tensor: Tensor, rows: Span | None, run: Run) -> Array:
    """Return some rows of a matrix, or all of them."""
    n_rows, n_cols = tensor.grid
    if rows is None or rows == (0, n_rows):
        return run.whole(tensor)
    return tensor.read(rows, (0, n_cols))


def affine(part: Stored, norm: Norm | None, run: Run, rows: Span | None = None) -> Array64:
    """Return a projection with its bias as the last column, the gain of a norm in front folded in.

    What a LayerNorm adds goes through the projection into the bias: ``W (g * x + s) + b = W diag(g) x + (W s + b)``.

    Returns
    -------
    ndarray of float64, shape (outputs, inputs + 1)
        Some rows of it where these are asked for.
    """
    values = _some(part.tensor, rows, run)
    n_rows, n_cols = values.shape
    found = np.empty((n_rows, n_cols + 1))
    found[:, :-1] = values
    found[:, -1] = 0.0 if part.bias is None else part.bias.read_all().reshape(-1)[slice(*(rows or (None,)))]
    if norm is not None and norm.size == n_cols:
        if norm.shift is not None:
            found[:, -1] += found[:, :-1] @ np.asarray(norm.shift.read_all(), dtype=np.float64).reshape(-1)
        found[:, :-1] *= _gain(norm)
    return found


def scaled(rows: Array64, norm: Norm | None, span: Span | None = None, total: int = 0) -> Array64:
    """Multiply rows, in place, by the gain of the norm behind them, which may be that of one head for all.

    They are all rows, or those of a span of so many in all.
    """
    count = total or len(rows)
    if norm is not None and norm.size and count % norm.size == 0:
        gains = np.tile(_gain(norm), count // norm.size)
        rows *= (gains if span is None else gains[slice(*span)])[:, np.newaxis]
    return rows


def _gain(norm: Norm) -> Array64:
    gain = np.concatenate([np.asarray(part.read_all(), dtype=np.float64).reshape(-1) for part in norm.gains])
    return gain + 1.0 if norm.is_offset else gain


def outputs(layer: Projections, heads: Heads, run: Run, span: Span | None = None) -> Array64:
    """Return what the values of each head, or of some heads, are multiplied with to be written.

    Returns
    -------
    ndarray of float64, shape (heads, outputs, rows of one value)
    """
    stored = layer.weights["o"].tensor
    rows, cols = stored.grid
    if cols != heads.count * heads.value_size:
        raise Unknowable("SHAPE_MISMATCH", layer=show_name(layer.path))
    if span is None or span == (0, heads.count):
        whole, first, count, size = run.whole(stored), 0, heads.count, heads.value_size
        parts: Iterable[tuple[int, Array]] = ((0, whole),)
    else:
        # Whole rows, as their pieces lie far apart.
        parts, first, count, size = blocks(stored), span[0], span[1] - span[0], heads.value_size
    found = np.empty((count, rows, size))
    for top, values in parts:
        for head in range(count):
            place = (first + head) * size
            found[head, top : top + len(values)] = values[:, place : place + size]
    return found
