"""What a checkpoint is built like, from names, shapes and configuration."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from diffai_jupyter.checkpoint.anatomy import Anatomy
from diffai_jupyter.checkpoint.model import Checkpoint, Json
from diffai_jupyter.checkpoint.names import pattern_of
from diffai_jupyter.checkpoint.pieces import FUSED, HEAD_KEYS, KV_HEAD_KEYS
from diffai_jupyter.checkpoint.tensor import Tensor
from diffai_jupyter.evidence import Value, derived, measured, reported, unknown
from diffai_jupyter.facts import fact
from diffai_jupyter.scan.fitting import TURNABLE
from diffai_jupyter.scan.pair import Pair

ATTENTION = ("q", "k", "v", "qkv")
HYBRID_CONVOLUTIONS = 0.25

_SSM = re.compile(r"(?:^|\.)(?:A_log|x_proj|dt_proj)(?:\.|$)")
_RNN = re.compile(r"weight_[ih]h_l\d+|time_decay|receptance")
_RNN_LAYER = re.compile(r"(?P<stack>.*)weight_ih_l(?P<layer>\d+)(?:_reverse)?$")
_SHORTCUT = re.compile(r"downsample|shortcut")
_MLA = re.compile(r"kv_a_proj")
_EXPERT = re.compile(r"experts?\.(\d+)\.")

FUNCTION_KEYS = (
    "activation_function",
    "hidden_act",
    "hidden_activation",
    "activation",
    "rope_theta",
    "rope_scaling",
    "rms_norm_eps",
    "layer_norm_eps",
    "layer_norm_epsilon",
    "norm_eps",
    "sliding_window",
    "layer_types",
    "tie_word_embeddings",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "position_embedding_type",
)
"""Configuration attributes that change what a network computes without changing a shape."""


@dataclass(frozen=True, slots=True)
class Structure:
    """The build of one checkpoint.

    Parameters
    ----------
    kind : str
        ``"cnn"``, ``"rnn"``, ``"transformer"``, ``"mlp"``, ``"ssm"``, ``"hybrid"`` or ``"unknown"``.
    depth : int
        Blocks of a transformer or state-space model, weight layers of the others.
    sub_labels : tuple of str
        Further words, such as ``"mixture of experts"``.
    attributes : mapping of str to Value
        Width, vocabulary and so on, by label.
    patterns : mapping
        Canonical name with numbers as ``*`` to {numbers: shape}.
    shares : mapping of str to int
        Elements by role.
    """

    kind: str
    depth: int
    sub_labels: tuple[str, ...]
    attributes: Mapping[str, Value]
    patterns: Mapping[str, Mapping[tuple[str, ...], tuple[int, ...]]]
    shares: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Difference:
    """One structural difference: a canonical pattern or a configuration attribute.

    Parameters
    ----------
    what : str
        Pattern or attribute.
    how : str
        ``"added"``, ``"removed"``, ``"shape"``, ``"config"`` or ``"depth"``.
    a, b : str
        What stands on either side.
    """

    what: str
    how: str
    a: str
    b: str


@fact
def structure_a(pair: Pair) -> Structure:
    """Return the build of A."""
    return structure(pair.a, pair.anatomy_a)


@fact
def structure_b(pair: Pair) -> Structure:
    """Return the build of B."""
    return structure(pair.b, pair.anatomy_b)


def structure(checkpoint: Checkpoint, anatomy: Anatomy) -> Structure:
    """Read the build off names, shapes and configuration. Reads no tensor."""
    kind = _kind(checkpoint, anatomy)
    patterns: dict[str, dict[tuple[str, ...], tuple[int, ...]]] = {}
    shares: dict[str, int] = {}
    for name, tensor in checkpoint.tensors.items():
        part = anatomy.parts[name]
        numbers = tuple(piece for piece in part.canonical.split(".") if piece.isdigit())
        patterns.setdefault(pattern_of(part.canonical), {})[numbers] = tensor.shape
        shares[part.role] = shares.get(part.role, 0) + tensor.size
    return Structure(
        kind,
        _depth(kind, checkpoint.tensors, anatomy),
        _sub_labels(checkpoint, anatomy),
        attributes(checkpoint, anatomy),
        patterns,
        shares,
    )


def _kind(checkpoint: Checkpoint, anatomy: Anatomy) -> str:
    """Apply the naming rules; the first that holds decides."""
    tensors = checkpoint.tensors
    has_attention = bool(anatomy.names(*ATTENTION))
    convolutions = [t for t in tensors.values() if len(t.shape) >= 3 and max(t.shape[2:]) > 1]
    trained = sum(tensors[name].size for name, part in anatomy.parts.items() if part.is_trained)
    if any(_SSM.search(name) for name in tensors):
        return "hybrid" if has_attention else "ssm"
    if has_attention and trained and sum(t.size for t in convolutions) > HYBRID_CONVOLUTIONS * trained:
        return "hybrid"
    if any(_RNN.search(name) for name in tensors):
        return "rnn"
    if has_attention:
        return "transformer"
    if any(len(t.shape) == 4 for t in convolutions):
        return "cnn"
    if any(len(t.shape) == 2 and min(t.shape) > 1 for t in tensors.values()):
        return "mlp"
    return "unknown"


def _depth(kind: str, tensors: Mapping[str, Tensor], anatomy: Anatomy) -> int:
    if kind in ("transformer", "hybrid", "ssm"):
        names = [*anatomy.names(*ATTENTION), *(name for name in tensors if _SSM.search(name))]
        return len({_block_prefix(name) for name in names})
    if kind == "rnn":
        found = {(match["stack"], match["layer"]) for name in tensors if (match := _RNN_LAYER.search(name))}
        return len(found) or len({anatomy.parts[name].block for name in tensors} - {None})
    weights = [
        (name, tensor)
        for name, tensor in tensors.items()
        if len(tensor.shape) >= 2
        and anatomy.parts[name].is_trained
        and anatomy.parts[name].role not in ("embedding", "position")
    ]
    if kind == "cnn":
        weights = [(name, tensor) for name, tensor in weights if not _SHORTCUT.search(name)]
    return len(weights)


def _block_prefix(name: str) -> str:
    """Return a name up to the index of its block; a T5 block's sub-layers are one block."""
    pieces = re.sub(r"(\.block\.\d+)\.layer\.\d+", r"\1", name).split(".")
    module = next(
        (i for i, piece in enumerate(pieces) if re.search(r"att|mixer|mamba|ssm", piece, re.IGNORECASE)),
        len(pieces),
    )
    last = max((i for i in range(min(module, len(pieces))) if pieces[i].isdigit()), default=-1)
    return ".".join(pieces[: last + 1])


def _sub_labels(checkpoint: Checkpoint, anatomy: Anatomy) -> tuple[str, ...]:
    names = checkpoint.tensors
    found = []
    if any(_EXPERT.search(name) or ".experts." in name for name in names):
        found.append("mixture of experts")
    has_encoder = any(re.search(r"(?:^|\.)encoder\.", name) for name in names)
    has_decoder = any(re.search(r"(?:^|\.)decoder\.", name) for name in names)
    if has_encoder and has_decoder:
        found.append("encoder and decoder")
    elif has_encoder:
        found.append("encoder")
    if any(re.search(r"down_blocks\.|up_blocks\.", name) for name in names):
        found.append("diffusion U-Net")
    if any("patch_embed" in name for name in names):
        found.append("vision")
    if anatomy.names("adapter"):
        found.append("adapter")
    return tuple(found)


def attributes(checkpoint: Checkpoint, anatomy: Anatomy) -> dict[str, Value]:
    """Return the attribute table: what shapes show, else what the configuration says."""
    tensors, config = checkpoint.tensors, checkpoint.config

    def first(*roles: str) -> Tensor | None:
        return next((tensors[name] for name in anatomy.names(*roles) if len(tensors[name].shape) >= 2), None)

    embedding = max((tensors[n] for n in anatomy.names("embedding")), key=lambda t: t.size, default=None)
    position = first("position")
    hidden = _hidden(checkpoint, anatomy)
    return {
        "hidden size": hidden,
        "attention heads": _configured(config, *HEAD_KEYS),
        "key/value heads": _configured(config, *KV_HEAD_KEYS),
        "head size": _configured(config, "head_dim", "d_kv"),
        "feed-forward size": _feed_forward(first("down"), hidden),
        "vocabulary": measured(embedding.shape[0], "embedding rows") if embedding else unknown("NO_TARGET"),
        "context": measured(position.shape[-2], "position rows")
        if position is not None
        else _configured(config, "max_position_embeddings", "n_positions", "max_seq_len", "n_ctx"),
        "normalization": _normalization(checkpoint, anatomy),
        "gated feed-forward": measured(bool(anatomy.names("gate", "gate_up")), "names")
        if anatomy.names("up", "gate_up")
        else unknown("NO_TARGET"),
        "biases": measured(any(name.endswith(".bias") for name in tensors), "names"),
        "experts": _experts(tensors, config),
        "activation": _configured(
            config, "hidden_act", "activation_function", "hidden_activation", "activation"
        ),
        "dtypes": measured(", ".join(sorted({t.dtype.name for t in tensors.values()})), "headers"),
    }


def _configured(config: Mapping[str, Json], *keys: str) -> Value:
    for key in keys:
        value = config.get(key)
        if isinstance(value, (int, float, str)) and not isinstance(value, bool):
            return reported(value, "config.json")
    return unknown("NEEDS_CONFIG")


def _hidden(checkpoint: Checkpoint, anatomy: Anatomy) -> Value:
    for role, source in (("embedding", "embedding columns"), ("norm", "norm length"), ("q", "query input")):
        names = anatomy.names(role)
        if names:
            shape = checkpoint.tensors[names[0]].shape
            return measured(shape[-1], source) if shape else unknown("NO_TARGET")
    return _configured(checkpoint.config, "hidden_size", "n_embd", "d_model", "dim")


def _feed_forward(down: Tensor | None, hidden: Value) -> Value:
    """Return the other side of the down projection, which may be stored either way round."""
    if down is None or not hidden.is_known:
        return unknown("NO_TARGET")
    rows, cols = down.shape[-2:]
    return measured(rows if cols == hidden.value else cols, "down projection and hidden size")


def _normalization(checkpoint: Checkpoint, anatomy: Anatomy) -> Value:
    if any(name.endswith("running_mean") for name in checkpoint.tensors):
        return derived("BatchNorm", "running statistics are stored only by batch normalization", "names")
    norms = anatomy.names("norm")
    if not norms:
        return unknown("NO_TARGET")
    has_bias = any(name.endswith(("bias", "beta")) for name in norms)
    return derived(
        "LayerNorm" if has_bias else "RMSNorm",
        "a norm with a bias is LayerNorm, one without is RMSNorm",
        "names",
    )


def _experts(tensors: Mapping[str, Tensor], config: Mapping[str, Json]) -> Value:
    found = {int(match[1]) for name in tensors if (match := _EXPERT.search(name))}
    if found:
        return measured(len(found), "names")
    stacked = [t.shape[0] for name, t in tensors.items() if ".experts." in name and len(t.shape) == 3]
    if stacked:
        return measured(max(stacked), "shape")
    configured = _configured(config, "num_local_experts", "n_routed_experts", "num_experts")
    return configured if configured.is_known else measured(0, "names")


@fact
def differences(pair: Pair) -> tuple[Difference, ...]:
    """List structural differences: patterns first, then configuration, then depth.

    A pattern is a canonical name with its numbers as ``*``. It counts once however many blocks it is
    in; another number of blocks counts once.
    """
    a, b = structure_a(pair), structure_b(pair)
    patterns_a, patterns_b = _alike(a.patterns, b.patterns)
    found = []
    for pattern in sorted(set(patterns_a) | set(patterns_b)):
        in_a, in_b = patterns_a.get(pattern), patterns_b.get(pattern)
        if in_a is None:
            found.append(Difference(pattern, "added", "", _shapes((in_b or {}).values())))
        elif in_b is None:
            found.append(Difference(pattern, "removed", _shapes(in_a.values()), ""))
        elif not in_a.keys() & in_b.keys() or any(
            not _same_shape(in_a[place], in_b[place], pattern) for place in in_a.keys() & in_b.keys()
        ):
            found.append(Difference(pattern, "shape", _shapes(in_a.values()), _shapes(in_b.values())))
    if pair.a.config and pair.b.config:
        # GGUF files keep a part of the configuration only, so that a key that they lack tells nothing.
        is_partial = "gguf" in (pair.a.format, pair.b.format)
        for key in FUNCTION_KEYS:
            if is_partial and not (key in pair.a.config and key in pair.b.config):
                continue
            left, right = pair.a.config.get(key), pair.b.config.get(key)
            if left != right:
                found.append(Difference(key, "config", str(left), str(right)))
    if a.depth != b.depth:
        found.append(Difference("depth", "depth", str(a.depth), str(b.depth)))
    return tuple(found)


Patterns = Mapping[str, Mapping[tuple[str, ...], tuple[int, ...]]]
_TURNED = re.compile(rf"\.(?:{'|'.join(sorted(TURNABLE))})\.weight$")


def _alike(a: Patterns, b: Patterns) -> tuple[Patterns, Patterns]:
    """Leave out what is fused on one side only and has as many rows as its parts have on the other."""
    left, right = dict(a), dict(b)
    for one, other in ((left, right), (right, left)):
        for pattern in [p for p in one if p not in other]:
            for role, roles in FUSED.items():
                parts = [pattern.replace(f".{role}.", f".{part}.") for part in roles]
                if parts[0] != pattern and all(part in other and part not in one for part in parts):
                    rows = sum(_rows(other[part]) for part in parts)
                    if rows in next(iter(one[pattern].values()), ()):
                        del one[pattern]
                        for part in parts:
                            del other[part]
                        break
    return left, right


def _rows(shapes: Mapping[tuple[str, ...], tuple[int, ...]]) -> int:
    return next((shape[0] for shape in shapes.values() if shape), 0)


def _same_shape(a: tuple[int, ...], b: tuple[int, ...], pattern: str) -> bool:
    """Say whether two shapes are one: Conv1D stores a projection the other way round."""
    is_turned = len(a) == len(b) == 2 and a == b[::-1] and _TURNED.search(pattern) is not None
    return a == b or is_turned


def _shapes(shapes: Iterable[tuple[int, ...]]) -> str:
    distinct = sorted(set(shapes))
    shown = ", ".join(str(list(shape)) for shape in distinct[:3])
    return shown + (f" and {len(distinct) - 3} more" if len(distinct) > 3 else "")


def known_int(value: Value) -> int | None:
    """Return a known integer value, else None."""
    return value.value if value.is_known and isinstance(value.value, int) else None


def is_mla(name: str) -> bool:
    """Say whether a name is the compressed key/value projection of multi-head latent attention."""
    return _MLA.search(name) is not None
