"""How the energy of queries and keys lies over the frequencies of rotary positions."""

from __future__ import annotations

import numpy as np

from diffai_jupyter.evidence import Unknowable
from diffai_jupyter.facts import fact
from diffai_jupyter.facts.attention.layers import Array64
from diffai_jupyter.facts.attention.rotary import rotated_rows
from diffai_jupyter.facts.attention.spans import side_of
from diffai_jupyter.facts.attention.strength import layers_of, strengths
from diffai_jupyter.scan.pair import Pair


@fact
def rotary_energy(pair: Pair, side: int) -> tuple[float, ...]:
    """Return the share of query-key energy at each frequency, the fastest first, over all heads that turn alike.

    The energy of a frequency in one head is ``|Q_f| |K_f|``, the norms of the two rows that it turns together. Each
    head counts once. What it means for distances depends on the text, so that nothing is concluded from it.

    Parameters
    ----------
    pair : Pair
        The pair.
    side : int
        `A` or `B` of `diffai_jupyter.facts.weights.stored`.

    Raises
    ------
    Unknowable
        ``NEEDS_PROBE`` where positions are not rotary, or it is not known which rows turn together; what `strengths`
        raises.

    References
    ----------
    Barbero et al. 2025, Round and Round We Go! What Makes Rotary Positional Encodings Useful?
    """
    checkpoint, structure = side_of(pair, side)
    known = structure.attributes["positions"]
    measured = {layer.name: layer for layer in strengths(pair, side).layers}
    shares: list[Array64] = []
    for layer in layers_of(pair, side):
        found = measured.get(layer.name)
        rows = None if found is None else rotated_rows(checkpoint, layer, found.heads.size, known)
        if found is None or rows is None or (shares and shares[0].shape[1] != len(rows)):
            continue
        queries, keys = (
            np.sqrt(np.square(norms[:, rows]).sum(axis=2)) for norms in (found.query_rows, found.key_rows)
        )
        energy = queries * np.repeat(keys, len(queries) // len(keys), axis=0)
        total = energy.sum(axis=1)
        is_known = np.isfinite(total) & (total > 0)
        shares.append(energy[is_known] / total[is_known, np.newaxis])
    pooled = np.concatenate(shares) if shares else np.zeros((0, 0))
    if not len(pooled):
        raise Unknowable("NEEDS_PROBE")
    return tuple(pooled.mean(axis=0).tolist())
