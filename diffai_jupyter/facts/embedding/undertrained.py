"""Tokens that training hardly touched: their rows are unusually short, or lie unusually near to a place of no token."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffai_jupyter.evidence import Unknowable
from diffai_jupyter.facts import fact
from diffai_jupyter.facts.embedding.tables import read_block, read_rows, spans, survey, target, words
from diffai_jupyter.facts.embedding.vocabulary import shown, spelling_of
from diffai_jupyter.scan.pair import Pair

Array64 = NDArray[np.float64]
Mask = NDArray[np.bool_]

FENCE = 3.0
"""Interquartile ranges behind the nearer quartile, from which on a row is an outlier ("far out", Tukey 1977)."""
LEAST_ROWS = 100
SHORT, NEAR_MEAN, LIKE_UNUSED = "short", "near the mean", "like unused rows"


@dataclass(frozen=True, slots=True)
class Suspect:
    """A row that looks untrained.

    Parameters
    ----------
    row : int
        Which row.
    token : str, optional
        Its token, as a reader knows it; None where no tokenizer is known.
    signs : tuple of str
        What it stands out by.
    norm : float
        Its norm over the median norm.
    excess : float
        Interquartile ranges behind the quartile, for the sign it shows most.
    """

    row: int
    token: str | None
    signs: tuple[str, ...]
    norm: float
    excess: float


@dataclass(frozen=True, slots=True)
class Undertrained:
    """The rows of one table that look untrained.

    Parameters
    ----------
    suspects : tuple of Suspect
        Those that stand out most first.
    zero, repeated : int
        Rows of zeros, and rows that are equal to two others or more: surely untrained, and not among the suspects.
    unnamed : int
        Rows that no token has; zero where no tokenizer is known.
    rows : int
        Rows that were judged.
    """

    suspects: tuple[Suspect, ...]
    zero: int
    repeated: int
    unnamed: int
    rows: int


@fact
def undertrained(pair: Pair, side: int) -> Undertrained:
    """Find rows that look untrained in the largest table of A (0) or B (1).

    Weight decay shrinks rows that no gradient holds up, and rows that only ever get the gradient of being wrong move
    alike (Land & Bartolo 2024). So a row is suspect if its norm, or its distance from the mean row, is an outlier
    below: the logarithm lies more than 3 interquartile ranges under the lower quartile. Where the table has rows that
    no token uses, the cosine with their mean is a third sign, by the same rule above. Of Gaussian data that is one
    row in 850,000.

    Raises
    ------
    Unknowable
        As `target`; ``TOO_SMALL`` with fewer than 100 rows that are finite, not zero and not repeated.
    """
    about = survey(pair, side)
    useful = about.is_useful
    found = words(pair, side)
    is_named = np.ones(len(useful), dtype=np.bool_)
    if found:
        is_named[:] = False
        is_named[list(found)] = True
    judged = useful & is_named
    rows = np.flatnonzero(judged)
    if len(rows) < LEAST_ROWS:
        raise Unknowable("TOO_SMALL", rows=len(rows), least=LEAST_ROWS)
    distances, likeness = _places(pair, side, useful & ~is_named)
    norms = about.norms[rows]
    with np.errstate(divide="ignore"):
        signs = {SHORT: -np.log(norms), NEAR_MEAN: -np.log(distances[rows])}
    if likeness is not None:
        signs[LIKE_UNUSED] = likeness[rows]
    excesses = {sign: _excess(values) for sign, values in signs.items()}
    worst = np.max(list(excesses.values()), axis=0)
    median = float(np.median(norms))
    order = [place for place in np.lexsort((rows, -worst)) if worst[place] > FENCE]
    spelling = spelling_of(found)
    suspects = tuple(
        Suspect(
            int(rows[place]),
            shown(found[int(rows[place])], spelling) if found else None,
            tuple(sign for sign, excess in excesses.items() if excess[place] > FENCE),
            float(norms[place] / median),
            float(worst[place]),
        )
        for place in order
    )
    return Undertrained(
        suspects, int((about.norms == 0).sum()), int(about.is_repeated.sum()), int((~is_named).sum()), len(rows)
    )


def _places(pair: Pair, side: int, unused: Mask) -> tuple[Array64, Array64 | None]:
    """Return the distance of each row from the mean, and its cosine with the mean direction of unused rows."""
    _, a, b = target(pair)
    tensor, about = (b if side else a), survey(pair, side)
    reference: Array64 | None = None
    if unused.any():
        rows = np.flatnonzero(unused)[:LEAST_ROWS]
        reference = (read_rows(tensor, rows) / about.norms[rows, np.newaxis]).mean(axis=0)
        reference /= float(np.linalg.norm(reference)) or 1.0
    distances, cosines = np.full(len(unused), np.nan), np.full(len(unused), np.nan)
    scale = float(np.nanmax(about.norms))

    def look(rows: tuple[int, int]) -> None:
        place, block = slice(*rows), read_block(tensor, rows)
        if reference is not None:
            cosines[place] = block @ reference / about.norms[place]
        distances[place] = scale * np.linalg.norm((block - about.mean) / scale, axis=1)

    for _ in pair.run.map("untrained tokens", spans(tensor), look, weight=lambda rows: rows[1] - rows[0]):
        pass
    return distances, None if reference is None else cosines


def _excess(values: Array64) -> Array64:
    """Return how far values lie above the upper quartile, in interquartile ranges; zero where these are nothing."""
    quarter, half, three = np.quantile(values, [0.25, 0.5, 0.75])
    spread = three - quarter
    if not spread > 1e-9 * max(1.0, abs(half)):
        return np.zeros_like(values)
    found: Array64 = (values - three) / spread
    return found
