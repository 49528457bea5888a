"""What a checkpoint takes in memory, from headers and configuration."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from diffai_jupyter.checkpoint.anatomy import Anatomy
from diffai_jupyter.checkpoint.model import Checkpoint, Json
from diffai_jupyter.checkpoint.quantized import Merged, Product
from diffai_jupyter.checkpoint.tensor import Tensor
from diffai_jupyter.evidence import Unknowable, Value, derived, estimated
from diffai_jupyter.facts import fact
from diffai_jupyter.facts.network.architecture import (
    DECODER,
    TEXT_ENCODER,
    Structure,
    is_said_to_encode,
    known_int,
    structure_a,
    structure_b,
)
from diffai_jupyter.facts.network.attention import attention_widths, window_of
from diffai_jupyter.facts.network.attributes import language_part
from diffai_jupyter.facts.network.behavior import language_config
from diffai_jupyter.hardware import Deployment
from diffai_jupyter.scan.pair import Pair

TOKENS = 2048
CACHE_BYTES = 2
ACTIVATION_BYTES = 2
ADAM_BYTES = 16
RULE_OF_THUMB = 1.2
THUMB_CONFIDENCE = 0.6
MIB = 1 << 20

_ENCODER_LAYERS = re.compile(r"(?:^|\.)encoder\.layers?\.\d+\.")
_ENCODER = re.compile(r"(?:^|\.)(?:encoder|enc|visual|vision\w*|image_encoder|audio_tower)\.")
"""What runs once and keeps nothing of its own: the encoder of an encoder-decoder, of images or of sound."""
_CROSS = re.compile(r"EncDecAttention|encoder_attn|cross_?att|multihead_attn")
_STATE_KEYS = ("state_size", "ssm_state_size", "mamba_d_state", "d_state")
_DECAY = re.compile(r"(?P<module>.*\.)(?P<kind>A_log|ssm_a)$")
_SHORT_CONVOLUTION = re.compile(r"\.conv\.conv\.weight$")


@dataclass(frozen=True, slots=True)
class CachedLayer:
    """What one attention layer keeps of every token.

    Parameters
    ----------
    name : str
        Stored name of the layer.
    numbers : int
        Numbers of one key and its value, all heads.
    every_head : int
        What they would be with a key and a value for each query head.
    window : int, optional
        Tokens that are kept at most.
    is_cross : bool
        Whether the tokens are those of the encoder.
    """

    name: str
    numbers: int
    every_head: int
    window: int | None = None
    is_cross: bool = False


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory of one checkpoint, in bytes where nothing else is said.

    Parameters
    ----------
    weights : int
        Stored payload.
    cached : tuple of CachedLayer
        Attention layers that keep keys and values.
    state : int, optional
        Numbers of recurrent state of one sequence; None where neither shapes nor configuration tell.
    hidden, inner, vocabulary : int
        Widths that activations follow from; 0 where unknown.
    heads : int, optional
        Attention heads of a layer.
    context : int, optional
        Longest context, in tokens.
    source : int, optional
        Tokens that an encoder always reads, where the network fixes them.
    blocks : int
        Repeated blocks.
    is_transformer : bool
        Whether the formulas for transformers apply.
    parameters : int
        Trained elements.
    """

    weights: int
    cached: tuple[CachedLayer, ...]
    state: int | None
    hidden: int
    inner: int
    vocabulary: int
    heads: int | None
    context: int | None
    source: int | None
    blocks: int
    is_transformer: bool
    parameters: int

    @property
    def cache_per_token(self) -> int:
        """Bytes that one more token takes in the cache before any window is full; the encoder's tokens not counted."""
        return CACHE_BYTES * sum(layer.numbers for layer in self.cached if not layer.is_cross)

    def cache(self, tokens: int, batch: int = 1) -> int:
        """Return the bytes of keys, values and recurrent state after `tokens` tokens, at two bytes a number.

        An encoder is taken to have read as many tokens, unless the network fixes their number.
        """
        numbers = self.state or 0
        for layer in self.cached:
            seen = (self.source or tokens) if layer.is_cross else tokens
            numbers += layer.numbers * (min(seen, layer.window) if layer.window else seen)
        return batch * CACHE_BYTES * numbers

    def saved_by_sharing(self, tokens: int, batch: int = 1) -> int:
        """Return the bytes that the cache is smaller as heads share keys and values, or keep a latent vector."""
        saved = 0
        for layer in self.cached:
            seen = (self.source or tokens) if layer.is_cross else tokens
            saved += (layer.every_head - layer.numbers) * (min(seen, layer.window) if layer.window else seen)
        return batch * CACHE_BYTES * saved

    def activations(self, tokens: int, batch: int = 1) -> int:
        """Return the bytes of the activations of one layer and of the logits of the last token."""
        layer = batch * tokens * ACTIVATION_BYTES * (4 * self.hidden + 2 * self.inner)
        return layer + 4 * batch * self.vocabulary

    def training_activations(self, tokens: int, batch: int = 1) -> float | None:
        """Return the bytes of activations that training keeps, s b h L (34 + 5 a s / h); None without heads.

        Nothing is recomputed and nothing is split over devices. Source: Korthikanti et al. 2023, equation 2.
        """
        if not (self.heads and self.hidden and self.is_transformer):
            return None
        return self.blocks * tokens * batch * (34 * self.hidden + 5 * self.heads * tokens)

    def tokens(self, asked: int | None = None) -> int:
        """Return the tokens that were asked for; else 2,048, or the longest context where that is shorter."""
        if asked is not None:
            return asked
        return min(TOKENS, self.context) if self.context else TOKENS


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
    state = _state_numbers(checkpoint)
    source = language_config(checkpoint.config).get("max_source_positions")
    return Memory(
        weights=checkpoint.nbytes,
        cached=_cached_layers(checkpoint, anatomy, structure),
        state=state,
        hidden=known_int(attributes["hidden size"]) or 0,
        inner=known_int(attributes["feed-forward size"]) or 0,
        vocabulary=known_int(attributes["vocabulary"]) or 0,
        heads=known_int(attributes["attention heads"]),
        context=known_int(attributes["context"]),
        source=source if isinstance(source, int) and source > 0 else None,
        blocks=structure.depth,
        is_transformer=structure.kind in ("transformer", "ssm", "hybrid")
        and attributes["hidden size"].is_known
        and state is not None,
        parameters=sum(
            stored_elements(t)
            for name, t in checkpoint.tensors.items()
            if name not in checkpoint.repeated
            and anatomy.parts[name].is_trained
            and t.dtype.kind in ("float", "complex")
        ),
    )


def in_use(memory: Memory, deployment: Deployment) -> Value:
    """Return the memory that a model takes when it runs, in units of 2^20 bytes.

    Weights, cache and activations of a transformer; 1.2 times the weights of anything else.
    """
    if not memory.is_transformer:
        return estimated(
            RULE_OF_THUMB * memory.weights / MIB,
            THUMB_CONFIDENCE,
            "1.2 times the weights",
            assumption="not a transformer whose widths are known",
        )
    tokens, batch = memory.tokens(deployment.context), deployment.batch
    total = memory.weights + memory.cache(tokens, batch) + memory.activations(tokens, batch)
    return derived(
        total / MIB,
        f"{tokens} tokens, batch {batch}, 16-bit cache and activations",
        "weights + cache + activations",
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
    stored = (t for name, t in checkpoint.tensors.items() if name not in checkpoint.repeated)
    return sum(map(stored_elements, stored)) / checkpoint.nbytes


def stored_elements(tensor: Tensor) -> int:
    """Return the elements that are stored: of an adapter those of its factors, not those of their product."""
    if isinstance(tensor, Product):
        return tensor.up.size + tensor.down.size
    if isinstance(tensor, Merged):
        return tensor.base.size + stored_elements(tensor.update)
    return tensor.size


def is_encoder_only(checkpoint: Checkpoint, anatomy: Anatomy) -> bool:
    """Say whether nothing is generated token by token, so that no cache is kept."""
    names = language_part(checkpoint, anatomy)[0]
    if any(DECODER.search(name) for name in names):
        return False
    if is_said_to_encode(checkpoint):
        return True
    if isinstance(checkpoint.config.get("model_type"), str):
        return False
    if any("patch_embed" in name for name in names) and not anatomy.names("embedding"):
        return True
    return any(TEXT_ENCODER.search(name) or _ENCODER_LAYERS.search(name) for name in names)


def _cached_layers(checkpoint: Checkpoint, anatomy: Anatomy, structure: Structure) -> tuple[CachedLayer, ...]:
    """Return what every attention layer keeps of a token, exactly from the shapes of its projections."""
    if structure.is_diffusion or is_encoder_only(checkpoint, anatomy):
        return ()
    config = language_config(checkpoint.config)
    found = []
    for layer in attention_widths(checkpoint.tensors, anatomy, config):
        if _ENCODER.search(layer.path) and not _CROSS.search(layer.path):
            continue
        is_cross = _CROSS.search(layer.path) is not None
        window = None if is_cross else window_of(config, layer.block)
        found.append(CachedLayer(layer.path, layer.cached, max(layer.scored, layer.cached), window, is_cross))
    return tuple(found)


def _state_numbers(checkpoint: Checkpoint) -> int | None:
    """Count the numbers of recurrent state of one sequence; None where they do not follow from what is there.

    State-space models keep their state and the inputs of a short convolution, as wide as its kernel; recurrent
    networks their hidden vectors.
    """
    total = 0
    config = language_config(checkpoint.config)
    for name, tensor in checkpoint.tensors.items():
        if match := _DECAY.fullmatch(name):
            numbers = _scan_numbers(tensor, match["module"], checkpoint.tensors, config)
            if numbers is None:
                return None
            total += numbers
        elif _SHORT_CONVOLUTION.search(name) and len(tensor.shape) == 3:
            total += tensor.size
        elif re.search(r"weight_hh_l\d+(_reverse)?$", name) and len(tensor.shape) == 2:
            total += _recurrent_numbers(*tensor.shape)
        elif re.search(r"\.time_mix_key$", name):
            total += tensor.size
        elif re.search(r"\.time_decay$", name):
            if len(tensor.shape) != 1:
                return None
            total += 3 * tensor.size
    return total


def _scan_numbers(
    decay: Tensor, module: str, tensors: Mapping[str, Tensor], config: Mapping[str, Json]
) -> int | None:
    """Return the state of one state-space layer: channels times states, and what its convolution looks back on."""
    convolution = tensors.get(f"{module}conv1d.weight") or tensors.get(f"{module}ssm_conv1d.weight")
    behind = convolution.size if convolution is not None else 0
    if len(decay.shape) == 2 and min(decay.shape) > 1:
        return decay.size + behind
    # Decays of heads: what a head keeps is not in their shape.
    keys, values = config.get("linear_key_head_dim"), config.get("linear_value_head_dim")
    if isinstance(keys, int) and isinstance(values, int):
        return decay.size * keys * values + behind
    output = tensors.get(f"{module}out_proj.weight") or tensors.get(f"{module}ssm_out.weight")
    states = next((config[key] for key in _STATE_KEYS if isinstance(config.get(key), int)), None)
    if output is None or not isinstance(states, int) or len(output.shape) != 2:
        return None
    return output.shape[1] * states + behind


def _recurrent_numbers(rows: int, hidden: int) -> int:
    """Return what one recurrent layer keeps: its output, and the cell where four gates say LSTM."""
    return hidden if rows in (hidden, 3 * hidden) else hidden + rows // 4
