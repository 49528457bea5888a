"""Pairs that can be read in more than one way, and the sample of rows that decides between the ways.

Square matrices may be stored either way round; converters to GGUF reorder the rows of queries and keys;
fused projections are interleaved or not; GPTQ files do not always say which zero points they mean. Headers do
not tell, so the pair carries all readings, and the first read settles it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from diffai_jupyter.checkpoint.model import Checkpoint
from diffai_jupyter.checkpoint.pieces import heads_of
from diffai_jupyter.checkpoint.quantized import Quantized
from diffai_jupyter.checkpoint.tensor import Tensor
from diffai_jupyter.checkpoint.views import RotaryPairs, Transposed
from diffai_jupyter.scan.fitting import TRANSPOSED, is_turnable, why_not_compared
from diffai_jupyter.scan.keeping import kept
from diffai_jupyter.scan.pair import Pair, PairedTensor, Reading
from diffai_jupyter.scan.sample import seeded
from diffai_jupyter.store.codec import Codec

SAMPLED_ROWS = 16
SAMPLED_COLS = 4096
_ROTARY = "rotary pairs of GGUF put back"
_GGUF = "gguf"
_CODEC = Codec(())


def with_readings(
    a: Checkpoint, b: Checkpoint, tensors: Iterable[PairedTensor]
) -> tuple[PairedTensor, ...]:
    """Return the pairs, those that leave several readings with all of them.

    Parameters
    ----------
    a, b : Checkpoint
        The checkpoints.
    tensors : iterable of PairedTensor
        Their tensors, paired.
    """
    found = tuple(tensors)
    turns = any(TRANSPOSED in tensor.how for tensor in found)
    return tuple(_with_readings(a, b, tensor, turns) for tensor in found)


def settled(pair: Pair) -> tuple[PairedTensor, ...]:
    """Return the tensors of a pair with each reading decided; reads a sample of rows where there are several."""
    found: tuple[PairedTensor, ...] = pair.remember("settled", lambda: _settled(pair))
    return found


def _settled(pair: Pair) -> tuple[PairedTensor, ...]:
    several = [tensor for tensor in pair.tensors if tensor.readings]
    if not several:
        return pair.tensors
    counts = [len(tensor.readings) for tensor in several]
    chosen = iter(
        kept(pair, ("readings",), lambda: tuple(map(_choose, several)), _CODEC, lambda found: _is_choice(found, counts))
    )
    return tuple(_read_as(tensor, *next(chosen)) if tensor.readings else tensor for tensor in pair.tensors)


def _is_choice(found: object, counts: list[int]) -> bool:
    if not isinstance(found, tuple) or len(found) != len(counts):
        return False
    return all(0 <= best < count and isinstance(said, str) for (best, said), count in zip(found, counts, strict=True))


def _with_readings(a: Checkpoint, b: Checkpoint, tensor: PairedTensor, turns: bool) -> PairedTensor:
    if tensor.a is None or tensor.b is None or tensor.reason:
        return tensor
    readings = [*(tensor.readings or (Reading(tensor.how, tensor.a, tensor.b),))]
    if turns and is_turnable(tensor.part) and _is_square(tensor.b):
        readings += [Reading(_joined(r.words, TRANSPOSED), r.a, Transposed(r.b)) for r in readings]
    if tensor.part.role in ("q", "k") and (a.format == _GGUF) != (b.format == _GGUF):
        readings += list(_unrotated(a, b, tensor, readings))
    readings += [
        Reading(_joined(reading.words, words), x, y)
        for reading in readings
        for words, x, y in _of_layout(reading.a, reading.b)
    ]
    return replace(tensor, readings=tuple(readings)) if len(readings) > 1 else tensor


def _is_square(tensor: Tensor) -> bool:
    return len(tensor.shape) == 2 and tensor.shape[0] == tensor.shape[1] > 1


def _unrotated(
    a: Checkpoint, b: Checkpoint, tensor: PairedTensor, readings: list[Reading]
) -> Iterator[Reading]:
    """Yield the readings in which the rows of the GGUF side are put back."""
    found = heads_of((a if a.format == _GGUF else b).config) or heads_of((b if a.format == _GGUF else a).config)
    if found is None:
        return
    heads = found[0] if tensor.part.role == "q" else found[1]
    for reading in readings:
        one = reading.a if a.format == _GGUF else reading.b
        rows = one.shape[0] if one.shape else 0
        if rows % (2 * heads):
            continue
        view = RotaryPairs(one, heads)
        sides = (view, reading.b) if a.format == _GGUF else (reading.a, view)
        yield Reading(_joined(reading.words, _ROTARY), *sides)


def _of_layout(a: Tensor, b: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield what a quantized layout says could be meant as well."""
    for tensor, is_a in ((a, True), (b, False)):
        if isinstance(tensor, Quantized) and (found := tensor.other_reading()) is not None:
            words, view = found
            yield words, (view if is_a else a), (b if is_a else view)


def _joined(*words: str) -> str:
    return ", ".join(filter(None, words))


def _choose(tensor: PairedTensor) -> tuple[int, str]:
    """Choose the reading with the smallest difference on the sample, of equal ones the first; say by how much."""
    errors = [_sampled_error(reading, tensor.name) for reading in tensor.readings]
    # A reading in which nothing could be compared never wins over one that was.
    best = min(range(len(errors)), key=lambda i: (math.isnan(errors[i]), errors[i], i))
    others = [error for i, error in enumerate(errors) if i != best and not math.isnan(error)]
    if math.isnan(errors[best]):
        return best, ": nothing in the sample is finite on both sides"
    return best, f": relative difference {errors[best]:.2g}, otherwise {min(others):.2g}" if others else ""


def _read_as(tensor: PairedTensor, best: int, said: str) -> PairedTensor:
    chosen = tensor.readings[best]
    reason = why_not_compared(chosen.a, chosen.b, tensor.part)
    how = (chosen.words or "as stored") + said
    return replace(tensor, a=chosen.a, b=chosen.b, how=how, reason=reason, readings=())


def _sampled_error(reading: Reading, name: str) -> float:
    """Return the Frobenius norm of the difference over that of A, on 16 rows fixed by the name.

    NaN when none of their elements is finite on both sides: then nothing was compared.
    """
    n_rows, n_cols = reading.a.grid
    rows = np.sort(seeded(name, "reading").choice(n_rows, min(SAMPLED_ROWS, n_rows), replace=False))
    cols = (0, min(n_cols, SAMPLED_COLS))
    squares = total = 0.0
    is_known = False
    with np.errstate(over="ignore", invalid="ignore"):
        for row in rows:
            line = (int(row), int(row) + 1)
            a = np.asarray(reading.a.read(line, cols), dtype=np.float64)
            delta = np.asarray(reading.b.read(line, cols), dtype=np.float64) - a
            known = np.isfinite(delta)
            is_known = is_known or bool(known.any())
            squares += float(np.square(delta[known]).sum())
            total += float(np.square(a[known]).sum())
    if not is_known:
        return math.nan
    if squares == 0:
        return 0.0
    return math.sqrt(squares / total) if total else math.inf
