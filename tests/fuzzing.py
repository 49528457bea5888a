"""Mutated files for parsers, and what a parser may do with them: `from fuzzing import mutants, survive`."""

from __future__ import annotations

import random
import signal
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from diffai_jupyter.errors import DiffaiError

SECONDS = 30.0
MOST_BYTES = 256 << 20


class Hang(BaseException):
    """A parser took too long; no `except Exception` catches it."""


def mutants(seeds: Iterable[bytes], count: int, seed: int = 0) -> Iterator[bytes]:
    """Yield damaged copies: flipped bytes, overwritten integers, cuts, doubled and moved pieces."""
    draw = random.Random(seed)
    whole = list(seeds)
    for _ in range(count):
        content = bytearray(draw.choice(whole))
        for _ in range(draw.choice((1, 1, 2, 4, 16))):
            _mutate(content, draw)
        yield bytes(content)


def _mutate(content: bytearray, draw: random.Random) -> None:
    if not content:
        return
    # Headers are at either end, so that half of the damage is done there.
    edge = draw.choice((len(content), min(len(content), 512)))
    at = draw.randrange(edge) if draw.random() < 0.75 else len(content) - 1 - draw.randrange(edge)
    kind = draw.randrange(6)
    if kind == 0:
        content[at] = draw.randrange(256)
    elif kind == 1:
        content[at] ^= 1 << draw.randrange(8)
    elif kind == 2:
        width = draw.choice((2, 4, 8))
        value = draw.choice((0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1, draw.randrange(2**16)))
        content[at : at + width] = (value % 2 ** (8 * width)).to_bytes(width, draw.choice(("little", "big")))
    elif kind == 3:
        del content[at : at + draw.choice((1, 4, 64, len(content)))]
    elif kind == 4:
        piece = content[at : at + draw.choice((1, 8, 64))]
        place = draw.randrange(len(content) + 1)
        content[place:place] = piece * draw.choice((1, 2, 16))
    else:
        content[at : at + 4] = bytes(draw.randrange(256) for _ in range(4))


def survive(path: Path, contents: Iterable[bytes], read: Callable[[Path], Any]) -> tuple[int, int]:
    """Write each content to `path` and read it: errors of this package are fine, everything else is not.

    Returns
    -------
    tuple of int
        How many were read, and how many refused.

    Raises
    ------
    AssertionError
        Naming the first content that raised a foreign error, ran over 30 s of processor time, or took more
        than 256 MiB of memory; it is left at `path`.
    """
    read_well = refused = 0

    def ring(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGVTALRM, ring)
    tracemalloc.start()
    try:
        for number, content in enumerate(contents):
            path.write_bytes(content)
            tracemalloc.reset_peak()
            signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
            try:
                read(path)
                read_well += 1
            except DiffaiError:
                refused += 1
            except (Exception, Hang) as error:
                msg = f"mutant {number} at {path}: {type(error).__name__}: {error}"
                raise AssertionError(msg) from error
            finally:
                signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            peak = tracemalloc.get_traced_memory()[1]
            assert peak < MOST_BYTES, f"mutant {number} at {path} took {peak} bytes"
    finally:
        tracemalloc.stop()
        signal.signal(signal.SIGVTALRM, before)
    return read_well, refused
