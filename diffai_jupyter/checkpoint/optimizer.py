"""What an optimizer kept for each parameter: the only trace that gradients leave in files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from diffai_jupyter.checkpoint.tensor import Tensor

Setting = bool | int | float | str | tuple[float, ...] | None


@dataclass(frozen=True, slots=True)
class ParameterGroup:
    """Parameters that share their settings.

    Parameters
    ----------
    settings : mapping
        Such as ``lr``, ``betas``, ``eps``, ``weight_decay``, ``momentum``, by the optimizer's own names.
    ids : tuple of int
        The parameters, in the order in which they were built.
    """

    settings: Mapping[str, Setting]
    ids: tuple[int, ...]

    def number(self, key: str) -> float | None:
        """Return a setting that is a number, else None."""
        value = self.settings.get(key)
        return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


@dataclass(frozen=True, slots=True)
class Slot:
    """What was kept for one parameter.

    Parameters
    ----------
    id : int
        Its number; ids rise in the order of the optimizer's groups.
    group : int
        Index of its group.
    name : str
        Stored name of the weight; empty where names could not be attached without doubt.
    step : int, optional
        Updates of this parameter.
    moments : mapping of str to Tensor
        ``exp_avg``, ``exp_avg_sq`` or ``momentum_buffer``, decoded where they were stored in 8 bits.
    """

    id: int
    group: int
    name: str
    step: int | None
    moments: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class OptimizerState:
    """The state of an optimizer, opened: no tensor is read.

    Parameters
    ----------
    source : str
        The file.
    kind : str
        ``"adam"`` for its whole family, ``"sgd"``, or ``"unknown"``; by the keys of the groups and slots.
    groups : tuple of ParameterGroup
    slots : tuple of Slot
        In depth order: that of the ids, which is the order in which modules were built.
    unread : tuple of str
        What could not be read, in words.
    """

    source: str
    kind: str
    groups: tuple[ParameterGroup, ...]
    slots: tuple[Slot, ...]
    unread: tuple[str, ...] = ()

    @property
    def is_named(self) -> bool:
        """Whether every slot knows its weight."""
        return bool(self.slots) and all(slot.name for slot in self.slots)
