"""Who is who in a checkpoint: canonical names, roles and places, from headers and configuration only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from diffai_jupyter.checkpoint.model import Checkpoint
from diffai_jupyter.checkpoint.names import Traits, bare_name, block_of, canonical_name, pattern_of, role_of
from diffai_jupyter.checkpoint.tensor import Tensor


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


Known = dict[tuple[object, ...], Part]


def anatomy(checkpoint: Checkpoint, known: Known | None = None) -> Anatomy:
    """Name every tensor of a checkpoint. Reads no tensor.

    Parameters
    ----------
    checkpoint : Checkpoint
        What is named.
    known : dict, optional
        Parts of tensors of another checkpoint, which most often has the same; those of this one are added.
    """
    known = {} if known is None else known
    bare_names = {name: bare_name(name) for name in checkpoint.tensors}
    common = _common_prefix(tuple(bare_names.values()))
    vocab = checkpoint.config.get("vocab_size")
    has_outer_norms = any("pre_feedforward_layernorm" in name for name in checkpoint.tensors)
    vocabulary = vocab if isinstance(vocab, int) else None
    parts: dict[str, Part] = {}
    for name, tensor in checkpoint.tensors.items():
        what = (
            name, tensor.shape, tensor.grid, tensor.dtype.name, tensor.dtype.opaque, common, vocabulary, has_outer_norms
        )
        if what not in known:
            bare = bare_name(bare_names[name].removeprefix(common)) if common else bare_names[name]
            role = role_of(pattern_of(bare), _traits(tensor, vocabulary))
            canonical = canonical_name(bare, role, has_outer_norms)
            known[what] = Part(canonical, role, block_of(bare), name.rpartition(".")[0] or name)
        parts[name] = known[what]
    return Anatomy(_with_companions(parts, checkpoint.tensors))


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


def _traits(tensor: Tensor, vocab: int | None) -> Traits:
    shape = tensor.shape
    return Traits(
        axes=len(shape),
        is_integral=tensor.dtype.kind in ("integer", "bool") and not tensor.dtype.opaque,
        is_vocabulary=len(shape) == 2 and vocab is not None and shape[0] == vocab,
        is_line=len(shape) < 2 or tensor.size == max(shape),
        is_grid=len(shape) >= 2 and min(tensor.grid) > 1,
    )


def _with_companions(parts: dict[str, Part], tensors: Mapping[str, Tensor]) -> dict[str, Part]:
    """Mark payloads that only their companions can decode, such as an int8 or fp8 ``weight`` with its scale."""
    for name in parts:
        for suffix in (".weight_scale", ".weight_scale_inv", ".SCB", ".weight.absmax"):
            payload = f"{name.removesuffix(suffix)}.weight" if name.endswith(suffix) else ""
            if payload in parts and tensors[payload].dtype.bits <= 8:
                part = parts[payload]
                parts[payload] = Part(part.canonical, "quantized", part.block, part.layer)
    return parts
