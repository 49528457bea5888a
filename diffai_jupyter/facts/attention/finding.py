"""The projections of every attention layer of a checkpoint, found by names and shapes. Reads no tensor."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from diffai_jupyter.checkpoint.anatomy import Anatomy
from diffai_jupyter.checkpoint.model import Checkpoint
from diffai_jupyter.checkpoint.names import (
    CROSS,
    Traits,
    bare_name,
    block_of,
    canonical_name,
    pattern_of,
    role_of,
)
from diffai_jupyter.checkpoint.pieces import is_interleaved, is_sharded, upright
from diffai_jupyter.checkpoint.quantized import Undecoded
from diffai_jupyter.checkpoint.tensor import Tensor
from diffai_jupyter.checkpoint.views import Transposed
from diffai_jupyter.facts.attention.norms import Norms, Place, has_offset_gains, norms_of
from diffai_jupyter.facts.attention.settings import Config, layer_config
from diffai_jupyter.facts.network.attention import latent_role, path_of
from diffai_jupyter.facts.network.attributes import TOWERS

ROLES = ("q", "k", "v", "o", "qkv")

_OUTPUT = re.compile(
    r"(?:^|[._])(?:o|wo|out|output|post|dense|linear|c_proj|proj|projection|projection_layer|out_proj|output_proj|o_proj)$",
    re.IGNORECASE,
)
"""Names of an output projection where it has no role of its own, such as the `dense` of Phi or the `proj` of timm."""
_ASIDE = re.compile(r"(?:^|\.)(?:indexer|compressor)\.")
"""What only chooses which keys are looked at."""
_LINEAR = ("A_log", "dt_bias", "forget_gate", "b_proj.weight")
"""What state-space and linear attention has beside its projections: there is no softmax over positions."""
_LINEAR_KINDS = ("linear", "mamba", "conv", "recurrent")
_CODES = re.compile(r"\.(?:weight|qweight)$")
_PLAIN = Traits(axes=2, is_integral=False, is_vocabulary=False, is_line=False, is_grid=True)
_BLOCK_KEY = re.compile(r"(?P<key>(?:.*\.)?block\.\d+(?:\.cross)?)\.(?:q|k|v|o|qkv)\.\w+$")
_GGUF_SIDES = {"enc.": "encoder.", "dec.": "decoder."}
_FIRST_NUMBER = re.compile(r"\.(\d+)\.")
_HINTS: Mapping[str, re.Pattern[str]] = {
    "head": re.compile(r"(?:relative_attention_bias|rel_attn_embed|attn_rel_b)\.weight$|relative_position_bias_table$"),
    "heads": re.compile(
        r"(?:^|[._])(?:slopes|sinks|attention_sink_bias)$|attn_sinks\.weight$|attn\.(?:\w+\.)?logit_scale$"
    ),
    "half": re.compile(r"(?:^|\.)(?:rotary_emb\.inv_freq|rope\.freqs)$"),
}
"""Tensors whose last axis, or whose size, is the number of heads, and those with half as many entries as a head."""


class Stored(NamedTuple):
    """A projection.

    Parameters
    ----------
    name : str
        Stored name.
    tensor : Tensor, shape (outputs, inputs)
        Its matrix, outputs as rows.
    bias : Tensor, optional
        Its bias.
    """

    name: str
    tensor: Tensor
    bias: Tensor | None


@dataclass(frozen=True, slots=True, eq=False)
class Projections:
    """The projections of one attention layer.

    Parameters
    ----------
    path : str
        Stored path.
    key : str
        What the layer is called in all checkpoints of its architecture.
    block : int, optional
        Index of its block.
    is_cross : bool
        Whether keys and values come from another sequence.
    config : mapping
        What the configuration says of it.
    weights : mapping of str to Stored
        By role: ``q``, ``k``, ``v``, ``o``, ``qkv``, and those of latent attention.
    norms : Norms
        The norms around it.
    hints : mapping of str to Tensor
        Tensors that tell how many heads there are, see `_HINTS`.
    is_hidden : bool
        Whether packed codes hide a matrix.
    """

    path: str
    key: str
    block: int | None
    is_cross: bool
    config: Config
    weights: Mapping[str, Stored]
    norms: Norms
    hints: Mapping[str, Tensor]
    is_hidden: bool

    @property
    def is_latent(self) -> bool:
        """Whether keys and values come out of one compressed vector."""
        return "kv_a" in self.weights

    @property
    def is_fused(self) -> bool:
        """Whether queries, keys and values are one tensor."""
        return "qkv" in self.weights

    @property
    def is_gated(self) -> bool:
        """Whether the query projection also gives a gate for the output, head by head, as in Qwen3-Next."""
        size = self.config.get("head_dim")
        if self.is_latent or "q" not in self.weights or not isinstance(size, int) or size < 1:
            return False
        return self.rows("q") == 2 * self.values > 0 and self.values % size == 0 and self.norms.q is not None

    @property
    def layout(self) -> str:
        """How it is stored, in words."""
        if self.is_latent:
            return "latent"
        if not self.is_fused:
            return "separate, with a gate" if self.is_gated else "separate"
        if is_sharded(self.weights["qkv"].name, self.config):
            return "fused, in 4 groups"
        is_mixed = is_interleaved(self.weights["qkv"].name, self.config)
        return f"fused, {'interleaved by head' if is_mixed else 'one after the other'}"

    @property
    def stage(self) -> int | None:
        """Index of the layer in lists of the configuration: that of its stage, or of its block where there is none."""
        return next((int(piece) for piece in self.path.split(".") if piece.isdigit()), None)

    @property
    def inputs(self) -> int:
        """Numbers that a query is made of."""
        first = next(self.weights[role] for role in ("q_a", "q", "qkv", "q_b") if role in self.weights)
        return first.tensor.grid[1]

    @property
    def values(self) -> int:
        """Numbers of the values of all heads: the inputs of the output projection; 0 where there is none."""
        return self.weights["o"].tensor.grid[1] if "o" in self.weights else 0

    @property
    def rotated(self) -> int:
        """Rows of a key of latent attention that carry its position."""
        inner = self.weights["kv_b"].tensor.grid[1] if "kv_b" in self.weights else self.weights["v_b"].tensor.shape[-1]
        return self.rows("kv_a") - inner

    def rows(self, role: str) -> int:
        """Return the outputs of a projection; 0 where there is none."""
        return self.weights[role].tensor.grid[0] if role in self.weights else 0


def projections(checkpoint: Checkpoint, anatomy: Anatomy) -> tuple[Projections, ...]:
    """Find the attention layers of a checkpoint in depth order: encoder, what is neither, decoder.

    Attention without softmax, as in RWKV, Mamba and linear attention, is left out.
    """
    groups = _grouped(checkpoint, anatomy)
    found = [layer for path, names in groups.items() if (layer := _layer(path, names, checkpoint, anatomy))]
    found = _with_keys(found)
    blocks = Counter(_place(layer) for layer in found)
    hints = _hints(checkpoint.tensors)
    return tuple(
        replace(
            layer,
            norms=norms_of(
                Place(
                    layer.path, _query_module(layer), layer.config, layer.is_cross, blocks[_place(layer)] == 1
                ),
                checkpoint.tensors,
                has_offset_gains(layer.config, checkpoint.format),
            ),
            hints=_hints_of(layer, hints),
        )
        for layer in sorted(found, key=_depth)
    )


def _grouped(checkpoint: Checkpoint, anatomy: Anatomy) -> dict[str, dict[str, str]]:
    """Return the stored names of the projections by role, by the path of their layer."""
    groups: dict[str, dict[str, str]] = {}
    loose: list[str] = []
    for name, tensor in checkpoint.tensors.items():
        role = latent_role(name) or anatomy.parts[name].role
        if role in ("quantized", "buffer") and _CODES.search(name):
            role = role_of(pattern_of(_CODES.sub(".weight", bare_name(name))), _PLAIN)
        if role == "matrix" and len(tensor.shape) == 2:
            loose.append(name)
        elif role in (*ROLES, "q_a", "q_b", "kv_a", "kv_b", "k_b", "v_b") and not _ASIDE.search(name):
            is_matrix = len(tensor.shape) == (3 if role in ("k_b", "v_b") else 2)
            if (is_matrix or _is_packed(name, tensor, anatomy)) and not name.endswith("bias"):
                groups.setdefault(path_of(name), {}).setdefault(role, name)
    for name in loose:
        own = groups.get(path_of(name))
        if own is not None and "o" not in own and _OUTPUT.search(_module(name)):
            own["o"] = name
    return groups


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _is_packed(name: str, tensor: Tensor, anatomy: Anatomy) -> bool:
    """Say whether a tensor is packed codes that are not decoded."""
    is_code = anatomy.parts[name].role in ("quantized", "buffer") or tensor.dtype.opaque
    return bool(is_code) or isinstance(tensor, Undecoded)


def _layer(path: str, names: dict[str, str], checkpoint: Checkpoint, anatomy: Anatomy) -> Projections | None:
    tensors = checkpoint.tensors
    is_whole = "qkv" in names or {"q", "k"} <= names.keys()
    is_latent = "kv_a" in names and bool({"q", "q_b"} & names.keys()) and bool({"kv_b", "v_b"} & names.keys())
    first = names.get("qkv") or names.get("q") or names.get("q_b") or ""
    block = block_of(bare_name(first))
    config = layer_config(path, checkpoint.config)
    if not (is_whole or is_latent) or _is_linear(path, block, config, checkpoint):
        return None
    is_hidden = any(_is_packed(name, tensors[name], anatomy) for name in names.values())
    weights = {role: Stored(name, tensors[name], _bias(name, role, path, checkpoint)) for role, name in names.items()}
    if "v" not in names and config.get("attention_k_eq_v") is True and "k" in weights:
        weights["v"] = weights["k"]
    if not is_hidden:
        weights = _upright(weights)
    is_other = not is_hidden and is_whole and "k" in names and tensors[names["k"]].grid[1] != tensors[first].grid[1]
    is_cross = bool(CROSS.search(path)) or is_other or ("transformer_blocks." in path and path.endswith("attn2"))
    key = _key(names, path, anatomy)
    return Projections(path, key, block, is_cross, config, weights, Norms(), {}, is_hidden)


def _is_linear(path: str, block: int | None, config: Config, checkpoint: Checkpoint) -> bool:
    kinds = config.get("layer_types")
    if isinstance(kinds, list) and block is not None and block < len(kinds):
        return str(kinds[block]).startswith(_LINEAR_KINDS)
    return "linear_attn" in path or any(f"{path}.{word}" in checkpoint.tensors for word in _LINEAR)


def _bias(name: str, role: str, path: str, checkpoint: Checkpoint) -> Tensor | None:
    """Return the bias of a projection: beside it, or beside the layer under the name of its role."""
    for other in (name.removesuffix("weight") + "bias", f"{path}.{role}_bias"):
        found = checkpoint.tensors.get(other)
        if found is not None and other != name and len(found.shape) == 1:
            return found
    return None


def _upright(weights: dict[str, Stored]) -> dict[str, Stored]:
    """Return the projections with outputs as rows.

    Conv1D stores inputs by outputs. Of a square output projection its shape does not tell; the fused projection beside
    it does.
    """
    found = dict(weights)
    is_turned = False
    if "qkv" in found:
        fused = found["qkv"]
        found["qkv"] = fused._replace(tensor=upright(fused.tensor, None))
        is_turned = found["qkv"].tensor is not fused.tensor
    if "o" in found:
        output = found["o"]
        rows, cols = output.tensor.grid
        values = _value_rows(found)
        if is_turned or (values == rows != cols):
            found["o"] = output._replace(tensor=Transposed(output.tensor))
    return found


def _value_rows(weights: Mapping[str, Stored]) -> int:
    """Return the numbers of the values of all heads, by the shapes of separate projections; 0 for other layouts."""
    if not {"q", "k", "v"} <= weights.keys():
        return 0
    queries, keys, values = (weights[role].tensor.grid[0] for role in "qkv")
    return queries * values // keys if keys else 0


def _key(names: Mapping[str, str], path: str, anatomy: Anatomy) -> str:
    """Return what all checkpoints call a layer: by the block in the canonical name of one of its projections."""
    canonical = (
        anatomy.parts[name].canonical
        if anatomy.parts[name].role in ROLES
        else canonical_name(_CODES.sub(".weight", bare_name(name)), role)
        for role, name in names.items()
    )
    matches = (_BLOCK_KEY.match(name) for name in canonical)
    key = next((found["key"] for found in matches if found is not None), bare_name(path))
    return next((long + key.removeprefix(short) for short, long in _GGUF_SIDES.items() if key.startswith(short)), key)


def _with_keys(found: list[Projections]) -> list[Projections]:
    """Give layers that share a key their paths as keys."""
    counts = Counter(layer.key for layer in found)
    return [layer if counts[layer.key] == 1 else replace(layer, key=bare_name(layer.path)) for layer in found]


def _place(layer: Projections) -> str:
    """Return the block that a layer is in."""
    return layer.key.removesuffix(".cross")


def _query_module(layer: Projections) -> str:
    """Return the module around the query projection."""
    first = next(layer.weights[role].name for role in ("q", "qkv", "q_b") if role in layer.weights)
    return _module(_module(first))


def _depth(layer: Projections) -> tuple[object, ...]:
    sides = f".{layer.key}."
    rank = 0 if ".encoder." in sides else 2 if ".decoder." in sides else 1
    pieces = tuple((0, int(piece), "") if piece.isdigit() else (1, 0, piece) for piece in layer.path.split("."))
    stack = layer.key.partition("block.")[0]
    return rank, stack, -1 if layer.block is None else layer.block, layer.is_cross, pieces


def _hints(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return the tensors that tell the number of heads, by kind and by stored name."""
    found: dict[str, dict[str, Tensor]] = {kind: {} for kind in _HINTS}
    for name, tensor in tensors.items():
        for kind, names in _HINTS.items():
            if tensor.size and names.search(name):
                found[kind][name] = tensor
    return found


def _hints_of(layer: Projections, hints: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the hints of a layer: its own, else what its stack has in its first layer, or all stacks beside them."""
    found = {}
    for kind, named in hints.items():
        own = next((tensor for name, tensor in named.items() if name.startswith(layer.path)), None)
        shared = (tensor for name, tensor in named.items() if _is_shared(name, layer.path))
        if (tensor := own or next(shared, None)) is not None:
            found[kind] = tensor
    return found


def _is_shared(name: str, path: str) -> bool:
    """Say whether a tensor belongs to all layers of the stack of a path: T5 stores its bias in the first one."""
    stack, number, _ = _FIRST_NUMBER.split(name, maxsplit=1) if _FIRST_NUMBER.search(name) else ("", "", "")
    if number:
        return int(number) == 0 and path.startswith(f"{stack}.") and not name.endswith("_table")
    return TOWERS.search(path) is None and TOWERS.search(name) is None
