"""A sample of element positions that is the same for every storage of a tensor."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

SAMPLE_SIZE = 1 << 18


def seeded(*words: object) -> np.random.Generator:
    """Return a generator that draws the same for the same words: names, purposes, lengths."""
    text = "\0".join(map(str, words))
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


def sample_positions(name: str, size: int) -> NDArray[np.int64]:
    """Return the sorted positions at which a tensor is sampled.

    Parameters
    ----------
    name : str
        Name of the tensor pair; with `size` it fixes the sample.
    size : int
        Number of elements.

    Returns
    -------
    ndarray of int64, shape (min(size, 262144),)
        All positions when the tensor is small; else one drawn at random from each of 262,144
        equal strata of the flattened tensor.

    Examples
    --------
    >>> sample_positions("w", 5)
    array([0, 1, 2, 3, 4])
    """
    if size <= SAMPLE_SIZE:
        return np.arange(size, dtype=np.int64)
    digest = hashlib.sha256(f"{name}\0{size}".encode("utf-8", "surrogatepass")).digest()
    draw = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
    edges = np.linspace(0, size, SAMPLE_SIZE + 1).astype(np.int64)
    return edges[:-1] + (draw.random(SAMPLE_SIZE) * (edges[1:] - edges[:-1])).astype(np.int64)
