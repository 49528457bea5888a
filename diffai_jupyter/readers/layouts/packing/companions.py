"""Stored tensors that belong to a quantized module and do not change its weight: scales of activations."""

from __future__ import annotations

from collections.abc import Mapping

from diffai_jupyter.checkpoint.tensor import Tensor

_WHAT = ("scale", "zero_point", "global_scale")
_OF_MODULE = (
    *(f"{side}_{what}" for side in ("input", "output") for what in _WHAT),
    "input_scale_ub", "input_g_idx",
)
_OF_CACHE = {letter: tuple(f"{letter}_{what}" for what in _WHAT) for letter in "qkv"}
_PROJECTIONS = {
    "q_proj.": "q", "k_proj.": "k", "v_proj.": "v", "qkv_proj.": "qkv", "query_key_value.": "qkv", "qkv.": "qkv",
}


def beside(tensors: Mapping[str, Tensor], prefix: str) -> tuple[str, ...]:
    """Return the names of the companions of a module.

    Scales of the attention's cache may lie below the projection that fills it, or one level higher.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        By stored name.
    prefix : str
        Name of the module with its dot.

    Examples
    --------
    >>> beside({"a.k_proj.input_scale": None, "a.k_scale": None, "a.v_scale": None}, "a.k_proj.")
    ('a.k_proj.input_scale', 'a.k_scale')
    """
    names = [prefix + last for last in _OF_MODULE]
    for projection, letters in _PROJECTIONS.items():
        if prefix == projection or prefix.endswith(f".{projection}"):
            parent = prefix[: len(prefix) - len(projection)]
            names += [place + last for letter in letters for last in _OF_CACHE[letter] for place in (prefix, parent)]
            break
    return tuple(name for name in names if name in tensors)
