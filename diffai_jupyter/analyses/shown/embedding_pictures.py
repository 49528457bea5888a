"""The chart of the token embedding."""

from __future__ import annotations

import numpy as np

from diffai_jupyter.contract.blocks import Curve, Mark, Sentence, Series
from diffai_jupyter.evidence import if_known
from diffai_jupyter.facts.embedding.drift import needs_alignment
from diffai_jupyter.facts.embedding.geometry import geometry
from diffai_jupyter.facts.embedding.rotation import alignment
from diffai_jupyter.scan.pair import Pair


def plane(pair: Pair) -> Series | None:
    """Draw tokens of A and B in the plane in which all of them together differ most."""
    is_rotated = bool(if_known(lambda: needs_alignment(pair)))
    if is_rotated:
        turned = if_known(lambda: alignment(pair))
        found = None if turned is None else turned.scatter
    else:
        stored = if_known(lambda: geometry(pair))
        found = None if stored is None else stored.scatter
    if found is None:
        return None
    first, second = found.explained
    shift = float(np.linalg.norm(found.b - found.a, axis=1).mean())
    spread = float(np.linalg.norm(np.concatenate([found.a, found.b]), axis=1).mean())
    return Series(
        "embedding_plane",
        "Tokens of A and B in one plane" + (", A rotated onto B" if is_rotated else ""),
        Mark.SCATTER,
        tuple(
            Curve(label, tuple(points[:, 0].tolist()), tuple(points[:, 1].tolist()))
            for label, points in (("A", found.a), ("B", found.b))
        ),
        f"first component ({first:.1%} of the variance)",
        f"second component ({second:.1%} of the variance)",
        Sentence(
            "{n} tokens in the plane of their two main components, which hold {share:.1%} of the variance: a token "
            "lies {shift:.1%} of the mean radius apart in A and B.",
            {"n": len(found.a), "share": first + second, "shift": shift / spread if spread else 0.0},
        ),
    )
