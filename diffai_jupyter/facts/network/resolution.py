"""How often a matrix or kernel of an image network works on one image.

Strides leave no trace in weights. They are known for families whose names say where an image gets smaller: ResNet
as torchvision, timm and transformers name it, VGG, and networks in stages behind a patch embedding (Swin, ConvNeXt).
A vision transformer says it by the rows of its position table.

References
----------
He et al. 2016, Deep Residual Learning; Simonyan & Zisserman 2015 (VGG); Dosovitskiy et al. 2021 (ViT); Liu et al. 2021
(Swin); Liu et al. 2022 (ConvNeXt). Strides: torchvision 0.25 ``models/resnet.py``, ``models/vgg.py``; transformers 5.24
``models/resnet``, ``models/swin``, ``models/convnext``.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from diffai_jupyter.checkpoint.anatomy import Anatomy
from diffai_jupyter.checkpoint.model import Checkpoint, Json
from diffai_jupyter.checkpoint.tensor import Tensor
from diffai_jupyter.evidence import Unknowable

USUAL_SIDE = 224
SMALL_SIDE = 32
_UNKNOWN_MAP = 28
"""Side of a feature map where strides are not known: the middle one of a ResNet that sees 224 x 224."""

_RESNET = re.compile(
    r"(?:^|\.)layer(?P<stage>[1-9])\.(?P<unit>\d+)\.(?:conv(?P<place>\d)|(?P<short>downsample)\.\d+)\."
)
_HF_RESNET = re.compile(
    r"(?:^|\.)stages\.(?P<stage>\d+)\.layers\.(?P<unit>\d+)\.(?:layer\.(?P<place>\d)|(?P<short>shortcut))\.convolution\."
)
_STEM = re.compile(r"(?:^|\.)(?:conv1(?:\.\d+)?|embedder\.embedder\.convolution)\.weight$")
_VGG = re.compile(r"(?:^|\.)features\.(?P<place>\d+)\.weight$")
_STAGE = re.compile(r"(?:^|\.)(?:stages|layers)\.(?P<stage>\d+)\.(?:blocks|layers)\.\d+\.")
_BETWEEN = re.compile(r"(?:^|\.)(?:stages|layers)\.(?P<stage>\d+)\.(?P<how>downsample|downsampling_layer)\.")
_PATCH = re.compile(r"patch_embed")
_EXTRA_TOKENS = re.compile(r"(?:register_tokens|reg_token)$")
_RELATIVE = re.compile(r"relative_position_bias_table$")


@dataclass(frozen=True, slots=True)
class Resolution:
    """Positions at which the matrices of an image network work, for one image.

    Parameters
    ----------
    positions : mapping of str to float
        By stored name; a matrix that is not named works once.
    rows : int
        Tokens of a vision transformer; 0 where positions differ by layer.
    windows : mapping of str to int
        Keys that a query sees, by the prefix of a stage, where attention stays in windows.
    side : int, optional
        Side of the image in pixels, where one had to be known.
    is_stated : bool
        Whether the checkpoint or its configuration says the size of an image.
    is_family_known : bool
        Whether strides are those of the family; else every kernel is taken at one and the same resolution.
    """

    positions: Mapping[str, float]
    rows: int = 0
    windows: Mapping[str, int] = field(default_factory=dict)
    side: int | None = None
    is_stated: bool = True
    is_family_known: bool = True


def resolution(checkpoint: Checkpoint, anatomy: Anatomy) -> Resolution:
    """Find the positions of an image network by its family. Reads no tensor.

    Raises
    ------
    Unknowable
        ``NEEDS_CONFIG`` for a vision transformer that says its image size nowhere.
    """
    tensors = checkpoint.tensors
    matrices = {name: t for name, t in tensors.items() if len(t.shape) >= 2 and anatomy.parts[name].is_trained}
    side = _configured_side(checkpoint.config)
    if any(_PATCH.search(name) for name in matrices):
        staged = [name for name in matrices if _STAGE.search(name)]
        return _in_stages(matrices, side) if staged else _by_patches(checkpoint, anatomy, side)
    for family in (_RESNET, _HF_RESNET):
        if any(family.search(name) for name in matrices):
            return _resnet(matrices, family, side)
    kernels = {name: tensor for name, tensor in matrices.items() if is_kernel(tensor)}
    if kernels and all(_VGG.search(name) and tensor.shape[-1] == 3 for name, tensor in kernels.items()):
        return _vgg(kernels, side)
    return Resolution(dict.fromkeys(kernels, float(_UNKNOWN_MAP**2)), is_stated=False, is_family_known=False)


def is_kernel(tensor: Tensor) -> bool:
    """Say whether a tensor is the kernel of a convolution."""
    return len(tensor.shape) >= 3


def _configured_side(config: Mapping[str, Json]) -> int | None:
    """Return the side of an image that a configuration states, the longer one where there are two."""
    nested = [config.get(key) for key in ("pretrained_cfg", "vision_config")]
    for part in (config, *(found for found in nested if isinstance(found, dict))):
        for key in ("image_size", "img_size", "input_size"):
            found = part.get(key)
            found = list(found.values()) if isinstance(found, dict) else found
            sides = found[-2:] if isinstance(found, list) else [found]
            whole = [side for side in sides if isinstance(side, int) and not isinstance(side, bool) and side > 0]
            if whole:
                return max(whole)
    return None


def _by_patches(checkpoint: Checkpoint, anatomy: Anatomy, side: int | None) -> Resolution:
    """Count the tokens of a vision transformer: rows of its position table, and registers."""
    tensors = checkpoint.tensors
    kernels = [name for name, tensor in tensors.items() if is_kernel(tensor) and anatomy.parts[name].is_trained]
    tables = [name for name in anatomy.names("position") if len(tensors[name].shape) >= 2]
    first = next((name for name in kernels if _PATCH.search(name)), "")
    extra = sum(t.shape[-2] for name, t in tensors.items() if _EXTRA_TOKENS.search(name) and len(t.shape) >= 2)
    if tables:
        # A network of text and images has a table for each: that of the images lies nearest to their input.
        table = max(tables, key=lambda name: (_common(name, first), name))
        rows = tensors[table].shape[-2]
        patches = math.isqrt(rows) ** 2
    else:
        patch = tensors[first].shape[-1] if first else 0
        if side is None or not patch:
            raise Unknowable("NEEDS_CONFIG", missing="image_size")
        patches = (side // patch) ** 2
        rows = patches + sum(name.endswith(("cls_token", "class_embedding")) for name in tensors)
    return Resolution(dict.fromkeys(kernels, float(patches)), rows + extra, side=side)


def _common(a: str, b: str) -> int:
    """Return how many components two names begin with in common."""
    pieces = zip(a.split("."), b.split("."), strict=False)
    return len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pieces)))


def _in_stages(matrices: Mapping[str, Tensor], side: int | None) -> Resolution:
    """Count positions where each stage halves the side behind a patch embedding, as in Swin and ConvNeXt."""
    patch = next((t.shape[-1] for name, t in matrices.items() if _PATCH.search(name) and is_kernel(t)), 4)
    start = (side or USUAL_SIDE) // patch
    positions: dict[str, float] = {}
    windows: dict[str, int] = {}
    for name, tensor in matrices.items():
        found, between = _STAGE.search(name), _BETWEEN.search(name)
        if found:
            positions[name] = _squared(start, int(found["stage"]))
            if _RELATIVE.search(name):
                windows[name[: found.end()]] = ((math.isqrt(tensor.shape[0]) + 1) // 2) ** 2
        elif between:
            # Swin merges patches at the end of a stage, ConvNeXt at the start of the next one.
            stage = int(between["stage"]) + (between["how"] == "downsample")
            positions[name] = _squared(start, stage)
        elif is_kernel(tensor):
            positions[name] = _squared(start, 0)
    return Resolution(positions, windows=windows, side=side or USUAL_SIDE, is_stated=side is not None)


def _squared(start: int, halvings: int) -> float:
    side = start
    for _ in range(halvings):
        side = -(-side // 2)
    return float(side * side)


def _resnet(matrices: Mapping[str, Tensor], family: re.Pattern[str], side: int | None) -> Resolution:
    """Count positions of a ResNet: stages after the first one begin with a stride of two.

    The stride is that of the 3 x 3 kernel, the second of three or the first of two. A stem of 7 x 7, or of three
    kernels, has a stride of two and pooling behind it; a single 3 x 3 has neither, as in networks for 32 x 32.
    """
    stems = [name for name in matrices if _STEM.search(name) and not family.search(name)]
    is_small = len(stems) == 1 and matrices[stems[0]].shape[-1] == 3
    image = side or (SMALL_SIDE if is_small else USUAL_SIDE)
    stem = image if is_small else -(-image // 2)
    start = image if is_small else -(-stem // 2)
    named = {name: found for name in matrices if (found := family.search(name))}
    first = min(int(found["stage"]) for found in named.values())
    deepest = max(int(found["place"] or 0) for found in named.values())
    lowest = min(int(found["place"]) for found in named.values() if found["place"])
    strided = lowest + (deepest - lowest > 1)
    positions = {name: float(stem * stem) for name in stems}
    for name, found in named.items():
        stage = int(found["stage"]) - first
        is_before = found["unit"] == "0" and not found["short"] and int(found["place"]) < strided
        positions[name] = _squared(start, max(0, stage - 1 if is_before else stage))
    return Resolution(positions, side=image, is_stated=side is not None)


def _vgg(kernels: Iterable[str], side: int | None) -> Resolution:
    """Count positions of a VGG: where the numbering of its layers leaves a wider gap, an image is pooled."""
    placed = sorted((int(found["place"]), name) for name in kernels if (found := _VGG.search(name)))
    places = [place for place, _ in placed]
    gaps = [after - before for before, after in itertools.pairwise(places)]
    usual = min(gaps, default=0)
    image = side or USUAL_SIDE
    positions, now = {}, image
    for gap, (_, name) in zip([usual, *gaps], placed, strict=True):
        now = now // 2 if gap > usual else now
        positions[name] = float(now * now)
    return Resolution(positions, side=image, is_stated=side is not None)
