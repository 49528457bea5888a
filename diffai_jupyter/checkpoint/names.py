"""What the names of tensors say: wrappers, blocks, roles, and one canonical name for all families.

Hugging Face, Meta, GPT-2, GPT-NeoX, BERT, T5 and GGUF name the same matrices differently. The tables here
were checked against state dicts of the transformers library and the name map of the gguf package.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass

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
    r"\.lora$|lora_[AB]|lora_(?:down|up)\b|lora_magnitude_vector|\bhada_|\blokr_|ia3_|lora_embedding_[AB]"
)

_POSITION = re.compile(
    r"(?:^|\.)(?:wpe|position_embeddings?|embed_positions|pos_embed|position_embedding|position_embd)(?:\.|$)"
)
_EMBEDDING = re.compile(
    r"(?:^|\.)(?:embed_tokens|wte|word_embeddings|tok_embeddings|embed_in|token_embd|token_embedding|embeddings?)\.weight$"
    r"|(?:^|\.)shared\.weight$"
)
_HEAD = re.compile(r"(?:^|\.)(?:lm_head|embed_out|score|classifier|head)\.(?:weight|bias)$|^output\.weight$")
_NORM = re.compile(
    r"(?:^|[._])(?:\w*norm\w*|ln_?\w*|bn\d*|\w*layernorm\w*)\.(?:weight|bias|gamma|beta)$", re.IGNORECASE
)

_ROLE_NAMES: Mapping[str, str] = {
    "router": "mlp.gate|block_sparse_moe.gate|mlp.router|ffn_gate_inp|moe.gate",
    "gate_up": "gate_up_proj",
    "qkv": "c_attn|qkv_proj|query_key_value|Wqkv|wqkv|in_proj|qkv|qkv_lin|attn_qkv",
    "q": "q_proj|query|query_proj|q_lin|wq|to_q|SelfAttention.q|EncDecAttention.q|attn_q|cross_attn_q",
    "k": "k_proj|key|key_proj|k_lin|wk|to_k|SelfAttention.k|EncDecAttention.k|attn_k|cross_attn_k",
    "v": "v_proj|value|value_proj|v_lin|wv|to_v|SelfAttention.v|EncDecAttention.v|attn_v|cross_attn_v",
    "o": "o_proj|attn.c_proj|attention.output.dense|attention.dense|self_attention.dense|out_proj|out_lin"
    "|attention.wo|to_out.*|SelfAttention.o|EncDecAttention.o|attn_output|attn_o|cross_attn_o",
    "gate": "gate_proj|feed_forward.w1|mlp.w1|experts.*.w1|ffn_gate|ffn_gate_exps",
    "up": "up_proj|feed_forward.w3|mlp.w3|experts.*.w3|fc1|mlp.c_fc|c_fc|intermediate.dense|dense_h_to_4h|ffn.lin1"
    "|wi_0|wi_1|wi|ffn_up|ffn_up_exps",
    "down": "down_proj|feed_forward.w2|mlp.w2|experts.*.w2|fc2|mlp.c_proj|output.dense|dense_4h_to_h|ffn.lin2"
    "|DenseReluDense.wo|ffn_down|ffn_down_exps",
}
"""Role to the module names that have it; the first role that fits wins, so ``o`` stands before ``down``."""
_ROLES = tuple(
    (role, re.compile(rf"(?:^|\.)(?:{re.escape(names).replace(re.escape('|'), '|')})$"))
    for role, names in _ROLE_NAMES.items()
)
_BLOCKS = re.compile(
    r"^(?P<outer>.*?)(?:^|\.)(?:layers?|h|blocks?|resblocks|blk)\.(?P<index>\d+)\.(?P<inner>.+)$"
)
_OUTER_NOISE = ("transformer", "encoder.layer", "gpt_neox", "backbone", "bert", "roberta")
_TOP_NOISE = re.compile(r"^(?:transformer|gpt_neox|backbone|language_model|bert|roberta)\.")
_EXPERT = re.compile(r"experts?\.(\d+)\.")
CROSS = re.compile(r"cross_?att|encoder_attn|EncDecAttention|encoder_decoder_attention|x_attn")
"""Attention whose keys and values come from another sequence."""

QUERY_NORMS, KEY_NORMS = (
    f"{part}_norm|{part}_layernorm|{word}_layernorm|norm_{part}|attn_{part}_norm"
    for part, word in (("q", "query"), ("k", "key"))
)
"""Norms of queries and of keys."""
BLOCK_NORMS: Mapping[str, str] = {
    "attn": r"input_layernorm|attention_norm|attn_norm|ln_1|ln1|norm1|ln_attn",
    "ffn": r"pre_feedforward_layernorm|post_attention_layernorm|ffn_norm|ln_2|ln2|norm2|ln_mlp",
    "attn_post": r"post_attention_norm",
    "ffn_post": r"post_feedforward_layernorm|post_ffw_norm",
    "q": rf"(?:self_attn\.)?(?:{QUERY_NORMS})",
    "k": rf"(?:self_attn\.)?(?:{KEY_NORMS})",
}
"""Norms of a block by their place."""
_NORM_PLACES = tuple((place, re.compile(f"(?:{names})$")) for place, names in BLOCK_NORMS.items())
_FINAL_NORM = re.compile(r"(?:norm|ln_f|final_layer_norm|final_layernorm|output_norm)$")


@dataclass(frozen=True, slots=True)
class Traits:
    """What a role depends on beside the name."""

    axes: int
    is_integral: bool
    is_vocabulary: bool
    is_line: bool
    is_grid: bool


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


@functools.lru_cache(maxsize=4096)
def role_of(pattern: str, traits: Traits) -> str:
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
    # A projection may have as many rows as there are words, so that its name comes first.
    if traits.is_vocabulary:
        return "embedding"
    if traits.is_grid:
        return "convolution" if traits.axes > 2 else "matrix"
    return "vector"


def canonical_name(bare: str, role: str, has_outer_norms: bool = False) -> str:
    """Return the name that all families share: block, role and kind for known roles, the bare name otherwise.

    Parameters
    ----------
    bare : str
        Stored name without wrapper prefixes.
    role : str
        Its role.
    has_outer_norms : bool
        Whether the network also has norms behind its attention and feed-forward parts; then
        ``post_attention_layernorm`` is one of these, and not the one before the feed-forward part.

    Examples
    --------
    >>> canonical_name("blk.3.attn_q.weight", "q"), canonical_name("layers.3.self_attn.q_proj.weight", "q")
    ('block.3.q.weight', 'block.3.q.weight')
    >>> canonical_name("token_embd.weight", "embedding"), canonical_name("output_norm.weight", "norm")
    ('embedding.weight', 'norm.final.weight')
    """
    head, dot, last = bare.rpartition(".")
    last = _ALIASES.get(last, last)
    plain = f"{head}{dot}{last}"
    found = _BLOCKS.match(plain)
    if not found:
        return _top_name(plain, role)
    inner = found["inner"]
    place = _norm_place(inner.rpartition(".")[0], has_outer_norms) if role == "norm" else ""
    if role not in _ROLE_NAMES and not place:
        return plain
    outer = found["outer"]
    outer = "" if not outer or outer in _OUTER_NOISE else outer + "."
    cross = "cross." if CROSS.search(inner) else ""
    expert = _EXPERT.search(inner)
    which = f"expert.{expert[1]}." if expert else ""
    # torch's fused attention keeps its kind in one word: in_proj_weight.
    kind = "weight" if last.endswith("_weight") else "bias" if last.endswith("_bias") else last
    # A stack of experts is one parameter without a kind of its own.
    kind = "weight" if kind.endswith("_proj") else kind
    return f"{outer}block.{found['index']}.{which}{cross}{place or role}.{kind}"


def _norm_place(module: str, has_outer_norms: bool) -> str:
    """Return which norm of a block this is, or an empty string."""
    if has_outer_norms and module.endswith("post_attention_layernorm"):
        return "norm.attn_post"
    for place, names in _NORM_PLACES:
        if names.match(module):
            return f"norm.{place}"
    return ""


def _top_name(plain: str, role: str) -> str:
    """Return the shared name of what stands outside of blocks: embeddings, the final norm, the head."""
    bare = _TOP_NOISE.sub("", plain)
    module, _, kind = bare.rpartition(".")
    if role in ("embedding", "position", "head") and "." not in module:
        return f"{role}.{kind}"
    if role == "norm" and _FINAL_NORM.fullmatch(module):
        return f"norm.final.{kind}"
    return plain
