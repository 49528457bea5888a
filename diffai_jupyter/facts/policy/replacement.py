"""What has to be swapped together with the weights, and so how hard it is to go back."""

from __future__ import annotations

from dataclasses import dataclass

from diffai_jupyter.checkpoint.quantized import Merged
from diffai_jupyter.facts import fact
from diffai_jupyter.facts.policy.codes import tokenizer_problem
from diffai_jupyter.facts.policy.compatibility import Incompatibility, architecture_changes, interface_changes
from diffai_jupyter.facts.policy.symptoms import retyped
from diffai_jupyter.scan.pair import Pair

_FAMILIES = {
    "gguf": "llama.cpp", "onnx": "ONNX", "keras": "Keras", "hdf5": "Keras", "matlab": "MATLAB",
}  # fmt: skip
"""Which programs load a format; all others are read by Python with its array libraries."""
_PYTHON = "Python"


@dataclass(frozen=True, slots=True)
class Rollback:
    """How hard it is to go back from B to A.

    Parameters
    ----------
    word : str
        ``"easy"``, ``"moderate"`` or ``"difficult"``.
    reasons : tuple of Incompatibility
        What makes it harder than swapping files.
    """

    word: str
    reasons: tuple[Incompatibility, ...] = ()


@fact
def rollback(pair: Pair) -> Rollback:
    """Judge what must be swapped besides the weights.

    Difficult when the interface, the architecture or the family of the format changed, because the code around the
    model changes too; moderate when dtype, packing, tokenizer changed or an adapter came or went; else easy.
    """
    hard = [*_family(pair), *interface_changes(pair), *architecture_changes(pair)]
    if hard:
        return Rollback("difficult", tuple(hard))
    found = [Incompatibility("dtype", "", *change.split(" -> ")) for change in retyped(pair)]
    if problem := tokenizer_problem(pair):
        found.append(Incompatibility(f"tokenizer {problem}", "", "", ""))
    adapters = [_has_adapter(pair, is_a) for is_a in (True, False)]
    if adapters[0] != adapters[1]:
        found.append(Incompatibility("adapter", "", *("yes" if has else "none" for has in adapters)))
    return Rollback("moderate", tuple(found)) if found else Rollback("easy")


def _family(pair: Pair) -> list[Incompatibility]:
    families = [
        next((family for name, family in _FAMILIES.items() if name in side.format), _PYTHON)
        for side in (pair.a, pair.b)
    ]
    return [] if families[0] == families[1] else [Incompatibility("runtime", "", *families)]


def _has_adapter(pair: Pair, is_a: bool) -> bool:
    checkpoint, anatomy = (pair.a, pair.anatomy_a) if is_a else (pair.b, pair.anatomy_b)
    is_merged = any(isinstance(tensor, Merged) for tensor in checkpoint.tensors.values())
    return is_merged or bool(anatomy.names("adapter"))
