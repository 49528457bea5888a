"""One file per family of quantization, and one for adapters: stored tensors become the matrices they mean.

A layout is recognised module by module, by names and dtypes; the configuration is only a hint, because
mixed precision is common. What is recognised and not decoded is kept whole, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module

from diffai_jupyter.checkpoint.model import Json
from diffai_jupyter.checkpoint.tensor import Tensor
from diffai_jupyter.readers.layouts.module import Hints, Layout

LAYOUTS = {
    "gptq": ("qweight",),
    "repacked": ("q_weight", "trellis", "B", "weight_packed", "compressed", "codes", "Qidxs", "indices"),
    "awq": ("qweight",),
    "bitsandbytes": ("bitsandbytes__", "SCB"),
    "compressed": ("weight_scale",),
    "fp8": ("scale",),
    "mxfp4": ("_blocks",),
    "torchao": ("_qdata",),
    "hqq": ("W_q",),
    "quanto": ("_data",),
    "mlx": ("scales",),
    "adapters": ("lora", "hada_", "lokr_", "ia3_l", "dora_scale"),
}
"""The files of this shelf, with words of which each layout has one between the dots of its names.

In this order: the first that recognises a stored tensor has it.
"""


def grouped(
    tensors: Mapping[str, Tensor], config: Mapping[str, Json], metadata: Mapping[str, str]
) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint with payloads and companions joined into matrices.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        By stored name.
    config : mapping
        ``config.json`` and its like.
    metadata : mapping of str to str
        Text inside the files.

    Returns
    -------
    dict of str to Tensor
        In sorted order. Each stored tensor is in the `parts` of exactly one of them.
    """
    left = dict(tensors)
    made: dict[str, Tensor] = {}
    hints = Hints(config, metadata)
    for modules in _layouts(tensors):
        for module in modules(left, hints):
            # A stored name that is taken already, or that two layouts claim, stays with the first.
            if module.name in made or not all(part in left for part in module.stored):
                continue
            if module.name in left and module.name not in module.stored:
                continue
            made[module.name] = module.tensor
            for part in module.stored:
                del left[part]
    both = {**left, **made}
    return {name: both[name] for name in sorted(both)}


def _layouts(tensors: Mapping[str, Tensor]) -> Iterator[Layout]:
    """Yield the layouts that these names may belong to; nothing of the others is even imported."""
    parts = set(".".join(tensors).split("."))
    for layout, words in LAYOUTS.items():
        if any(word in part for part in parts for word in words):
            modules: Layout = import_module(f"diffai_jupyter.readers.layouts.{layout}").modules
            yield modules
