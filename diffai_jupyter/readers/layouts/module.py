"""What every layout is given and what it gives back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeGuard

from diffai_jupyter.checkpoint.model import Json
from diffai_jupyter.checkpoint.quantized import Quantized
from diffai_jupyter.checkpoint.tensor import Tensor


@dataclass(frozen=True, slots=True)
class Hints:
    """What lies beside the tensors and may say how to read them.

    Parameters
    ----------
    config : mapping
        ``config.json`` and its like; ``config["quantization_config"]`` where there is one.
    metadata : mapping of str to str
        Text inside the files.
    """

    config: Mapping[str, Json] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def quantization(self) -> dict[str, Any]:
        """The quantization configuration; empty where there is none."""
        found = self.config.get("quantization_config") or self.config.get("quantization")
        return found if isinstance(found, dict) else {}

    def whole(self, key: str) -> int:
        """Return a whole number of the quantization configuration; 0 where it has none."""
        found = self.quantization.get(key)
        return found if is_whole(found) else 0


def is_whole(found: object, least: int = 1) -> TypeGuard[int]:
    """Say whether something out of JSON is a whole number, not below `least`, that a file can count up to."""
    return isinstance(found, int) and not isinstance(found, bool) and least <= found < 2**63


@dataclass(frozen=True, slots=True)
class Module:
    """One matrix that was recognised.

    Parameters
    ----------
    name : str
        What its plain form would be called, such as ``"layers.0.q_proj.weight"``.
    tensor : Quantized
        The matrix; `diffai_jupyter.checkpoint.quantized.Undecoded` where the layout is not decoded.
    stored : tuple of str
        Names of the stored tensors that it takes.
    """

    name: str
    tensor: Quantized
    stored: tuple[str, ...]


class Layout(Protocol):
    """What each file of this shelf offers as ``modules``."""

    def __call__(self, tensors: Mapping[str, Tensor], hints: Hints) -> Iterator[Module]:
        """Yield the matrices of this layout. Reads headers only, and small constants where it must.

        The stored tensors of a matrix may be gone from `tensors` when the next one is asked for.
        """
