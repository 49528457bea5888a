"""The state that an optimizer saves: ``state_dict()`` of PyTorch's, by number or, gathered from shards, by name.

References
----------
torch 2.13, ``optim/optimizer.py`` (state_dict) and the classes beside it; bitsandbytes 0.50.2 ``optim/optimizer.py``;
torchao 0.18 ``optim/subclass_8bit.py``.
"""

from __future__ import annotations

from collections import ChainMap, Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from diffai_jupyter.checkpoint.model import Note
from diffai_jupyter.checkpoint.optimizer import OptimizerState, ParameterGroup, Setting, Slot
from diffai_jupyter.checkpoint.tensor import Tensor
from diffai_jupyter.errors import SourceError
from diffai_jupyter.readers.formats.container import TENSOR_LIMIT
from diffai_jupyter.readers.formats.pytorch.inert import Stub
from diffai_jupyter.readers.sidecars.graph import Graph
from diffai_jupyter.readers.sidecars.optimizer.blockwise import blockwise
from diffai_jupyter.readers.sources.arrays import Incomparable
from diffai_jupyter.wording import Name, show_name, some

_KEYS = ("optimizer_states", "optimizer_state_dict", "optimizer", "optim_state_dict", "optim")
_NESTED = "__bnb_optimizer_quant_state__"
_EIGHT_BIT = {"state1": ("absmax1", "qmap1"), "state2": ("absmax2", "qmap2")}
_OF_TORCHAO = ".OptimState8bit"
_CALLED = {"state1": "exp_avg", "state2": "exp_avg_sq"}
# Numbers that some optimizers keep as arrays of one element; they are no moments.
_COUNTS = frozenset({"step", "mu_product", "eta", "mu"})
# Groups of optimizers that scale the first moment, or that only look like SGD.
_SCALED = frozenset({"d", "d0", "d_coef", "trust_coefficient", "ns_steps", "update_proj_gap"})
_SGD = frozenset({"momentum", "dampening", "nesterov"})
_ADAM_MOMENTS = ("exp_avg", "exp_avg_sq")
_REASONS, _LONGEST = 5, 8
_KEPT = 32
ENTRY_LIMIT = 1_600_000
"""Settings and moments that are looked at: those of half a million parameters."""


def read_optimizer(graph: Graph) -> tuple[OptimizerState | None, list[Note]]:
    """Return the state of the one optimizer that a file holds, and what must be said of it; a damaged one is a note."""
    states = states_in(graph)
    if not states:
        return None, []
    if len(states) > 1:
        template = "{file} holds the states of {n} optimizers, which were left aside: nothing tells them apart."
        return None, [Note(template, {"file": Name(graph.name), "n": len(states)})]
    try:
        state = read_state(graph, states[0], graph.name)
    except SourceError as error:
        template = "The state of the optimizer in {file} could not be read and was left aside: {error}"
        return None, [Note(template, {"file": Name(graph.name), "error": Name(error)}, is_warning=True)]
    said = {"file": Name(graph.name), "unread": some(state.unread)}
    return state, [Note("Of the optimizer in {file} this was not read: {unread}.", said)] if state.unread else []


def states_in(graph: Graph) -> list[object]:
    """Return the states of optimizers that a file holds: itself, or what a training checkpoint keeps under a key."""
    if is_state(graph, graph.root):
        return [graph.root]
    inside = graph.mapping(graph.root)
    for key in _KEYS:
        found = inside.get(key)
        several = graph.sequence(found) or ([found] if found is not None else [])
        if states := [state for state in several if is_state(graph, state)]:
            return states
    return []


def is_state(graph: Graph, found: object) -> bool:
    """Say whether an object is the state of an optimizer."""
    inside = graph.mapping(found)
    return isinstance(inside.get("param_groups"), (list, tuple)) and isinstance(inside.get("state"), Mapping)


def read_state(graph: Graph, found: object, source: str) -> OptimizerState:
    """Describe the state of an optimizer; its moments are not read.

    Parameters
    ----------
    graph : Graph
        The file.
    found : object
        The state.
    source : str
        What it is called.

    Returns
    -------
    OptimizerState
        Without names, but where the state itself has them: those are not checked yet.

    Raises
    ------
    FormatError
        If it is damaged.
    """
    inside = graph.mapping(found)
    reading = _Reading(graph, inside["state"])
    groups = tuple(reading.group(i, entry) for i, entry in enumerate(graph.sequence(inside["param_groups"])))
    slots = tuple(reading.slots)
    kind = "unknown" if reading.is_projected else _kind(groups, slots)
    return OptimizerState(source, kind, groups, slots, reading.unread())


@dataclass
class _Reading:
    """What has been read of a state so far."""

    graph: Graph
    state: Mapping[Any, Any]
    slots: list[Slot] = field(default_factory=list)
    failures: Counter[tuple[str, str]] = field(default_factory=Counter)
    seen: set[object] = field(default_factory=set)
    is_projected: bool = False
    left: int = field(default_factory=lambda: ENTRY_LIMIT)

    def group(self, index: int, found: object) -> ParameterGroup:
        """Take a group and what was kept for its parameters."""
        inside = self.graph.mapping(found)
        self._pay(len(inside))
        keys = self.graph.sequence(inside.get("params"))
        if len(self.seen) + len(keys) > TENSOR_LIMIT:
            self.graph.refuse(f"it lists more parameters than the limit of {TENSOR_LIMIT}")
        settings = {
            name: value for name, entry in inside.items() if _is_setting(name) for value in self._settings(entry)
        }
        names = self.graph.sequence(inside.get("param_names"))
        shared_step = self.graph.count(inside.get("step"))
        ids = []
        for i, key in enumerate(keys):
            if not isinstance(key, (int, str)) or isinstance(key, bool):
                self.graph.refuse(f"parameter {i} of group {index} has no number and no name")
            if key in self.seen:
                self.graph.refuse(f"parameter {i} of group {index} is listed twice")
            number = len(self.seen)
            self.seen.add(key)
            ids.append(key if isinstance(key, int) else number)
            name = key if isinstance(key, str) else names[i] if i < len(names) and len(names) == len(keys) else ""
            self._slot(key, Slot(ids[-1], index, name if isinstance(name, str) else "", shared_step, {}))
        return ParameterGroup(settings, tuple(ids))

    def _pay(self, entries: int) -> None:
        """Count what is looked at: a pickle may share one object a million times."""
        self.left -= entries
        if self.left < 0:
            self.graph.refuse("its entries are shared more often than in the state of any optimizer")

    def unread(self) -> tuple[str, ...]:
        """Return what could not be read, in words."""
        said = [f"{name} of {n} parameters: {reason}" for (name, reason), n in sorted(self.failures.items())]
        return tuple(said[:_REASONS])

    def _slot(self, key: object, empty: Slot) -> None:
        kept = self.graph.mapping(self.state.get(key))
        nested = self.graph.mapping(kept.get(_NESTED))
        if len(kept) + len(nested) > _KEPT:
            self.graph.refuse(f"it keeps {len(kept) + len(nested)} entries for one parameter")
        self._pay(len(kept) + len(nested))
        kept = ChainMap(dict(nested), dict(kept)) if nested else kept
        if not kept:
            return
        self.is_projected |= "projector" in kept
        step = self.graph.count(kept.get("step"))
        moments = self._moments(empty.id, kept)
        if moments or step is not None:
            known = empty.step if step is None else step
            self.slots.append(Slot(empty.id, empty.group, empty.name, known, moments))

    def _moments(self, number: int, kept: Mapping[Any, Any]) -> dict[str, Tensor]:
        codes = {name for name in _EIGHT_BIT if all(part in kept for part in _EIGHT_BIT[name])}
        companions = {part for name in codes for part in _EIGHT_BIT[name]}
        is_adam = all(name in kept for name in _CALLED)
        moments = {}
        for name, entry in kept.items():
            if not isinstance(name, str) or name in _COUNTS or name in companions:
                continue
            parts = [kept[part] for part in (name, *(_EIGHT_BIT[name] if name in codes else ()))]
            if isinstance(entry, Stub) and entry.label.endswith(_OF_TORCHAO):
                inside = self.graph.mapping(entry)
                parts = [inside.get(part) for part in ("codes", "scale", "qmap")]
            tensor = self._read(f"state.{number}.{name}", name, parts)
            if tensor is not None:
                moments[_CALLED.get(name, name) if is_adam else name] = tensor
        return moments

    def _read(self, stored: str, name: str, parts: Sequence[object]) -> Tensor | None:
        """Return a moment that is stored whole, or as codes, scales and levels; None where it is no array."""
        if not all(map(self.graph.is_array, parts)):
            if isinstance(parts[0], Stub):
                self.failures[name, f"it is an object of the class {show_name(parts[0].label, 60)}"] += 1
            return None
        try:
            read = [self.graph.tensor(part, stored) for part in parts]
        except Incomparable as reason:
            self.failures[name, str(reason)] += 1
            return None
        if len(read) == 1:
            return read[0]
        whole = blockwise(*read)
        if whole is None:
            self.failures[name, "its 8-bit codes and scales do not fit each other"] += 1
        return whole

    def _settings(self, found: object) -> list[Setting]:
        """Return a setting as a list of one; an empty one where it is no plain value."""
        several = self.graph.sequence(found)
        if several:
            numbers = [self.graph.number(entry) for entry in several[:_LONGEST]]
            known = tuple(number for number in numbers if number is not None)
            return [known] if len(known) == len(several) else []
        value = self.graph.plain(found)
        return [] if value is None and found is not None else [value]


def _is_setting(name: object) -> bool:
    return isinstance(name, str) and name not in ("params", "param_names", "step")


def _kind(groups: tuple[ParameterGroup, ...], slots: tuple[Slot, ...]) -> str:
    """Return the family whose formulas the moments follow; ``"unknown"`` where the keys do not prove it."""
    settings = [group.settings for group in groups if group.ids] or [group.settings for group in groups]
    kept = [slot.moments for slot in slots if slot.moments]
    if not settings or any(_SCALED & entry.keys() for entry in settings):
        return "unknown"
    if all(_is_pair(entry.get("betas")) and "eps" in entry for entry in settings):
        return "adam" if all(all(name in slot for name in _ADAM_MOMENTS) for slot in kept) else "unknown"
    if all(entry.keys() >= _SGD for entry in settings):
        return "sgd" if all(set(slot) <= {"momentum_buffer"} for slot in kept) else "unknown"
    return "unknown"


def _is_pair(betas: Setting) -> bool:
    return isinstance(betas, tuple) and len(betas) == 2 and all(0 <= beta < 1 for beta in betas)
