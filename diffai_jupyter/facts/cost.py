"""What a checkpoint costs in memory, from headers and configuration."""

from __future__ import annotations

import re
from dataclasses import dataclass

from diffai_jupyter.checkpoint.anatomy import Anatomy
from diffai_jupyter.checkpoint.model import Checkpoint
from diffai_jupyter.checkpoint.tensor import Tensor
from diffai_jupyter.evidence import Unknowable
from diffai_jupyter.facts import fact
from diffai_jupyter.facts.architecture import Structure, is_mla, known_int, structure_a, structure_b
from diffai_jupyter.scan.pair import Pair

TOKENS = 2048
CACHE_BYTES = 2
ACTIVATION_BYTES = 2
ADAM_BYTES = 16

_ENCODER_ONLY = re.compile(
    r"bert|roberta|electra|deberta|vit|clip|wav2vec|distilbert|mpnet|xlm", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory of one checkpoint in use, in bytes.

    Parameters
    ----------
    weights : int
        Stored payload.
    cache_per_token : int
        Key/value cache of one token and one sequence, all layers, at two bytes a number; 0 without a cache.
    window : int, optional
        Sliding window that holds for all layers, in tokens.
    state : int
        Recurrent state of one sequence, at two bytes a number.
    hidden, inner, vocabulary : int
        Widths that activations follow from; 0 where unknown.
    context : int, optional
        Longest context.
    layers : int
        Attention layers or blocks.
    is_transformer : bool
        Whether the formulas for transformers apply.
    parameters : int
        Trained elements.
    """

    weights: int
    cache_per_token: int
    window: int | None
    state: int
    hidden: int
    inner: int
    vocabulary: int
    context: int | None
    layers: int
    is_transformer: bool
    parameters: int

    def cache(self, tokens: int, batch: int = 1) -> int:
        """Return the key/value cache and recurrent state after `tokens` tokens, in bytes."""
        kept = min(tokens, self.window) if self.window else tokens
        return batch * (self.cache_per_token * kept + self.state)

    def activations(self, tokens: int, batch: int = 1) -> int:
        """Return the activations of one layer and the logits of the last token, in bytes."""
        layer = batch * tokens * ACTIVATION_BYTES * (4 * self.hidden + 2 * self.inner)
        return layer + 4 * batch * self.vocabulary

    def tokens(self, asked: int = TOKENS) -> int:
        """Return `asked` tokens, or the longest context where that is shorter."""
        return min(asked, self.context) if self.context else asked


_ENCODER = re.compile(r"(?:^|\.)encoder\.")
"""The encoder of an encoder-decoder, which runs once and keeps nothing of its own."""


@fact
def memory_a(pair: Pair) -> Memory:
    """Return the memory of A."""
    return memory(pair.a, pair.anatomy_a, structure_a(pair))


@fact
def memory_b(pair: Pair) -> Memory:
    """Return the memory of B."""
    return memory(pair.b, pair.anatomy_b, structure_b(pair))


def memory(checkpoint: Checkpoint, anatomy: Anatomy, structure: Structure) -> Memory:
    """Add up what a checkpoint needs. Reads no tensor."""
    attributes = structure.attributes
    window = checkpoint.config.get("sliding_window")
    kinds = checkpoint.config.get("layer_types")
    slides = isinstance(window, int) and (
        not isinstance(kinds, list) or set(map(str, kinds)) == {"sliding_attention"}
    )
    uses_window = slides and checkpoint.config.get("use_sliding_window", True) is not False
    cached = 0 if _is_encoder_only(checkpoint, anatomy) else _cached_numbers(checkpoint, anatomy)
    return Memory(
        weights=checkpoint.nbytes,
        cache_per_token=CACHE_BYTES * cached,
        window=window if uses_window and isinstance(window, int) else None,
        state=CACHE_BYTES * _state_numbers(checkpoint),
        hidden=known_int(attributes["hidden size"]) or 0,
        inner=known_int(attributes["feed-forward size"]) or 0,
        vocabulary=known_int(attributes["vocabulary"]) or 0,
        context=known_int(attributes["context"]),
        layers=structure.depth,
        is_transformer=structure.kind in ("transformer", "ssm", "hybrid")
        and attributes["hidden size"].is_known,
        parameters=sum(
            t.size
            for name, t in checkpoint.tensors.items()
            if anatomy.parts[name].is_trained and t.dtype.kind in ("float", "complex")
        ),
    )


def parameters_per_byte(checkpoint: Checkpoint, anatomy: Anatomy) -> float:
    """Return elements per stored byte.

    Raises
    ------
    Unknowable
        ``NOT_DEQUANTIZABLE`` when packed codes hide how many elements there are; ``NO_TARGET``
        when nothing is stored.
    """
    packed = {*anatomy.names("quantized")}
    packed |= {name for name, tensor in checkpoint.tensors.items() if tensor.dtype.packing and tensor.dtype.opaque}
    if packed:
        raise Unknowable("NOT_DEQUANTIZABLE", packed=len(packed))
    if not checkpoint.nbytes:
        raise Unknowable("NO_TARGET")
    return checkpoint.size / checkpoint.nbytes


def _is_encoder_only(checkpoint: Checkpoint, anatomy: Anatomy) -> bool:
    """Say whether nothing is generated token by token, so that no cache is kept."""
    if any(re.search(r"(?:^|\.)decoder\.", name) for name in checkpoint.tensors):
        return False
    kind = checkpoint.config.get("model_type")
    if isinstance(kind, str) and kind:
        return _ENCODER_ONLY.search(kind) is not None
    if any("patch_embed" in name for name in checkpoint.tensors) and not anatomy.names("embedding"):
        return True
    return any(re.search(r"(?:^|\.)encoder\.layers?\.\d+\.", name) for name in checkpoint.tensors)


def _cached_numbers(checkpoint: Checkpoint, anatomy: Anatomy) -> int:
    """Count the numbers that one token leaves in the cache, exactly from shapes."""
    tensors = checkpoint.tensors
    latent = [t.shape[0] for name, t in tensors.items() if is_mla(name) and len(t.shape) == 2]
    if latent:
        return sum(latent)
    total = sum(
        _out_size(tensors[name], 1)
        for name in anatomy.names("k", "v")
        if len(tensors[name].shape) == 2 and not _ENCODER.search(name)
    )
    outputs = {
        anatomy.parts[name].block: tensors[name]
        for name in anatomy.names("o")
        if len(tensors[name].shape) == 2
    }
    for name in anatomy.names("qkv"):
        tensor = tensors[name]
        if len(tensor.shape) != 2 or _ENCODER.search(name):
            continue
        rows = _out_size(tensor, 3)
        output = outputs.get(anatomy.parts[name].block)
        queries = rows // 3 if output is None else _in_size(output, rows)
        total += rows - queries
    return total


def _out_size(tensor: Tensor, times: int) -> int:
    """Return the output width of a projection; a fused one may be stored input by output."""
    first, second = tensor.shape
    return second if times == 3 and second == 3 * first else first


def _in_size(output: Tensor, rows: int) -> int:
    """Return the input width of the output projection: the width of all queries."""
    return output.shape[0] if output.shape[1] >= rows else output.shape[1]


def _state_numbers(checkpoint: Checkpoint) -> int:
    """Count the numbers of recurrent state: state-space states with their convolution, RNN hidden vectors."""
    total = 0
    for name, tensor in checkpoint.tensors.items():
        if name.endswith("A_log"):
            total += tensor.size
        elif re.search(r"mixer\.conv1d\.weight$|mamba\.conv1d\.weight$", name) and len(tensor.shape) == 3:
            total += tensor.shape[0] * (tensor.shape[2] - 1)
        elif re.search(r"weight_hh_l\d+(_reverse)?$", name) and len(tensor.shape) == 2:
            total += _recurrent_numbers(*tensor.shape)
    return total


def _recurrent_numbers(rows: int, hidden: int) -> int:
    """Return what one recurrent layer keeps: its output, and the cell where four gates say LSTM."""
    return hidden if rows in (hidden, 3 * hidden) else hidden + rows // 4
