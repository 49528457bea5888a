"""8-bit floats with scales: one for a tensor, for each row, or for each block of 128 by 128 (DeepSeek, Qwen).

``weight = float8 * scale``. The scales multiply also where they are called ``weight_scale_inv``.

References
----------
DeepSeek-V3: ``inference/kernel.py`` (weight_dequant); https://github.com/deepseek-ai/DeepSeek-V3.
transformers 5.24.0: ``integrations/finegrained_fp8.py``; https://github.com/huggingface/transformers
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from diffai_jupyter.checkpoint.dtypes import F8_E8M0, quantized
from diffai_jupyter.checkpoint.tensor import Tensor
from diffai_jupyter.readers.layouts.module import Hints, Module, is_whole
from diffai_jupyter.readers.layouts.packing.companions import beside
from diffai_jupyter.readers.layouts.packing.constants import Block, Constants, Recoded, constants_of
from diffai_jupyter.readers.layouts.packing.matrices import Scaled
from diffai_jupyter.readers.layouts.packing.names import FLOATS, FLOATS8, named

_WEIGHT = ".weight"
_BEHIND = ("_scale_inv", "_scale")
_BESIDE = (".scale", ".qscale_weight", ".scale_weight")
_COMPANIONS_BEHIND = ("_activation_scale", "_input_scale")
_COMPANIONS_BESIDE = (".activation_scale", ".qscale_act", ".scale_input")


def modules(tensors: Mapping[str, Tensor], hints: Hints) -> Iterator[Module]:
    """Yield each 8-bit float tensor that has scales which fit its shape."""
    hinted = _hinted_blocks(hints)
    for name in named(tensors, ""):
        payload = tensors[name]
        if payload.dtype.name not in FLOATS8:
            continue
        for scale_name in _names(name, _BEHIND, _BESIDE):
            scale = _scale(tensors.get(scale_name), payload.shape, hinted)
            if scale is None:
                continue
            others = (scale_name, *_companions(tensors, name))
            dtype = quantized("fp8", _packing(scale, payload), 8)
            stored = tuple(tensors[other] for other in others)
            yield Module(name, Scaled(payload, stored, payload.shape, dtype, scale, None), (name, *others))
            break


def _names(name: str, behind: tuple[str, ...], instead: tuple[str, ...]) -> list[str]:
    """Return what companions of a weight may be called: its name and more, or another in place of ``.weight``."""
    names = [name + last for last in behind]
    return names + [name[: -len(_WEIGHT)] + last for last in instead] if name.endswith(_WEIGHT) else names


def _hinted_blocks(hints: Hints) -> tuple[Block, ...]:
    """Return rows and columns of a block as the configuration has them, if it does."""
    found = hints.quantization.get("weight_block_size")
    if not isinstance(found, list) or len(found) != 2 or not all(map(is_whole, found)):
        return ()
    return ((found[0], found[1]),)


def _scale(tensor: Tensor | None, shape: tuple[int, ...], hinted: tuple[Block, ...]) -> Constants | None:
    if tensor is None:
        return None
    if tensor.dtype.name == "u8":
        # The exponents of MX formats are also stored as plain bytes; read as numbers they would be around 127, not 1.
        tensor = Recoded(tensor, F8_E8M0)
    elif tensor.dtype.name not in FLOATS and tensor.dtype != F8_E8M0:
        return None
    return constants_of(tensor, shape, hinted)


def _companions(tensors: Mapping[str, Tensor], name: str) -> tuple[str, ...]:
    """Return the names of scales of activations."""
    rows = tensors[name].shape[:1]
    own = [
        other
        for other in _names(name, _COMPANIONS_BEHIND, _COMPANIONS_BESIDE)
        if other in tensors and tensors[other].dtype.name in FLOATS and tensors[other].size in (1, *rows)
    ]
    return (*own, *(beside(tensors, name[: -len("weight")]) if name.endswith(_WEIGHT) else ()))


def _packing(scale: Constants, payload: Tensor) -> str:
    if scale.tensor.size == 1:
        return "FP8"
    if not scale.is_stacked and scale.block[0] == 1 and scale.block[1] >= payload.grid[1]:
        return "FP8 by rows"
    return f"FP8 in blocks of {scale.block[0]}x{scale.block[1]}"
