"""The chart of what rounding cost, tensor by tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence

from diffai_jupyter.contract.blocks import Curve, Mark, Sentence, Series
from diffai_jupyter.facts.change.quantization import TensorError
from diffai_jupyter.wording import Name

BARS = 24


def sqnr_by_tensor(tensors: Sequence[TensorError]) -> Series | None:
    """Draw the SQNR of the worst tensors as bars, the worst first; None where fewer than two have an error.

    Parameters
    ----------
    tensors : sequence of TensorError
        The worst first.
    """
    rounded = [tensor for tensor in tensors if math.isfinite(tensor.sqnr)]
    if len(rounded) < 2:
        return None
    shown, worst, best = rounded[:BARS], rounded[0], rounded[-1]
    return Series(
        "sqnr_by_tensor",
        "Error of rounding by tensor",
        Mark.BAR,
        (Curve("B", tuple(Name(one.name) for one in shown), tuple(one.sqnr for one in shown)),),
        "tensor" if len(shown) == len(rounded) else f"tensor (the {len(shown)} worst of {len(rounded)})",
        "SQNR in dB, higher is better",
        Sentence(
            "{worst} lost most, with an SQNR of {low:.1f} dB; the best of {n} tensors has {high:.1f} dB.",
            {"worst": Name(worst.name), "low": worst.sqnr, "n": len(rounded), "high": best.sqnr},
        ),
    )
