"""A sample of element positions that is the same for every storage of a tensor."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_SAMPLE_BITS = 18
SAMPLE_SIZE = 1 << _SAMPLE_BITS


def seeded(*words: object) -> np.random.Generator:
    """Return a generator that draws the same for the same words: names, purposes, lengths."""
    text = "\0".join(map(str, words))
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


@dataclass(frozen=True, slots=True)
class Sampling:
    """Which elements of a tensor are sampled: all when it is small, else one of each of 262,144 equal strata.

    Parameters
    ----------
    name : str
        Name of the tensor pair; with `size` it fixes the sample.
    size : int
        Number of elements.
    """

    name: str
    size: int

    def between(self, start: int, stop: int) -> NDArray[np.int64]:
        """Return the sampled positions from `start` up to `stop`, in rising order.

        Where in its stratum an element is drawn tells a table of random numbers, the same for all tensors; name and
        size say where in that table a tensor begins.
        """
        if self.size <= SAMPLE_SIZE:
            return np.arange(start, stop, dtype=np.int64)
        first = max(0, start * SAMPLE_SIZE // self.size - 1)
        last = min(SAMPLE_SIZE, -(-stop * SAMPLE_SIZE // self.size) + 1)
        edges = (np.arange(first, last + 1, dtype=np.int64) * self.size) >> _SAMPLE_BITS
        digest = hashlib.sha256(f"{self.name}\0{self.size}".encode("utf-8", "surrogatepass")).digest()
        shift = first + int.from_bytes(digest[:8], "little") % SAMPLE_SIZE
        found = edges[:-1]
        found += (_draws()[shift : shift + last - first] * np.diff(edges)).astype(np.int64)
        low, high = np.searchsorted(found, (start, stop))
        return found[low:high]


@functools.cache
def _draws() -> NDArray[np.float64]:
    """Return the table of random numbers in [0, 1), twice, so that any part of a round is in one piece."""
    once = np.random.Generator(np.random.Philox(key=SAMPLE_SIZE)).random(SAMPLE_SIZE)
    return np.concatenate((once, once))


def sample_positions(name: str, size: int) -> NDArray[np.int64]:
    """Return all sampled positions of a tensor, in rising order.

    Parameters
    ----------
    name, size
        As in `Sampling`.

    Returns
    -------
    ndarray of int64, shape (min(size, 262144),)

    Examples
    --------
    >>> sample_positions("w", 5)
    array([0, 1, 2, 3, 4])
    """
    return Sampling(name, size).between(0, size)
