"""Histograms of the magnitudes of a stack of small tensors."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from diffai_jupyter.checkpoint.dtypes import Array
from diffai_jupyter.scan.magnitudes import DROPPED_BITS, SPAN, Magnitudes, narrow

Counts = NDArray[np.int64]


def spreads_of(samples: Array, is_short: bool) -> list[Magnitudes | None]:
    """Count each sample by magnitude; None where all of it is zero.

    Parameters
    ----------
    samples : ndarray of float64, shape (tensors, size)
        Finite values in rising order.
    is_short : bool
        Whether equal values are counted before their squares are added.
    """
    negative = samples[:, ::-1]
    signs = [_Sign(-negative, negative < 0), _Sign(samples, samples > 0)]
    count = len(samples)
    last, lowest = (np.full(count, start, dtype=np.int64) for start in (-1, 1 << 20))
    for sign in signs:
        known = np.flatnonzero(sign.each)
        last[known] = np.maximum(last[known], sign.keys[sign.stops[known] - 1])
        lowest[known] = np.minimum(lowest[known], sign.keys[sign.stops[known] - sign.each[known]])
    first = np.maximum(lowest, last - SPAN)
    bins = np.where(last < 0, 0, last - first + 1)
    starts = np.concatenate(([0], np.cumsum(bins)))
    counts, squares = np.zeros(starts[-1], dtype=np.int64), np.zeros(starts[-1])
    for sign in signs:
        if sign.sizes.size:
            # What is smaller than the lowest bin shares it.
            places = np.maximum(sign.keys - np.repeat(first, sign.each), 0) + np.repeat(starts[:-1], sign.each)
            _enter(sign, places, is_short, counts, squares)
    filled = np.flatnonzero(counts)
    owners = np.repeat(np.arange(count), bins)[filled]
    places = (filled - starts[owners]).astype(np.uint16)
    counts, squares = counts[filled], squares[filled]
    cuts = [slice(*ends) for ends in itertools.pairwise(np.searchsorted(owners, np.arange(count + 1)).tolist())]
    heads = zip(first.tolist(), bins.tolist(), (signs[0].each + signs[1].each).tolist(), cuts, strict=True)
    return [
        Magnitudes(begin, width, places[cut], narrow(counts[cut]), squares[cut], sampled) if sampled else None
        for begin, width, sampled, cut in heads
    ]


class _Sign:
    """The magnitudes of the values of one sign: tensor by tensor, the smallest first."""

    def __init__(self, samples: Array, marks: NDArray[np.bool_]) -> None:
        self.sizes = samples[marks]
        self.each: Counts = np.count_nonzero(marks, axis=1)
        self.stops = np.cumsum(self.each)
        self.keys: Counts = (self.sizes.view(np.uint64) >> np.uint64(DROPPED_BITS)).astype(np.int64)


def _enter(sign: _Sign, places: Counts, is_short: bool, counts: Counts, squares: Array) -> None:
    """Add the magnitudes of one sign to their bins."""
    sizes, each = sign.sizes, np.square(sign.sizes)
    if is_short:
        runs = _starts((places[1:] != places[:-1]) | (sizes[1:] != sizes[:-1]))
        number = np.diff(runs, append=sizes.size)
        places, each = places[runs], each[runs] * number
    else:
        number = np.ones(0, dtype=np.int64)
    runs = _starts(places[1:] != places[:-1])
    filled = places[runs]
    squares[filled] += np.add.reduceat(each, runs)
    counts[filled] += np.add.reduceat(number, runs) if is_short else np.diff(runs, append=sizes.size)


def _starts(is_new: NDArray[np.bool_]) -> Counts:
    return np.concatenate(([0], np.flatnonzero(is_new) + 1))

