"""Singular values of single tensors: of a weight in A, in B, and of what changed."""

from __future__ import annotations

import math

import numpy as np

from diffai_jupyter.checkpoint.tensor import Tensor
from diffai_jupyter.evidence import Unknowable, if_known
from diffai_jupyter.facts import fact
from diffai_jupyter.facts.change.changes import changes
from diffai_jupyter.facts.change.singular import (
    HELD_ELEMENTS,
    WHOLE_SIDE,
    Spectrum,
    grid_of_values,
    leading,
    singular_values,
    unit_scale,
)
from diffai_jupyter.facts.change.spectra import BLOCK_SIDE
from diffai_jupyter.facts.change.update_spectra import UpdateSpectrum, update_spectra
from diffai_jupyter.scan.one_thread import plain_algebra
from diffai_jupyter.scan.pair import Pair


@fact
def side_spectrum(pair: Pair, side: int) -> Spectrum:
    """Return the singular values of the only tensor of a pair, in A (0) or B (1); zero stands for what is not finite.

    A grid of at most 512 x 512 is decomposed; of a larger one the roots of the eigenvalues of its Gram matrix are
    taken, up to a smaller side of 1024; of others the 64 leading values, see `leading`.

    Parameters
    ----------
    pair : Pair
        A pair of one tensor, see `diffai_jupyter.scan.passes.pair_of_one`.
    side : int
        0 for A, 1 for B.

    Raises
    ------
    Unknowable
        ``TOO_SMALL`` for a vector, ``TOO_LARGE`` above 2^26 elements, ``ALL_NONFINITE``, ``NOT_DEQUANTIZABLE`` where
        codes do not tell numbers, ``NO_TARGET`` for complex numbers.
    """
    (change,) = changes(pair)
    tensor = (change.tensor.a, change.tensor.b)[side]
    stats = (change.stats.a, change.stats.b)[side]
    if tensor is None or stats is None:
        raise Unknowable("NO_TARGET")
    _refuse(tensor)
    if not stats.finite:
        raise Unknowable("ALL_NONFINITE")
    scale = unit_scale(stats.norm)
    grid = grid_of_values(change.tensor.name, tensor, scale)
    with plain_algebra():
        if max(tensor.grid) <= BLOCK_SIDE:
            values = np.asarray(np.linalg.svd(grid.read((0, grid.rows), (0, grid.cols)), compute_uv=False))
        else:
            values = singular_values(grid) if grid.side <= WHOLE_SIDE else leading(grid).values
    return Spectrum(values / scale, stats.squares, len(values) == grid.side)


def side_spectra(pair: Pair) -> tuple[Spectrum | None, Spectrum | None]:
    """Return `side_spectrum` of A and of B, which are computed at the same time; None where there is none."""
    changes(pair)
    a, b = pair.run.map("singular values", (0, 1), lambda side: if_known(lambda: side_spectrum(pair, side)))
    return a, b


@fact
def change_spectrum(pair: Pair) -> UpdateSpectrum:
    """Return the singular values of B − A of the only tensor of a pair.

    Raises
    ------
    Unknowable
        As `side_spectrum`; also ``SHAPE_MISMATCH`` where values are not compared, ``TOO_SMALL`` where nothing changed.
    """
    (change,) = changes(pair)
    tensor = change.tensor.b
    if change.both is None or tensor is None:
        raise Unknowable("SHAPE_MISMATCH")
    _refuse(tensor)
    found = update_spectra(pair)
    if not found:
        if not math.isfinite(change.both.d_squares) or not change.both.finite:
            raise Unknowable("ALL_NONFINITE")
        raise Unknowable("TOO_SMALL", change=change.status.value)
    return found[0]


def _refuse(tensor: Tensor) -> None:
    grid = f"{tensor.grid[0]}x{tensor.grid[1]}"
    if tensor.dtype.opaque:
        raise Unknowable("NOT_DEQUANTIZABLE")
    if tensor.dtype.kind == "complex":
        raise Unknowable("NO_TARGET", numbers="complex")
    if min(tensor.grid) < 2:
        raise Unknowable("TOO_SMALL", grid=grid)
    if tensor.size > HELD_ELEMENTS:
        raise Unknowable("TOO_LARGE", grid=grid)
