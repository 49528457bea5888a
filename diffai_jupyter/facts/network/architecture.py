"""What a checkpoint is built like, from names, shapes and configuration."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from diffai_jupyter.checkpoint.anatomy import Anatomy
from diffai_jupyter.checkpoint.model import Checkpoint
from diffai_jupyter.checkpoint.names import Traits, pattern_of, role_of
from diffai_jupyter.checkpoint.pieces import FUSED, HEAD_KEYS
from diffai_jupyter.checkpoint.tensor import Tensor
from diffai_jupyter.evidence import Value
from diffai_jupyter.facts import fact
from diffai_jupyter.facts.network.attention import is_latent
from diffai_jupyter.facts.network.attributes import TOWERS, attributes, language_part
from diffai_jupyter.facts.network.behavior import behavior_differences
from diffai_jupyter.scan.fitting import TURNABLE
from diffai_jupyter.scan.pair import Pair

ATTENTION = ("q", "k", "v", "qkv")
HYBRID_CONVOLUTIONS = 0.25

_SSM = re.compile(r"(?:^|\.)(?:A_log|x_proj|dt_proj|rg_lru|ssm_(?:a|dt|x|in|out))(?:\.|$)")
_RNN = re.compile(r"weight_[ih]h_l\d+|time_decay|receptance|recurrent_kernel")
_RNN_LAYER = re.compile(r"(?P<stack>.*)weight_ih_l(?P<layer>\d+)(?:_reverse)?$")
_SHORTCUT = re.compile(r"downsample|shortcut")
_ADAPTER_END = re.compile(r"\.lora(?:\.[^.]+)?$|\.lora_\w+(?:\.\w+)*$")
_RELATIVE_ATTENTION = re.compile(r"(?:^|\.)rel_attn\.[qkv]$")
"""The projections of XLNet, which have three axes."""
_ENCODER = re.compile(r"(?:^|\.)encoder\.(?!weight$|bias$)")
DECODER = re.compile(r"(?:^|\.)decoder\.(?!weight$|bias$)")
"""Stacks of layers; a lone ``decoder.weight`` is the head of BERT or of a recurrent network."""
TEXT_ENCODER = re.compile(r"(?:^|\.)embeddings\.LayerNorm\.")
"""The norm behind the embeddings of BERT and its kin, DistilBERT included, whose blocks are in no `encoder`."""
_DIFFUSION = re.compile(r"time_text_embed|adaLN_modulation|adaln_single|(?:^|\.)(?:t_embedder|x_embedder|time_embed)\.")
_ENCODERS = re.compile(
    r"bert|roberta|electra|deberta|vit|clip|wav2vec|wavlm|hubert|mpnet|xlm|beit|dinov|swin", re.IGNORECASE
)
"""Families that read all tokens at once, by the ``model_type`` of their configuration."""
_UNET = re.compile(r"^(?:\w+\.)*?(?:down_blocks|input_blocks)\.")
_UNET_OTHER_HALF = re.compile(r"(?:up_blocks|output_blocks)\.")
_EXPERTS = re.compile(r"experts?\.\*\.|\.experts\.|_exps\.")
_VISION = re.compile(r"patch_embed|(?:^|\.)(?:vision\w*|visual|image_encoder)\.|pixel_")
_AUDIO = re.compile(r"(?:^|\.)(?:audio\w*|feature_extractor\.conv_layers)\.|^(?:model\.)?encoder\.conv1\.weight$")
_COLOR_CHANNELS = 3
DIFFUSION_UNET, DIFFUSION_TRANSFORMER = "diffusion U-Net", "diffusion transformer"


@dataclass(frozen=True, slots=True)
class Structure:
    """The build of one checkpoint.

    Parameters
    ----------
    kind : str
        ``"cnn"``, ``"rnn"``, ``"transformer"``, ``"mlp"``, ``"ssm"``, ``"hybrid"`` or ``"unknown"``.
    depth : int
        Blocks of a transformer or state-space model, weight layers of the others.
    stacks : mapping of str to int
        Blocks of the encoder and of the decoder, or of the language model and of what sees or hears, where there
        are both.
    sub_labels : tuple of str
        Further words, such as ``"mixture of experts"``.
    attributes : mapping of str to Value
        Width, vocabulary and so on, by label.
    patterns : mapping
        Canonical name with numbers as ``*`` to {numbers: shape}.
    shares : mapping of str to int
        Elements by role, tied ones once.
    """

    kind: str
    depth: int
    stacks: Mapping[str, int]
    sub_labels: tuple[str, ...]
    attributes: Mapping[str, Value]
    patterns: Mapping[str, Mapping[tuple[str, ...], tuple[int, ...]]]
    shares: Mapping[str, int]

    @property
    def is_diffusion(self) -> bool:
        """Whether it denoises images step by step, so that nothing is generated token by token."""
        return bool({DIFFUSION_UNET, DIFFUSION_TRANSFORMER} & set(self.sub_labels))


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
    tied = _tied_heads(checkpoint, anatomy)
    for name, tensor in checkpoint.tensors.items():
        part = anatomy.parts[name]
        if name in tied:
            continue
        numbers = tuple(piece for piece in part.canonical.split(".") if piece.isdigit())
        patterns.setdefault(pattern_of(part.canonical), {})[numbers] = tensor.shape
        shares[part.role] = shares.get(part.role, 0) + tensor.size
    blocks = _blocks(kind, checkpoint, anatomy)
    return Structure(
        kind,
        len(blocks) if blocks else _layers(kind, checkpoint.tensors, anatomy),
        _stacks(blocks),
        _sub_labels(checkpoint, anatomy, kind),
        attributes(checkpoint, anatomy),
        patterns,
        shares,
    )


def _tied_heads(checkpoint: Checkpoint, anatomy: Anatomy) -> frozenset[str]:
    """Return the heads that share the storage of an embedding: without them stored, the build is the same."""
    places = {checkpoint.tensors[name].place for name in anatomy.names("embedding")} - {None}
    return frozenset(name for name in anatomy.names("head") if checkpoint.tensors[name].place in places)


def _kind(checkpoint: Checkpoint, anatomy: Anatomy) -> str:
    """Apply the naming rules; the first that holds decides."""
    tensors = checkpoint.tensors
    has_attention = bool(_attention(checkpoint, anatomy))
    convolutions = _kernels(checkpoint, anatomy)
    trained = sum(tensors[name].size for name, part in anatomy.parts.items() if part.is_trained)
    if any(_SSM.search(name) for name in tensors):
        return "hybrid" if has_attention else "ssm"
    if has_attention and trained and sum(t.size for t in convolutions) > HYBRID_CONVOLUTIONS * trained:
        return "hybrid"
    if any(_RNN.search(name) for name in tensors):
        return "rnn"
    if has_attention:
        return "transformer"
    if convolutions:
        return "cnn"
    if any(len(t.shape) == 2 and min(t.shape) > 1 for t in tensors.values()):
        return "mlp"
    return "unknown"


def _attention(checkpoint: Checkpoint, anatomy: Anatomy) -> list[str]:
    """Return the names of the projections of attention layers."""
    others = (name for name in checkpoint.tensors if is_latent(name) or _RELATIVE_ATTENTION.search(name))
    adapted = (name for name in anatomy.names("adapter") if adapted_role(name) in ATTENTION)
    return [*anatomy.names(*ATTENTION), *others, *adapted]


def adapted_role(name: str) -> str:
    """Return the role of the weight that an adapter is for."""
    weight = _ADAPTER_END.sub("", name) + ".weight"
    return role_of(pattern_of(weight), Traits(2, is_integral=False, is_vocabulary=False, is_line=False, is_grid=True))


def _kernels(checkpoint: Checkpoint, anatomy: Anatomy) -> list[Tensor]:
    """Return the convolutions that look at more than one place; stacks of experts have as many axes."""
    return [
        tensor
        for name, tensor in checkpoint.tensors.items()
        if len(tensor.shape) >= 3
        and max(tensor.shape[2:]) > 1
        and anatomy.parts[name].role == "convolution"
        and ".experts." not in name
        and not _RELATIVE_ATTENTION.search(name)
    ]


def _blocks(kind: str, checkpoint: Checkpoint, anatomy: Anatomy) -> frozenset[str]:
    """Return the prefixes of the repeated blocks that hold attention or a state; empty for other networks."""
    if kind not in ("transformer", "hybrid", "ssm"):
        return frozenset()
    names = [*_attention(checkpoint, anatomy), *(name for name in checkpoint.tensors if _SSM.search(name))]
    return frozenset(_block_prefix(name) for name in names)


def _stacks(blocks: frozenset[str]) -> Mapping[str, int]:
    towers = [block for block in blocks if TOWERS.search(f"{block}.")]
    words = [block for block in blocks if block not in towers]
    if towers and words:
        return {"language": len(words), "vision or audio": len(towers)}
    sides = {"encoder": _ENCODER, "decoder": DECODER}
    counts = {side: sum(bool(pattern.search(f"{block}.")) for block in blocks) for side, pattern in sides.items()}
    return counts if all(counts.values()) else {}


def _layers(kind: str, tensors: Mapping[str, Tensor], anatomy: Anatomy) -> int:
    """Count the layers of a network without blocks: recurrent ones, else those with weights."""
    if kind == "rnn":
        found = {(match["stack"], match["layer"]) for name in tensors if (match := _RNN_LAYER.search(name))}
        kernels = sum("recurrent_kernel" in name for name in tensors)
        return len(found) or kernels or len({anatomy.parts[name].block for name in tensors} - {None})
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


def _sub_labels(checkpoint: Checkpoint, anatomy: Anatomy, kind: str) -> tuple[str, ...]:
    """Return what else names say: the parts of the network, and what it is fed with."""
    # Large models repeat few names under many numbers.
    names = {pattern_of(name) for name in checkpoint.tensors}
    words = {pattern_of(name) for name in language_part(checkpoint, anatomy)[0]}
    has_blocks = kind in ("transformer", "hybrid")
    is_text = bool(anatomy.names("embedding"))
    has_encoder, has_decoder = _any(_ENCODER, words), _any(DECODER, words)
    is_unet = _any(_UNET, names) and _any(_UNET_OTHER_HALF, names) and not has_encoder
    is_diffusion = is_unet or (kind == "transformer" and _any(_DIFFUSION, names) and not is_text)
    is_vision = _any(_VISION, names) or (kind == "cnn" and _sees_colors(checkpoint, anatomy))
    reads_at_once = (is_vision and not is_text and not is_diffusion) or is_said_to_encode(checkpoint)
    is_encoder = has_encoder or (is_text and _any(TEXT_ENCODER, words)) or reads_at_once
    found = {
        "mixture of experts": _any(_EXPERTS, names),
        "encoder and decoder": has_encoder and has_decoder,
        "encoder": has_blocks and is_encoder and not has_decoder,
        "decoder": has_blocks and not has_encoder and (has_decoder or (is_text and not is_encoder)),
        DIFFUSION_UNET: is_unet,
        DIFFUSION_TRANSFORMER: is_diffusion and not is_unet,
        "text": is_text,
        "vision": is_vision,
        "audio": _any(_AUDIO, names),
        "adapter": bool(anatomy.names("adapter")),
    }
    return tuple(label for label, holds in found.items() if holds)


def _any(pattern: re.Pattern[str], names: Iterable[str]) -> bool:
    return any(pattern.search(name) for name in names)


def is_said_to_encode(checkpoint: Checkpoint) -> bool:
    """Say whether the configuration names a family of encoders."""
    kind = checkpoint.config.get("model_type")
    is_family = isinstance(kind, str) and _ENCODERS.search(kind) is not None and "decoder" not in kind
    return is_family and checkpoint.config.get("is_decoder") is not True


def _sees_colors(checkpoint: Checkpoint, anatomy: Anatomy) -> bool:
    """Say whether a convolution over two axes takes three channels: the colors of an image."""
    flat = [tensor for tensor in _kernels(checkpoint, anatomy) if len(tensor.shape) == 4]
    return any(tensor.shape[1] == _COLOR_CHANNELS for tensor in flat)


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
    # GGUF files keep a part of the configuration only, so that a key that they lack tells nothing.
    is_partial = "gguf" in (pair.a.format, pair.b.format)
    is_reshaped = any(set(d.what.split(".")) & set(ATTENTION) for d in found)
    for attribute in behavior_differences(pair.a.config, pair.b.config, is_partial):
        # Where attention has other shapes, other heads are no difference of their own.
        if not (is_reshaped and attribute.key in HEAD_KEYS):
            found.append(Difference(attribute.key, "config", attribute.a, attribute.b))
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
