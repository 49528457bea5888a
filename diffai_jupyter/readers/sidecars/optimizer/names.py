"""Which parameter of an optimizer is which weight.

An optimizer numbers its parameters in the order in which they were handed to it. Trainers hand over those of the
model in the order they were built, frozen ones left out, often in two groups: with weight decay and without.
A name is attached only if every shape agrees and no other order that is possible gives another name.

References
----------
transformers 5.24, ``trainer.py`` (get_decay_parameter_names, create_optimizer).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import replace

import numpy as np

from diffai_jupyter.checkpoint.model import Json, Note
from diffai_jupyter.checkpoint.optimizer import OptimizerState, Slot
from diffai_jupyter.checkpoint.tensor import Tensor
from diffai_jupyter.readers.sidecars.optimizer.order import orders
from diffai_jupyter.wording import Name

Shape = tuple[int, ...]
Sought = list[Shape | None]
"""The shapes of the parameters of a group; None for one of which nothing was kept."""
Rule = list[Set[str]]
"""The weights that each group may hold."""

_BUFFER = re.compile(
    r"(?:^|\.)(?:running_mean|running_var|num_batches_tracked|position_ids|inv_freq|original_inv_freq|masked_bias"
    r"|rotary_emb\..*)$"
)
_PREFIXES = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# what is spared from weight decay: by the Hugging Face trainer, by its versions before 4.50, by many other programs
_NO_DECAY = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")
_NORM = re.compile(r"norm|(?:^|\.)ln_?\w*(?=\.)")
_SPARED: tuple[Callable[[str, Shape], bool], ...] = (
    lambda name, shape: _NO_DECAY.search(name.lower()) is not None,
    lambda name, shape: "bias" in name or (len(shape) == 1 and _NORM.search(name.lower()) is not None),
    lambda name, shape: len(shape) < 2,
)

DISAGREE = "the shapes do not agree with those of the weights"
AMBIGUOUS = "several assignments fit the shapes"
NO_ORDER = "the weights are sorted by name, and in which order they were built is not known"
NO_SHAPES = "nothing with the shape of the parameters was kept"


def with_names(
    state: OptimizerState | None,
    tensors: Mapping[str, Tensor],
    order: Sequence[str] | None,
    config: Mapping[str, Json],
) -> tuple[OptimizerState | None, list[Note]]:
    """Give the slots of an optimizer the names of their weights, or say why they have none; parameters as `named`."""
    if state is None:
        return None, []
    family = config.get("model_type")
    known, reason = named(state, tensors, order, family if isinstance(family, str) else "")
    template = "Which weights the {n} parameters in {file} belong to is not known: {reason}."
    said = {"n": len(known.slots), "file": Name(known.source), "reason": reason}
    # the state of an optimizer that was given by itself has no weights beside it
    is_alone = all(name.startswith("state.") for name in tensors)
    return known, [Note(template, said)] if reason and not is_alone else []


def named(
    state: OptimizerState, tensors: Mapping[str, Tensor], order: Sequence[str] | None, family: str
) -> tuple[OptimizerState, str]:
    """Attach the names of weights to what an optimizer kept.

    Parameters
    ----------
    state : OptimizerState
        As it was read.
    tensors : mapping of str to Tensor
        The stored weights.
    order : sequence of str, optional
        Their names in the order of the model; None where the file has them sorted.
    family : str
        ``model_type`` of the configuration; empty where it is not known.

    Returns
    -------
    tuple of OptimizerState and str
        The state, with all names or none, and why there are none; empty where there are.
    """
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    if any(slot.name for slot in state.slots):
        return _checked(state, shapes)
    bare = replace(state, slots=tuple(replace(slot, name="") for slot in state.slots))
    if not state.slots:
        return bare, ""
    kept = {slot.id: _shape_of(slot) for slot in state.slots}
    if None in kept.values():
        return bare, NO_SHAPES
    sought = [[kept.get(number) for number in group.ids] for group in state.groups]
    built = _parameters(tensors, order if order is not None else sorted(tensors))
    possible: Iterable[Sequence[str]] | None = [built] if order is not None else orders(built, family)
    if possible is None:
        return bare, NO_ORDER
    found, reason = _decided(possible, sought, {name: shapes[name] for name in built})
    if found is None:
        return bare, NO_ORDER if order is None and reason == AMBIGUOUS else reason
    numbers = [number for group in state.groups for number in group.ids]
    names = dict(zip(numbers, found, strict=True))
    return replace(state, slots=tuple(replace(slot, name=names[slot.id]) for slot in state.slots)), ""


def _checked(state: OptimizerState, shapes: Mapping[str, Shape]) -> tuple[OptimizerState, str]:
    """Keep names that the state itself has, where each is that of a weight of the same shape."""
    plain = {_PREFIXES.sub("", name): name for name in shapes}
    slots = []
    for slot in state.slots:
        name = slot.name if slot.name in shapes else plain.get(_PREFIXES.sub("", slot.name), "")
        fits = name and _shape_of(slot) == shapes[name]
        slots.append(replace(slot, name=name if fits else ""))
    if all(slot.name for slot in slots):
        return replace(state, slots=tuple(slots)), ""
    return replace(state, slots=tuple(replace(slot, name="") for slot in slots)), DISAGREE


def _shape_of(slot: Slot) -> Shape | None:
    """Return the shape that all moments of a parameter share; None where there is none."""
    shapes = {moment.shape for moment in slot.moments.values()}
    return shapes.pop() if len(shapes) == 1 else None


def _parameters(tensors: Mapping[str, Tensor], order: Iterable[str]) -> list[str]:
    """Return what may be parameters: no buffers, and of tied weights the first."""
    found, seen = [], set()
    for name in order:
        tensor = tensors[name]
        is_float = np.dtype(tensor.dtype.value).kind in "fc"
        if not is_float or _BUFFER.search(name) or (tensor.place is not None and tensor.place in seen):
            continue
        seen.add(tensor.place)
        found.append(name)
    return found


def _decided(
    possible: Iterable[Sequence[str]], sought: Sequence[Sought], shapes: Mapping[str, Shape]
) -> tuple[tuple[str, ...] | None, str]:
    """Return the one assignment that fits, else why there is none. Those that leave nothing out go before others."""
    rules = _rules(sought, shapes)
    found: dict[bool, tuple[str, ...]] = {}
    is_doubtful = False
    for order in possible:
        can_be_whole = sum(map(len, sought)) == len(order)
        for is_whole, names in _assignments(sought, order, shapes, rules):
            if names is None or found.setdefault(is_whole, names) != names:
                is_doubtful = is_doubtful or not is_whole
                if is_whole or not can_be_whole:
                    return None, AMBIGUOUS
    if True in found:
        return found[True], ""
    return (None, AMBIGUOUS) if is_doubtful else (found.get(False), "" if found else DISAGREE)


def _assignments(
    sought: Sequence[Sought], order: Sequence[str], shapes: Mapping[str, Shape], rules: Sequence[Rule]
) -> Iterator[tuple[bool, tuple[str, ...] | None]]:
    """Yield what each rule of making groups assigns to the parameters, in the order of the groups.

    Yields
    ------
    bool
        Whether no weight is left out.
    tuple of str, optional
        The names; None where others fit this rule as well.
    """
    for rule in rules:
        pools = [[name for name in order if name in allowed] for allowed in rule]
        first = _embedded(sought, pools, shapes)
        if first is None:
            continue
        last = _embedded([wanted[::-1] for wanted in sought], [pool[::-1] for pool in pools], shapes)
        is_unique = last is not None and all(one == other[::-1] for one, other in zip(first, last, strict=True))
        names = tuple(name for part in first for name in part)
        yield is_unique and len(names) == len(order), names if is_unique else None


def _embedded(
    sought: Sequence[Sought], pools: Sequence[Sequence[str]], shapes: Mapping[str, Shape]
) -> list[list[str]] | None:
    """Find the shapes of each group in its pool, in order and as early as possible; None where they are not in it."""
    found = []
    for wanted, pool in zip(sought, pools, strict=True):
        left, part = iter(pool), []
        for shape in wanted:
            name = next((name for name in left if shape is None or shapes[name] == shape), None)
            if name is None:
                return None
            part.append(name)
        found.append(part)
    return found


def _rules(sought: Sequence[Sought], shapes: Mapping[str, Shape]) -> list[Rule]:
    """Return which weights each group may hold, by each way in which groups are made."""
    kinds = [set(wanted) for wanted in sought]
    if sum(map(bool, kinds)) == 1:
        return [[shapes.keys() if kind else frozenset() for kind in kinds]]
    every = set().union(*kinds)
    if None not in every and sum(map(len, kinds)) == len(every):
        # no shape is in two groups: nothing else has to be known
        return [[{name for name, shape in shapes.items() if shape in kind} for kind in kinds]]
    rules: list[Rule] = []
    for is_spared in _SPARED if len(sought) == 2 else ():
        spared = {name for name, shape in shapes.items() if is_spared(name, shape)}
        rules += [[shapes.keys() - spared, spared], [spared, shapes.keys() - spared]]
    return rules
