"""Who is who in a checkpoint: canonical names, roles and places, from headers and configuration only."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from diffai_jupyter.checkpoint.model import Checkpoint
from diffai_jupyter.checkpoint.tensor import Tensor

_WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "base_model.model.", "model.")
_INNER_WRAPPERS = re.compile(r"(?<=\.)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_ALIASES = {"gamma": "weight", "beta": "bias"}

_BUFFER = re.compile(
    r"(?:^|\.)(?:running_mean|running_var|num_batches_tracked|position_ids|inv_freq|masked_bias)$|rotary_emb\."
)
_QUANT_SUFFIXES = (
    "qweight",
    "qzeros",
    "g_idx",
    "absmax",
    "quant_map",
    "nested_absmax",
    "nested_quant_map",
    "SCB",
    "weight_scale",
    "weight_scale_inv",
    "weight_scale_2",
    "weight_global_scale",
    "weight_packed",
    "weight_zero_point",
    "weight_shape",
    "input_scale",
    "weight_format",
)
_QUANT = re.compile(rf"(?:^|\.)(?:{'|'.join(_QUANT_SUFFIXES)})$|\.quant_state\.|_blocks$|_scales$")
_ADAPTER = re.compile(
    r"lora_[AB]|lora_(?:down|up)\b|lora_magnitude_vector|\bhada_|\blokr_|ia3_|lora_embedding_[AB]"
)

_POSITION = re.compile(
    r"(?:^|\.)(?:wpe|position_embeddings?|embed_positions|pos_embed|position_embedding)(?:\.|$)"
)
_EMBEDDING = re.compile(
    r"(?:^|\.)(?:embed_tokens|wte|word_embeddings|tok_embeddings|embed_in|token_embd|embeddings?)\.weight$"
    r"|(?:^|\.)shared\.weight$"
)
_HEAD = re.compile(r"(?:^|\.)(?:lm_head|embed_out|score|classifier|head)\.(?:weight|bias)$|^output\.weight$")
_NORM = re.compile(
    r"(?:^|[._])(?:\w*norm\w*|ln_?\w*|bn\d*|\w*layernorm\w*)\.(?:weight|bias|gamma|beta)$", re.IGNORECASE
)

_ROLE_NAMES: Mapping[str, str] = {
    "gate_up": "gate_up_proj",
    "qkv": "c_attn|qkv_proj|query_key_value|Wqkv|in_proj|qkv|qkv_lin",
    "q": "q_proj|query|q_lin|wq|to_q|SelfAttention.q|EncDecAttention.q",
    "k": "k_proj|key|k_lin|wk|to_k|SelfAttention.k|EncDecAttention.k",
    "v": "v_proj|value|v_lin|wv|to_v|SelfAttention.v|EncDecAttention.v",
    "o": "o_proj|attn.c_proj|attention.output.dense|attention.dense|self_attention.dense|out_proj|out_lin"
    "|attention.wo|to_out.*|SelfAttention.o|EncDecAttention.o",
    "gate": "gate_proj|feed_forward.w1|mlp.w1",
    "up": "up_proj|feed_forward.w3|mlp.w3|fc1|mlp.c_fc|c_fc|intermediate.dense|dense_h_to_4h|ffn.lin1|wi_0|wi_1|wi",
    "down": "down_proj|feed_forward.w2|mlp.w2|fc2|mlp.c_proj|output.dense|dense_4h_to_h|ffn.lin2|DenseReluDense.wo",
}
"""Role to the module names that have it; the first role that fits wins, so ``o`` stands before ``down``."""
_ROLES = tuple(
    (role, re.compile(rf"(?:^|\.)(?:{re.escape(names).replace(re.escape('|'), '|')})$"))
    for role, names in _ROLE_NAMES.items()
)
_BLOCKS = re.compile(
    r"^(?P<outer>.*?)(?:^|\.)(?:layers?|h|blocks?|resblocks)\.(?P<index>\d+)\.(?P<inner>.+)$"
)
_OUTER_NOISE = ("transformer", "encoder.layer", "gpt_neox", "backbone", "bert", "roberta")


@dataclass(frozen=True, slots=True)
class Part:
    """What one stored tensor is.

    Parameters
    ----------
    canonical : str
        Name that two checkpoints of one architecture share.
    role : str
        ``"q"``, ``"up"``, ``"embedding"``, ``"head"``, ``"norm"``, ``"buffer"``, ``"quantized"``,
        ``"adapter"``, ``"matrix"``, ``"vector"``, …
    block : int, optional
        Index of the repeated block it belongs to.
    layer : str
        Module path: the stored name without its last component.
    """

    canonical: str
    role: str
    block: int | None
    layer: str

    @property
    def is_trained(self) -> bool:
        """Whether training changes it: neither a buffer nor packed codes and scales."""
        return self.role not in ("buffer", "quantized")


@dataclass(frozen=True)
class Anatomy:
    """Names and roles of all tensors of one checkpoint.

    Parameters
    ----------
    parts : mapping of str to Part
        By stored name.
    """

    parts: Mapping[str, Part]

    @cached_property
    def canonical(self) -> Mapping[str, tuple[str, ...]]:
        """Stored names by canonical name."""
        found: dict[str, list[str]] = {}
        for name, part in self.parts.items():
            found.setdefault(part.canonical, []).append(name)
        return {canonical: tuple(names) for canonical, names in found.items()}

    def names(self, *roles: str) -> tuple[str, ...]:
        """Return the stored names with one of these roles."""
        return tuple(name for name, part in self.parts.items() if part.role in roles)


def anatomy(checkpoint: Checkpoint) -> Anatomy:
    """Name every tensor of a checkpoint. Reads no tensor."""
    bare_names = {name: bare_name(name) for name in checkpoint.tensors}
    common = _common_prefix(tuple(bare_names.values()))
    vocab = checkpoint.config.get("vocab_size")
    parts = {}
    for name, tensor in checkpoint.tensors.items():
        bare = bare_name(bare_names[name].removeprefix(common)) if common else bare_names[name]
        role = _role(pattern_of(bare), _traits(tensor, vocab if isinstance(vocab, int) else None))
        parts[name] = Part(_canonical(bare, role), role, block_of(bare), name.rpartition(".")[0] or name)
    return Anatomy(_with_companions(parts, checkpoint.tensors))


def bare_name(name: str) -> str:
    """Return a name without the prefixes that training wrappers add.

    Examples
    --------
    >>> bare_name("module.model.layers.0._orig_mod.mlp.weight")
    'layers.0.mlp.weight'
    """
    bare = _INNER_WRAPPERS.sub("", name)
    stripped = True
    while stripped:
        stripped = False
        for prefix in _WRAPPERS:
            if bare.startswith(prefix) and len(bare) > len(prefix):
                bare, stripped = bare[len(prefix) :], True
    return bare


def block_of(name: str) -> int | None:
    """Return the index of the block a name belongs to, if it names one.

    Examples
    --------
    >>> block_of("model.layers.12.mlp.weight"), block_of("lm_head.weight")
    (12, None)
    """
    found = _BLOCKS.match(name)
    return int(found["index"]) if found and len(found["index"]) < 10 else None


def pattern_of(name: str) -> str:
    """Return a name with every number that stands alone between dots replaced by ``*``.

    Examples
    --------
    >>> pattern_of("layers.10.mlp.fc1.weight")
    'layers.*.mlp.fc1.weight'
    """
    return ".".join("*" if piece.isdigit() else piece for piece in name.split("."))


def _common_prefix(names: tuple[str, ...]) -> str:
    """Return the first component, with its dot, that all names share, unless it numbers or repeats blocks.

    The module of a parameter is never taken: ``fc1`` of ``fc1.weight`` and ``fc1.bias`` says what they are.
    """
    if len(names) < 2:
        return ""
    first = names[0].partition(".")[0]
    if first.isdigit() or any(name.partition(".")[0] != first or name.count(".") < 2 for name in names):
        return ""
    return "" if names[0].split(".")[1].isdigit() else first + "."


@dataclass(frozen=True, slots=True)
class _Traits:
    """What a role depends on beside the name."""

    axes: int
    is_integral: bool
    is_vocabulary: bool
    is_line: bool
    is_grid: bool


def _traits(tensor: Tensor, vocab: int | None) -> _Traits:
    shape = tensor.shape
    return _Traits(
        axes=len(shape),
        is_integral=tensor.dtype.kind in ("integer", "bool") and not tensor.dtype.opaque,
        is_vocabulary=len(shape) == 2 and vocab is not None and shape[0] == vocab,
        is_line=len(shape) < 2 or tensor.size == max(shape),
        is_grid=len(shape) >= 2 and min(tensor.grid) > 1,
    )


@functools.lru_cache(maxsize=4096)
def _role(pattern: str, traits: _Traits) -> str:
    """Return the role of a bare name whose numbers are stars: large models repeat few patterns."""
    is_matrix = traits.axes >= 2
    is_mask = pattern.endswith("attn.bias") and traits.axes == 4
    rules = (
        ("adapter", _ADAPTER.search(pattern)),
        ("quantized", _QUANT.search(pattern)),
        ("buffer", _BUFFER.search(pattern) or is_mask or traits.is_integral),
        ("position", is_matrix and _POSITION.search(pattern)),
        ("embedding", is_matrix and _EMBEDDING.search(pattern)),
        ("head", _HEAD.search(pattern)),
        ("embedding", traits.is_vocabulary),
        ("norm", traits.is_line and _NORM.search(pattern)),
    )
    for role, holds in rules:
        if holds:
            return role
    module = re.sub(r"[._](?:weight|bias)$", "", pattern)
    for role, names in _ROLES:
        # Fused attention of torch has in_proj_weight; in_proj.weight is the input of a state-space mixer.
        if names.search(module) and not pattern.endswith(("in_proj.weight", "in_proj.bias")):
            return role
    if traits.is_grid:
        return "convolution" if traits.axes > 2 else "matrix"
    return "vector"


def _canonical(bare: str, role: str) -> str:
    """Return the shared name: block, role and kind for known roles, the bare name otherwise."""
    head, dot, last = bare.rpartition(".")
    last = _ALIASES.get(last, last)
    plain = f"{head}{dot}{last}"
    found = _BLOCKS.match(plain)
    if not found or role not in _ROLE_NAMES:
        return plain
    outer = found["outer"]
    outer = "" if not outer or outer in _OUTER_NOISE else outer + "."
    cross = (
        "cross."
        if re.search(r"cross_?attn|encoder_attn|EncDecAttention|crossattention", found["inner"])
        else ""
    )
    expert = re.search(r"experts?\.(\d+)\.", found["inner"])
    which = f"expert.{expert[1]}." if expert else ""
    return f"{outer}block.{found['index']}.{which}{cross}{role}.{last}"


def _with_companions(parts: dict[str, Part], tensors: Mapping[str, Tensor]) -> dict[str, Part]:
    """Mark payloads that only their companions can decode, such as an int8 or fp8 ``weight`` with its scale."""
    for name in parts:
        for suffix in (".weight_scale", ".weight_scale_inv", ".SCB", ".weight.absmax"):
            payload = f"{name.removesuffix(suffix)}.weight" if name.endswith(suffix) else ""
            if payload in parts and tensors[payload].dtype.bits <= 8:
                part = parts[payload]
                parts[payload] = Part(part.canonical, "quantized", part.block, part.layer)
    return parts
