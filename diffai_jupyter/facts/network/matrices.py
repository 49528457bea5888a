"""Which tensors of a network are multiplied with, what they do, and which of them one kernel takes together."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from diffai_jupyter.checkpoint.anatomy import Anatomy, Part
from diffai_jupyter.checkpoint.model import Checkpoint, Json
from diffai_jupyter.checkpoint.quantized import Merged, Product, Undecoded
from diffai_jupyter.checkpoint.tensor import Tensor
from diffai_jupyter.evidence import Unknowable
from diffai_jupyter.facts.network.attention import is_latent, path_of
from diffai_jupyter.facts.network.behavior import EXPERTS_PER_TOKEN

_TABLE = re.compile(r"(?:^|\.)(?!patch_)(?:\w*embeddings?|(?:\w+_)?emb|embed_\w+)\.weight$")
_RECURRENT_TABLE = re.compile(r"(?:^|\.)encoder\.weight$")
_NO_MATRIX = re.compile(
    r"bias(?:_table)?$|_bias\.weight$|(?:^|\.)(?:A_log|D|logit_scale)$|rel_pos\w*$|_tokens?$|embeddings?$"
    r"|time_(?:mix|decay|first)\w*$"
)
_OUTPUT = re.compile(
    r"(?:^|\.)(?:predictions\.decoder|lm_head\.decoder|vocab_projector|output_projection|proj_out|to_logits|embed_out)"
    r"\.weight$|^decoder\.weight$"
)
_EXPERT = re.compile(r"experts?[._](?:expert_)?(?P<index>\d+)\.")
_STACK = re.compile(r"\.experts\.|_exps\.")
_COUNT_KEYS = ("num_local_experts", "n_routed_experts", "num_experts", "moe_num_experts")
_FEED_FORWARD = re.compile(r"mlp|ffn|feed_?forward|(?:^|\.)ff\.|fc_?\w+\.", re.IGNORECASE)
_ATTENTION = re.compile(r"att", re.IGNORECASE)
_RECURRENT = re.compile(r"weight_[ihr][hr]_l\d+")
_OUT = re.compile(r"out|down|w2|wo\.|fc2|layer_2", re.IGNORECASE)
_MIXER = re.compile(r"mixer|mamba|ssm")
_ROLES: Mapping[str, str] = {
    "q": "attention in", "k": "attention in", "v": "attention in", "qkv": "attention in", "o": "attention out",
    "gate": "feed-forward in", "up": "feed-forward in", "gate_up": "feed-forward in", "down": "feed-forward out",
    "router": "router", "adapter": "adapter", "convolution": "convolution",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Matrix:
    """A tensor that positions are multiplied with.

    Parameters
    ----------
    name : str
        Stored name.
    tensor : Tensor
        Its header.
    role : str
        What it does: ``"attention in"``, ``"feed-forward out"``, ``"experts in"``, ``"matrix"``, …
    block : int, optional
        Index of its block.
    group : str
        Module that it shares a kernel with.
    expert : int, optional
        Which expert it belongs to, where experts are stored one by one.
    experts : int
        How many experts it holds.
    """

    name: str
    tensor: Tensor
    role: str
    block: int | None
    group: str
    expert: int | None = None
    experts: int = 1

    @property
    def elements(self) -> int:
        """Elements that are multiplied with; of an adapter those of both factors."""
        if isinstance(self.tensor, Product):
            return self.tensor.up.size + self.tensor.down.size
        return self.tensor.size

    @property
    def stored(self) -> int:
        """Bytes that are read; an adapter is taken as merged into its base."""
        return self.tensor.base.nbytes if isinstance(self.tensor, Merged) else self.tensor.nbytes

    @property
    def sides(self) -> tuple[int, int]:
        """Numbers that go in and come out at one position, in either order; of one expert."""
        shape = self.tensor.shape
        if self.experts == 1:
            return shape[0], shape[1]
        return (shape[1], shape[2]) if len(shape) == 3 else (shape[0] // self.experts, shape[1])


def matrices(checkpoint: Checkpoint, anatomy: Anatomy, is_recurrent: bool) -> tuple[Matrix, ...]:
    """List the tensors that positions are multiplied with: no tables, norms, biases and buffers.

    Raises
    ------
    Unknowable
        ``NOT_DEQUANTIZABLE`` where packed codes hide the shape of a matrix.
    """
    found, hidden = [], 0
    for name, tensor in checkpoint.tensors.items():
        part = anatomy.parts[name]
        if len(tensor.shape) < 2 or part.role in ("norm", "buffer", "position") or not tensor.size:
            continue
        hidden += part.role == "quantized" or type(tensor) is Undecoded
        if not is_table(name, part, is_recurrent) and _is_matrix(name, tensor, part):
            found.append(_matrix(name, tensor, part, checkpoint.config))
    if hidden:
        raise Unknowable("NOT_DEQUANTIZABLE", packed=hidden)
    return tuple(found)


def is_table(name: str, part: Part, is_recurrent: bool = False) -> bool:
    """Say whether rows of a tensor are looked up."""
    if _OUTPUT.search(name) or part.role in ("head", "adapter"):
        return False
    if is_recurrent and _RECURRENT_TABLE.search(name):
        return True
    # A projection inside a block may have as many rows as there are words.
    return (part.role == "embedding" and part.block is None) or _TABLE.search(name) is not None


def is_output(name: str, part: Part) -> bool:
    """Say whether a matrix gives the scores of words or classes."""
    return part.block is None and (part.role == "head" or _OUTPUT.search(name) is not None)


def joined_width(group: tuple[Matrix, ...]) -> int:
    """Return the numbers that go in and come out at one position: fused or apart, it is the same.

    Examples
    --------
    >>> from diffai_jupyter.checkpoint.dtypes import DTYPES
    >>> from diffai_jupyter.checkpoint.tensor import ArrayTensor
    >>> import numpy as np
    >>> def matrix(*shape):
    ...     tensor = ArrayTensor(np.zeros(shape, "f4"), DTYPES["f32"], ("w",))
    ...     return Matrix("w", tensor, "attention in", 0, "a")
    >>> joined_width((matrix(4, 8), matrix(2, 8), matrix(2, 8))), joined_width((matrix(8, 8),))
    (16, 16)
    """
    sides = [matrix.sides for matrix in group]
    if len(group) == 1:
        return sum(sides[0])
    common = set(sides[0]).intersection(*sides[1:])
    inputs = sides[0][1] if sides[0][1] in common or not common else common.pop()
    return inputs + sum(rows * cols // inputs for rows, cols in sides)


def active_experts(config: Mapping[str, Json], count: int) -> int | None:
    """Return how many of `count` experts one token passes through, where the configuration says it."""
    active = _setting(config, EXPERTS_PER_TOKEN)
    return min(active, count) if active is not None else None


def _setting(config: Mapping[str, Json], keys: tuple[str, ...]) -> int | None:
    inner = config.get("ffn_config")
    for part in (config, *([inner] if isinstance(inner, dict) else ())):
        for key in keys:
            found = part.get(key)
            if isinstance(found, int) and not isinstance(found, bool) and found > 0:
                return found
    return None


def _is_matrix(name: str, tensor: Tensor, part: Part) -> bool:
    if _NO_MATRIX.search(name):
        return False
    return min(tensor.grid) > 1 or name.endswith(("weight", "kernel")) or part.role in ("adapter", *_ROLES)


def _matrix(name: str, tensor: Tensor, part: Part, config: Mapping[str, Json]) -> Matrix:
    role, expert, stack = _role(name, tensor, part), _EXPERT.search(name), _STACK.search(name)
    if role in ("router", "adapter") or not (expert or stack):
        return Matrix(name, tensor, role, part.block, _group(name, role, part))
    role = f"experts {'out' if role.endswith('out') else 'in'}"
    if expert:
        return Matrix(name, tensor, role, part.block, name[: expert.start()], int(expert["index"]))
    count = tensor.shape[0] if len(tensor.shape) == 3 else _setting(config, _COUNT_KEYS) or 1
    group = name.partition(".experts.")[0] if ".experts." in name else name.rpartition(".")[0].rpartition(".")[0]
    return Matrix(name, tensor, role, part.block, group + ".", experts=count)


def _group(name: str, role: str, part: Part) -> str:
    """Return the module whose matrices one kernel takes: the attention layer, the feed-forward part, or itself."""
    if role == "attention in":
        return path_of(name)
    module = name.rpartition(".")[0]
    return module.rpartition(".")[0] if part.role in ("gate", "up", "gate_up") else module or name


def _role(name: str, tensor: Tensor, part: Part) -> str:
    if isinstance(tensor, Product):
        return "adapter"
    if is_output(name, part):
        return "head"
    if _RECURRENT.search(name):
        return "recurrent"
    if is_latent(name):
        return "attention in"
    module = name.rpartition(".")[0]
    is_attention = _ATTENTION.search(module) is not None
    if part.role in _ROLES and (part.role != "o" or is_attention):
        return _ROLES[part.role]
    if len(tensor.shape) >= 3 and not _STACK.search(name):
        return "convolution"
    if is_attention:
        return "attention out"
    if _FEED_FORWARD.search(module):
        return "feed-forward out" if _OUT.search(module.rpartition(".")[2] + ".") else "feed-forward in"
    return "mixer" if _MIXER.search(module) else "matrix"
