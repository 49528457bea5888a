"""Fused and stacked tensors cut into the matrices they hold: q, k, v; gate and up; single experts.

Where names and shapes leave more than one way to cut, every way is given, the likeliest first, and the
numbers of the other checkpoint decide.

References
----------
Model code of the transformers library, 5.23: GPT-2, GPT-NeoX, BLOOM, Falcon, CodeGen, MPT, Phi-3, Mixtral, gpt-oss.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from diffai_jupyter.checkpoint.model import Json
from diffai_jupyter.checkpoint.tensor import Tensor
from diffai_jupyter.checkpoint.views import Interleaved, Rows, Transposed, Unstacked

Partner = Callable[[str], "tuple[int, ...] | None"]
"""Shape of the other checkpoint's tensor of a canonical name, or None."""

HEAD_KEYS = (
    "num_attention_heads", "n_head", "num_heads", "n_heads", "encoder_attention_heads", "num_query_heads",
    "attention_heads",
)  # fmt: skip
KV_HEAD_KEYS = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "kv_n_heads", "multi_query_group_num")
"""What configurations call the number of heads, and of those that share keys and values."""
FUSED = {"qkv": ("q", "k", "v"), "gate_up": ("gate", "up")}
"""Roles of fused tensors, and the roles of what is in them."""
_HEAD_SIZES = (64, 128, 80, 96, 32, 256, 16, 8)
"""Usual sizes of a head, for where no configuration tells it."""
_CODEGEN_GROUPS = 4
_CODEGEN = re.compile(r"(?:^|\.)h\.\d+\.attn\.qkv_proj\.")
_INTERLEAVED = re.compile(r"query_key_value|(?:^|\.)wqkv\b")
"""Names of fused projections with q, k and v head by head: BLOOM, GPT-NeoX, Falcon, InternLM2."""
_EXPERT_ROLES = ("gate", "up", "down", "gate_up")

Cut = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Piece:
    """One matrix out of a fused or stacked tensor.

    Parameters
    ----------
    canonical : str
        Its canonical name, as a tensor of its own would have it.
    role : str
        ``"q"``, ``"gate"``, …
    label : str
        Which part it is, in short.
    views : tuple of (str, Tensor)
        Ways to cut it out, each with its words; the likeliest first.
    """

    canonical: str
    role: str
    label: str
    views: tuple[tuple[str, Tensor], ...]


def heads_of(config: Mapping[str, Json], block: int | None = None) -> tuple[int, int] | None:
    """Return the numbers of query heads and of key/value heads that a configuration states.

    Parameters
    ----------
    config : mapping
        Configuration; what it keeps in a part for attention counts as well.
    block : int, optional
        The block to look at, where the configuration has a number for each.

    Examples
    --------
    >>> heads_of({"num_attention_heads": 8, "num_key_value_heads": 2}), heads_of({"n_head": 8, "multi_query": True})
    ((8, 2), (8, 1))
    >>> heads_of({"num_query_heads": [12, 16], "num_kv_heads": [3, 4]}, block=1)
    (16, 4)
    """
    heads = _stated(config, HEAD_KEYS, block)
    if heads is None or heads < 1:
        return None
    if config.get("multi_query") is True and not config.get("new_decoder_architecture"):
        return heads, 1
    shared = _stated(config, KV_HEAD_KEYS, block)
    return (heads, shared) if shared is not None and 0 < shared <= heads else (heads, heads)


def _stated(config: Mapping[str, Json], keys: Iterable[str], block: int | None) -> int | None:
    """Return the number under the first of the keys that has one, of a list that of the block."""
    inner = config.get("attn_config")
    stated = {**inner, **config} if isinstance(inner, dict) else config
    for key in keys:
        found = stated.get(key)
        if isinstance(found, list) and block is not None and block < len(found):
            found = found[block]
        if isinstance(found, int):
            return None if isinstance(found, bool) else found
    return None


def pieces_of(
    name: str, canonical: str, role: str, tensor: Tensor, config: Mapping[str, Json], partner: Partner
) -> tuple[Piece, ...]:
    """Cut a tensor into pieces; empty where it is neither fused nor a stack of experts.

    Parameters
    ----------
    name : str
        Stored name.
    canonical, role : str
        Its canonical name and role.
    tensor : Tensor
        The tensor.
    config : mapping
        Configuration of its checkpoint.
    partner : callable
        Gives the shapes of the other checkpoint, by canonical name.
    """
    if len(tensor.shape) == 3 and role in _EXPERT_ROLES and ".expert." not in canonical:
        return _experts(name, canonical, role, tensor, config, partner)
    stem, _, kind = canonical.rpartition(".")
    base = stem.removesuffix(role)
    if role == "qkv" and len(tensor.shape) in (1, 2):
        cuts = _qkv_cuts(name, tensor, config, [partner(f"{base}{part}.{kind}") for part in FUSED[role]])
        return _pieces(base, kind, FUSED[role], cuts)
    if role == "gate_up" and len(tensor.shape) in (1, 2):
        return _pieces(base, kind, FUSED[role], _gate_up_cuts(tensor, partner(f"{base}gate.{kind}")))
    return ()


def _pieces(base: str, kind: str, roles: tuple[str, ...], cuts: dict[str, Cut]) -> tuple[Piece, ...]:
    if not cuts:
        return ()
    return tuple(
        Piece(
            f"{base}{role}.{kind}", role, role, tuple((words, cut[role]) for words, cut in cuts.items())
        )
        for role in roles
    )


def _qkv_cuts(
    name: str, tensor: Tensor, config: Mapping[str, Json], partners: list[tuple[int, ...] | None]
) -> dict[str, Cut]:
    """Return the ways to cut a fused projection, by their words."""
    sizes = [shape[0] if shape else 0 for shape in partners]
    rows = sum(sizes) if all(sizes) else 0
    lines = upright(tensor, rows or None)
    total = lines.shape[0]
    heads = heads_of(config)
    if rows != total:
        sizes = _sizes(total, heads)
    if not sizes:
        return {}
    widths = [total // (heads[0] + 2 * heads[1])] if heads else _HEAD_SIZES
    return cut_qkv(name, lines, config, sizes, widths)


def cut_qkv(
    name: str, lines: Tensor, config: Mapping[str, Json], sizes: Sequence[int], widths: Iterable[int]
) -> dict[str, Cut]:
    """Return the ways to cut a fused projection by their words, the likeliest first.

    Parameters
    ----------
    name : str
        Stored name.
    lines : Tensor, shape (outputs, inputs) or (outputs,)
        The projection or its bias, its outputs as rows.
    config : mapping
        Configuration of its checkpoint.
    sizes : sequence of int
        Rows of q, of k and of v; as many together as there are.
    widths : iterable of int
        Sizes that a head may have, for where heads are interleaved.
    """
    total = lines.shape[0]
    contiguous: Cut = {
        part: Rows(lines, stop - size, stop)
        for part, size, stop in zip("qkv", sizes, accumulate(sizes), strict=True)
    }
    if is_sharded(name, config) and total % (3 * _CODEGEN_GROUPS) == 0:
        run = total // (3 * _CODEGEN_GROUPS)
        places = {"q": 0, "k": 2, "v": 1}
        return {"4 groups of q, v, k": {part: Interleaved(lines, 3, run, at, 1) for part, at in places.items()}}
    cuts: dict[str, Cut] = {}
    if is_interleaved(name, config):
        for width in widths:
            cuts |= _interleaved(lines, sizes, width)
    return {**cuts, "rows of q, then k, then v": contiguous}


def is_sharded(name: str, config: Mapping[str, Json]) -> bool:
    """Say whether a fused projection is one of CodeGen, cut into the shards that it was trained in."""
    return config.get("model_type") == "codegen" or _CODEGEN.search(name) is not None


def is_interleaved(name: str, config: Mapping[str, Json]) -> bool:
    """Say whether families that name a fused projection like this have q, k and v of a head side by side in it.

    Parameters
    ----------
    name : str
        Stored name of the projection.
    config : mapping
        Configuration of its checkpoint.
    """
    if config.get("model_type") == "gpt_bigcode":
        return config.get("multi_query") is False
    # ChatGLM since its second version has groups, and all queries first.
    return _INTERLEAVED.search(name) is not None and "multi_query_group_num" not in config


def _interleaved(lines: Tensor, sizes: Sequence[int], width: int) -> dict[str, Cut]:
    """Cut groups of (queries of a group, its key, its value), heads of `width` rows."""
    if not width or any(size % width for size in sizes):
        return {}
    groups = sizes[1] // width
    if not groups or (sizes[0] // width) % groups:
        return {}
    queries = sizes[0] // width // groups
    runs = queries + 2
    return {
        f"q, k and v interleaved, heads of {width}": {
            "q": Interleaved(lines, runs, width, 0, queries),
            "k": Interleaved(lines, runs, width, queries, 1),
            "v": Interleaved(lines, runs, width, queries + 1, 1),
        }
    }


def upright(tensor: Tensor, rows: int | None) -> Tensor:
    """Return a fused projection with its outputs as rows: Conv1D stores inputs by outputs.

    Parameters
    ----------
    tensor : Tensor
        The projection; anything but a matrix is returned as it is.
    rows : int, optional
        How many outputs there are; three times the inputs where that is not known.
    """
    if len(tensor.shape) != 2:
        return tensor
    first, second = tensor.shape
    is_turned = second == rows != first if rows else second == 3 * first
    return Transposed(tensor) if is_turned else tensor


def _sizes(total: int, heads: tuple[int, int] | None) -> list[int]:
    """Return the rows of q, k and v that a configuration gives; thirds without one."""
    if heads:
        width, rest = divmod(total, heads[0] + 2 * heads[1])
        return [] if rest else [width * heads[0], width * heads[1], width * heads[1]]
    return [total // 3] * 3 if total and total % 3 == 0 else []


def _gate_up_cuts(tensor: Tensor, partner: tuple[int, ...] | None) -> dict[str, Cut]:
    lines = upright(tensor, 2 * partner[0]) if partner else tensor
    half, rest = divmod(lines.shape[0], 2)
    if rest or (partner and half != partner[0]):
        return {}
    return {
        "gate above up": {"gate": Rows(lines, 0, half), "up": Rows(lines, half, 2 * half)},
        "gate and up interleaved": {
            "gate": Interleaved(lines, 2, 1, 0, 1), "up": Interleaved(lines, 2, 1, 1, 1),
        },
    }


def _experts(
    name: str, canonical: str, role: str, tensor: Tensor, config: Mapping[str, Json], partner: Partner
) -> tuple[Piece, ...]:
    """Cut a stack into experts, and fused ones further, if the other checkpoint keeps them apart."""
    place, _, rest = canonical.rpartition(f"{role}.")
    found: list[Piece] = []
    for index in range(tensor.shape[0]):
        single, own = Unstacked(tensor, index), f"{place}expert.{index}.{role}.{rest}"
        label = f"expert {index}"
        inner = pieces_of(name, own, role, single, config, partner) if role == "gate_up" and not partner(own) else ()
        if inner:
            found += [Piece(p.canonical, p.role, f"{label}, {p.label}", p.views) for p in inner]
        else:
            found.append(Piece(own, role, label, ((label, single),)))
    return tuple(found)
