"""Adapters: factors become the update that they stand for.

LoRA (Hu et al. 2022) is ``scale * B @ A``, with ``scale = alpha / rank``, or ``alpha / sqrt(rank)`` where it is
rank-stabilized (Kalajdzievski 2023). The factors are defined up to an invertible matrix between them, so that only
their product is compared. Other kinds are recognised and kept whole: their update needs the base weight, or is no
product of two matrices.

References
----------
Names and scales: peft 0.21 (``save_and_load.py``, ``tuners/lora/layer.py``); kohya sd-scripts (``networks/lora.py``);
LyCORIS (``modules/``); diffusers (``loaders/lora_conversion_utils.py``).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

from diffai_jupyter.checkpoint.dtypes import quantized
from diffai_jupyter.checkpoint.quantized import Product, Undecoded
from diffai_jupyter.checkpoint.tensor import Tensor
from diffai_jupyter.checkpoint.views import Transposed
from diffai_jupyter.readers.layouts.module import Hints, Module, is_whole

_UP, _DOWN, _MID, _ALPHA = "up", "down", "mid", "alpha"
_EMBEDDING_UP, _EMBEDDING_DOWN = "embedding up", "embedding down"

_MARKS = ("lora", "hada_", "lokr_", "ia3_l", "dora_scale", ".alpha")
_NAME = re.compile(
    r"""(?P<module>.+?)(?:
        \.lora_(?P<letter>[AB])(?:\.(?P<letter_adapter>[^.]+))?\.weight
      | \.lora_embedding_(?P<embedding>[AB])(?:\.(?P<embedding_adapter>[^.]+))?
      | [._]lora(?:_linear_layer)?[._](?P<word>down|up|mid)\.weight
      | \.(?P<alpha>alpha)
      | \.(?P<other>lora_magnitude_vector|dora_scale|hada_[a-z0-9_]+|lokr_[a-z0-9_]+|ia3_l)
        (?:\.(?!weight$)(?P<other_adapter>[^.]+))?(?:\.weight)?
      | \.lora_(?P<adalora>[ABE])(?:\.(?!weight$|bias$)(?P<adalora_adapter>[^.]+))?
    )""",
    re.VERBOSE,
)
_DEFAULT = "default"
_LONGEST = 1000
_NOT_DECODED = {
    "lora_magnitude_vector": ("dora", "DoRA: the update depends on the norms of the base weight"),
    "dora_scale": ("dora", "DoRA: the update depends on the norms of the base weight"),
    "hada_": ("loha", "LoHa: an elementwise product of two low-rank matrices, which is not decoded"),
    "lokr_": ("lokr", "LoKr: a Kronecker product, which is not decoded"),
    "ia3_": ("ia3", "IA3: factors that the base weight is multiplied with"),
    "lora_E": ("adalora", "AdaLoRA: a product of three factors, which is not decoded"),
    _MID: ("lora_cp", "LoRA with a third factor (CP decomposition), which is not decoded"),
}
_PEFT_PREFIX = "base_model.model."
# Those who load these files take alpha = rank where none is stored.
_DIFFUSERS = re.compile(r"(?P<component>unet|transformer(?:_2)?|prior|text_encoder(?:_\d)?|diffusion_model)\.")
_DIFFUSERS_METADATA = "lora_adapter_metadata"
_PLAIN_PATTERN = re.compile(r"(?P<start>\^?)(?P<name>[\w.-]+)\$?")


@dataclass(slots=True)
class _Stored:
    """The stored tensors of one adapted module.

    Parameters
    ----------
    module : str
        The module as stored, such as ``"base_model.model.layers.0.q_proj"``.
    adapter : str
        Which of several adapters; empty for the only one and for ``default``.
    names : dict of str to str
        Stored names by what they are: ``"up"``, ``"down"``, ``"alpha"``, or their own word.
    is_lettered : bool
        Whether the factors are called A and B, as PEFT does, not up and down.
    """

    module: str
    adapter: str
    names: dict[str, str] = field(default_factory=dict)
    is_lettered: bool = False

    @property
    def name(self) -> str:
        """What the update is called; no weight has such a name."""
        return f"{self.module}.lora.{self.adapter}" if self.adapter else f"{self.module}.lora"


def modules(tensors: Mapping[str, Tensor], hints: Hints) -> Iterator[Module]:
    """Yield one update for each adapted module, under the name of the module with ``.lora`` behind it."""
    configs = _configs(hints)
    for stored in _adapted(tensors):
        members = {what: tensors[name] for what, name in stored.names.items()}
        found = _undecoded(members) or _product(stored, members, configs)
        if found is not None:
            yield Module(stored.name, found, found.parts)


def _undecoded(members: Mapping[str, Tensor]) -> Undecoded | None:
    for mark, (name, reason) in _NOT_DECODED.items():
        if any(what.startswith(mark) for what in members):
            return _kept(members, name, reason)
    return None


def _kept(members: Mapping[str, Tensor], name: str, reason: str) -> Undecoded:
    payload = tuple(members[what] for what in sorted(members))
    return Undecoded(payload, quantized(name, "", payload[0].dtype.bits, reason))


def _product(
    stored: _Stored, members: Mapping[str, Tensor], configs: Mapping[str, _Config]
) -> Product | Undecoded | None:
    up, down = members.get(_UP, members.get("lora_B")), members.get(_DOWN, members.get("lora_A"))
    if _EMBEDDING_UP in members and _EMBEDDING_DOWN in members:
        # A is (rank, entries) and B is (width, rank): the update of the table is the product transposed.
        up, down = Transposed(members[_EMBEDDING_UP]), Transposed(members[_EMBEDDING_DOWN])
    if up is None or down is None or not all(map(_is_written_out, members.values())):
        return None
    config = configs.get("") or configs.get(stored.module.partition(".")[0], _NO_CONFIG)
    if reason := _why_no_product(up, down, members.get(_ALPHA)) or _why_other_rank(stored.module, down, config):
        return _kept(members, "lora", f"LoRA: {reason}")
    if _ALPHA in members:
        return Product(up, down, 1 / down.grid[0], members[_ALPHA])
    factor, is_stated = _factor(stored, down.grid[0], config)
    return Product(up, down, factor, is_stated=is_stated)


def _is_written_out(tensor: Tensor) -> bool:
    """Say whether every element is stored, so that sizes are bounded by that of the file."""
    return tensor.nbytes >= tensor.dtype.nbytes(tensor.size)


def _why_no_product(up: Tensor, down: Tensor, alpha: Tensor | None) -> str:
    """Return why two factors cannot be multiplied; an empty string when they can."""
    if min(len(up.shape), len(down.shape)) < 2 or up.grid[1] != down.grid[0] or not down.grid[0]:
        return f"factors of shapes {list(up.shape)} and {list(down.shape)} are no product"
    for factor in (up, down):
        if factor.dtype.layout is None:
            return f"factors of dtype {factor.dtype.name} are no numbers to multiply"
    if alpha is not None and (alpha.size != 1 or alpha.dtype.kind not in ("float", "integer")):
        return f"alpha of shape {list(alpha.shape)} is no number"
    return ""


def _adapted(names: Iterable[str]) -> list[_Stored]:
    """Sort the stored names of adapters by module; names that are none are passed over."""
    found: dict[tuple[str, str], _Stored] = {}
    for name in names:
        if len(name) > _LONGEST or not any(mark in name for mark in _MARKS):
            continue
        match = _NAME.fullmatch(name)
        if match is None:
            continue
        what, adapter = _what(match)
        key = match["module"], "" if adapter == _DEFAULT else adapter
        stored = found.setdefault(key, _Stored(*key))
        # Of a plain name and one of the adapter "default", the first has the place.
        stored.names.setdefault(what, name)
        stored.is_lettered = stored.is_lettered or (what != _ALPHA and match["word"] is None)
    return list(found.values())


def _what(match: re.Match[str]) -> tuple[str, str]:
    """Return what a stored tensor is, and of which adapter."""
    if match["letter"]:
        return (_UP if match["letter"] == "B" else _DOWN), match["letter_adapter"] or ""
    if match["embedding"]:
        return (_EMBEDDING_UP if match["embedding"] == "A" else _EMBEDDING_DOWN), match["embedding_adapter"] or ""
    if match["adalora"]:
        return f"lora_{match['adalora']}", match["adalora_adapter"] or ""
    if match["other"]:
        return match["other"], match["other_adapter"] or ""
    return match["word"] or _ALPHA, ""


def _configs(hints: Hints) -> Mapping[str, _Config]:
    """Return adapter configurations by the component that they are for; by an empty name where they are for all."""
    config = hints.config.get("adapter_config")
    if isinstance(config, dict):
        return {"": _Config.read(config)} if config else {}
    try:
        found = json.loads(hints.metadata.get(_DIFFUSERS_METADATA, "{}"))
    except (ValueError, RecursionError):
        return {}
    configs: dict[str, dict[str, Any]] = {}
    for key, value in found.items() if isinstance(found, dict) else ():
        component, _, name = key.partition(".")
        configs.setdefault(component, {})[name] = value
    return {component: _Config.read(config) for component, config in configs.items()}


def _why_other_rank(module: str, down: Tensor, config: _Config) -> str:
    """Return what to say where the configuration states another rank: the factors of experts are stacked so."""
    rank, is_sure = config.rank.of(module)
    if not is_sure or not is_whole(rank) or rank == down.grid[0]:
        return ""
    return f"rank {down.grid[0]} where the configuration says {rank}, as where several experts are stacked"


def _factor(stored: _Stored, rank: int, config: _Config) -> tuple[float, bool]:
    """Return what the product is multiplied with, and whether anything says so."""
    if not stored.is_lettered or (config is _NO_CONFIG and _DIFFUSERS.match(stored.module)):
        return 1.0, True
    alpha, is_sure = config.alpha.of(stored.module)
    if not is_sure or isinstance(alpha, bool) or not isinstance(alpha, (int, float)):
        return 1.0, False
    try:
        factor = alpha / (math.sqrt(rank) if config.is_stabilized else rank)
    except OverflowError:
        return 1.0, False
    return (factor, True) if math.isfinite(factor) else (1.0, False)


@dataclass(frozen=True, slots=True)
class _Config:
    """What the configuration of an adapter says of scales."""

    rank: Setting
    alpha: Setting
    is_stabilized: bool

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> _Config:
        rank = Setting.read(config, "r", "rank_pattern")
        return cls(rank, Setting.read(config, "lora_alpha", "alpha_pattern"), config.get("use_rslora") is True)


@dataclass(frozen=True, slots=True)
class Setting:
    """A number in the configuration of an adapter, and the modules that have another one.

    PEFT reads a pattern as a regular expression for the end of a module's name. A file must not make us run its
    expressions, so that a pattern which is no plain name leaves those after it undecided.

    Parameters
    ----------
    default : object
        What holds for all other modules.
    names, ends : dict
        Place in the configuration and value, by name of a module and by end of a name.
    is_decided : bool
        Whether all patterns are plain names.
    """

    default: Any
    names: Mapping[str, tuple[int, Any]]
    ends: Mapping[str, tuple[int, Any]]
    is_decided: bool

    @classmethod
    def read(cls, config: Mapping[str, Any], key: str, patterns: str) -> Setting:
        """Take a setting out of a configuration."""
        names: dict[str, tuple[int, Any]] = {}
        ends: dict[str, tuple[int, Any]] = {}
        own = config.get(patterns)
        for i, (pattern, value) in enumerate(own.items() if isinstance(own, dict) else ()):
            plain = _PLAIN_PATTERN.fullmatch(pattern.replace("\\.", "."))
            if plain is None:
                return cls(config.get(key), names, ends, False)
            (names if plain["start"] else ends).setdefault(plain["name"], (i, value))
        return cls(config.get(key), names, ends, True)

    def of(self, module: str) -> tuple[Any, bool]:
        """Return the value for a module as stored, and whether it is certain."""
        name = module.removeprefix(_PEFT_PREFIX)
        found = [self.names[name]] if name in self.names else []
        while self.ends and name:
            if name in self.ends:
                found.append(self.ends[name])
            name = name.partition(".")[2]
        if found:
            return min(found, key=itemgetter(0))[1], True
        return (self.default, True) if self.is_decided else (None, False)


_NO_CONFIG = _Config.read({})
