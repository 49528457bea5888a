"""The part of a configuration that is about one attention layer."""

from __future__ import annotations

import re
from collections.abc import Mapping

from diffai_jupyter.checkpoint.model import Json
from diffai_jupyter.checkpoint.pieces import HEAD_KEYS
from diffai_jupyter.facts.network.behavior import language_config

Config = Mapping[str, Json]

_SENSES = (
    ("vision", re.compile(r"(?:^|[./])(?:vision\w*|visual|image_encoder|vpm|v\.blk)\.")),
    ("audio", re.compile(r"(?:^|[./])(?:audio\w*|speech\w*|a\.blk)\.")),
)
_SIDES = ("encoder", "decoder")
_SIDE_KEYS = (
    "{side}_attention_heads", "{side}_num_attention_heads", "num_{side}_attention_heads", "{side}_self_attention_heads",
)  # fmt: skip
_SUFFIX = "_config"
_LEAST_STEM = 3


def layer_config(path: str, config: Config) -> Config:
    """Return what a configuration says of one attention layer, its head count under the first of the usual keys.

    Networks of several parts keep a configuration for each: the part is found by the stored path. A part that the
    configuration says nothing of gets an empty one, never that of another part.

    Parameters
    ----------
    path : str
        Stored path of the layer.
    config : mapping
        Configuration of the checkpoint.

    Examples
    --------
    >>> config = {"text_config": {"num_attention_heads": 8}, "vision_config": {"num_attention_heads": 4}}
    >>> layer_config("vision_tower.layers.0.attn", config)["num_attention_heads"]
    4
    >>> bart = {"encoder_attention_heads": 4, "decoder_attention_heads": 8}
    >>> layer_config("model.decoder.layers.0.self_attn", bart)["num_attention_heads"]
    8
    """
    sense = next((name for name, pattern in _SENSES if pattern.search(path)), "")
    found = config
    while (inner := _part(path, sense, found)) is not None:
        found = inner if sense else {**_without_parts(found), **inner}
    words = language_config(found)
    if words is not found:
        found = {} if sense else words
    side = next((side for side in _SIDES if f".{side}." in f".{path}."), "")
    heads = _of_side(side, found) if side else _of_unet(path, found)
    return found if heads is None else {**found, HEAD_KEYS[0]: heads}


def _of_side(side: str, config: Config) -> Json:
    """Return the head count of the encoder or the decoder."""
    return next((config[key] for shape in _SIDE_KEYS if (key := shape.format(side=side)) in config), None)


def _without_parts(config: Config) -> Config:
    return {key: value for key, value in config.items() if not isinstance(value, dict)}


def _part(path: str, sense: str, config: Config) -> Config | None:
    """Return the part of a configuration that a path names."""
    pieces = re.split(r"[./]", path)
    for key, value in config.items():
        if not isinstance(value, dict):
            continue
        stem = key.removesuffix(_SUFFIX)
        if key in _SIDES:
            is_named = key in pieces
        elif stem == key or len(stem) < _LEAST_STEM:
            continue
        else:
            is_named = stem == sense or any(piece.startswith(stem) for piece in pieces)
        if is_named:
            return value
    return None


def _of_unet(path: str, config: Config) -> Json:
    """Return the head count of a layer of a diffusers U-Net, which its configuration calls the size of a head."""
    if not str(config.get("_class_name", "")).startswith("UNet") or config.get(HEAD_KEYS[0]) is not None:
        return None
    counts = config.get("attention_head_dim")
    if not isinstance(counts, list):
        return counts
    stage = re.search(r"(down|up)_blocks\.(\d+)\.", path)
    if not counts or stage is None:
        return counts[-1] if counts else None
    index = int(stage[2])
    order = counts if stage[1] == "down" else counts[::-1]
    return order[index] if index < len(order) else None
