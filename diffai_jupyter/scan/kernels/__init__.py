"""The arithmetic of the pass over blocks of tiles: with NumPy, or compiled where llvmlite is installed.

Both add in the order of `diffai_jupyter.scan.tiles` and leave the same bits, so that a report does not depend on which
of them ran. ``DIFFAI_KERNEL`` (``numpy`` or ``compiled``) chooses by hand.
"""

from __future__ import annotations

import functools
import importlib.util
import os

from diffai_jupyter.checkpoint.dtypes import Dtype
from diffai_jupyter.scan.kernels.reference import NumpyKernel, Workspace
from diffai_jupyter.scan.kernels.tile import Kernel

NUMPY, COMPILED = "numpy", "compiled"
WORTH_COMPILING = 96 << 20
"""Bytes that a process goes through with NumPy before it compiles: that takes about as long as the compiler."""


class _Gone:
    """How many bytes this process has been through."""

    nbytes = 0


def kernel_for(
    dtypes: tuple[Dtype | None, Dtype | None], n_cols: int, epsilon: float, room: Workspace, nbytes: int
) -> Kernel:
    """Return a kernel for one slab of a tensor pair.

    Parameters
    ----------
    dtypes : tuple of Dtype or None
        Stored dtypes of A and B; None on a side that lacks the tensor.
    n_cols : int
        Columns of the grid.
    epsilon : float
        Differences up to this count as no change.
    room : Workspace
        Where the arrays of a tile go.
    nbytes : int
        Bytes of the slab.
    """
    reference = NumpyKernel(dtypes, n_cols, epsilon, room)
    name = kernel_name(nbytes)
    _Gone.nbytes += nbytes
    if name == NUMPY:
        return reference
    from diffai_jupyter.scan.kernels.compiled import CompiledKernel

    return CompiledKernel(reference)


def kernel_name(nbytes: int) -> str:
    """Return which kernel runs for so many bytes more."""
    if _asked() == NUMPY or not _has_compiler():
        return NUMPY
    return COMPILED if _asked() or _Gone.nbytes + nbytes >= WORTH_COMPILING else NUMPY


def _asked() -> str:
    return os.environ.get("DIFFAI_KERNEL", "").strip().lower()


@functools.cache
def _has_compiler() -> bool:
    return importlib.util.find_spec("llvmlite") is not None
