"""The state of a learning-rate scheduler: ``scheduler.pt``, or inside a training checkpoint.

It names no class; the attributes that are saved tell the classes of PyTorch apart. Schedules made of a function, such
as those of the Hugging Face trainer, keep nothing of it.

References
----------
torch 2.13, ``optim/lr_scheduler.py`` (state_dict of each class).
"""

from __future__ import annotations

from typing import Any

from diffai_jupyter.checkpoint.model import Training
from diffai_jupyter.readers.sidecars.graph import Graph
from diffai_jupyter.readers.sidecars.training import known_fields

_KEYS = ("lr_schedulers", "lr_scheduler", "scheduler", "scheduler_state_dict", "lr_scheduler_state_dict")
_BASE = {"base_lrs", "last_epoch", "verbose", "_step_count", "_is_initial", "_get_lr_called_within_step", "_last_lr"}
# Attributes beyond those that all classes save; they must be just these.
_CLASSES = {
    frozenset(keys.split()): name
    for name, keys in (
        ("CosineAnnealingWarmRestarts", "T_0 T_i T_mult eta_min T_cur"),
        ("CosineAnnealingLR", "T_max eta_min"),
        ("MultiStepLR", "milestones gamma"),
        ("StepLR", "step_size gamma"),
        ("LinearLR", "start_factor end_factor total_iters"),
        ("PolynomialLR", "total_iters power"),
        ("ConstantLR", "factor total_iters"),
        ("ExponentialLR", "gamma"),
    )
}
# What these save differs between versions, and is telling enough.
_TELLING = (
    ("ReduceLROnPlateau", {"factor", "patience", "mode", "num_bad_epochs"}),
    ("OneCycleLR", {"total_steps", "cycle_momentum"}),
    ("CyclicLR", {"total_size", "step_ratio", "cycle_momentum"}),
)
_SETTINGS = (
    "T_max", "T_0", "T_mult", "eta_min", "gamma", "step_size", "start_factor", "end_factor", "total_iters", "power",
    "factor", "patience", "cooldown", "threshold", "threshold_mode", "mode", "total_steps", "total_size", "step_ratio",
    "warmup_num_steps", "warmup_min_lr", "warmup_max_lr",
)  # fmt: skip
_WARMED = {
    "LinearLR": "warmup_linear", "CosineAnnealingLR": "warmup_cosine", "ExponentialLR": "warmup_exponential",
    "StepLR": "warmup_step", "MultiStepLR": "warmup_step", "PolynomialLR": "warmup_polynomial",
    "ConstantLR": "warmup_constant",
}  # fmt: skip
_RATES = 64


def scheduler_in(graph: Graph) -> object:
    """Return the one scheduler that a file holds: itself, or what a training checkpoint keeps; None without one."""
    if is_scheduler(graph, graph.root):
        return graph.root
    inside = graph.mapping(graph.root)
    for key in _KEYS:
        found = inside.get(key)
        several = graph.sequence(found) or ([found] if found is not None else [])
        states = [state for state in several if is_scheduler(graph, state)]
        if states:
            return states[0] if len(states) == 1 else None
    return None


def is_scheduler(graph: Graph, found: object) -> bool:
    """Say whether an object is the state of a scheduler."""
    inside = graph.mapping(found)
    return "last_epoch" in inside and ("_last_lr" in inside or "base_lrs" in inside or "_step_count" in inside)


def read_scheduler(graph: Graph, found: object, source: str, step: int | None) -> Training:
    """Read the rate, the schedule and its settings.

    Parameters
    ----------
    graph : Graph
        The file.
    found : object
        The state of the scheduler.
    source : str
        What it is called.
    step : int, optional
        Optimizer steps done; the scheduler may count epochs. A rate whose step nothing tells stands at step 0.
    """
    inside = graph.mapping(found)
    rates = _numbers(graph, inside.get("_last_lr"))
    settings: dict[str, Any] = {key: graph.plain(inside[key]) for key in _SETTINGS if key in inside}
    if base := _numbers(graph, inside.get("base_lrs")):
        settings["base_lrs"] = base
    if "milestones" in inside:
        milestones = graph.mapping(inside["milestones"]) or graph.sequence(inside["milestones"])
        settings["milestones"] = tuple(sorted(key for key in milestones if type(key) is int))[:_RATES]
    where = source if step is not None else f"{source} (step not stated)"
    return Training(
        **known_fields(where, lr=((step or 0, max(rates)),) if rates else ()),
        **known_fields(
            source,
            schedule=_schedule(graph, found),
            hyperparameters={key: value for key, value in settings.items() if value not in (None, ())},
        ),
    )


def _schedule(graph: Graph, found: object) -> str | None:
    """Return the class, or a warm-up with what follows it; None where the attributes do not tell."""
    inside = graph.mapping(found)
    if "_schedulers" in inside:
        parts = graph.sequence(inside["_schedulers"])
        return _in_turn(graph, parts) if "_milestones" in inside and len(parts) == 2 else None
    return _class(graph, found)


def _class(graph: Graph, found: object) -> str | None:
    inside = graph.mapping(found)
    own = frozenset(key for key in inside if isinstance(key, str) and key not in _BASE)
    name = _CLASSES.get(own) or next((name for name, keys in _TELLING if keys <= own), None)
    if name == "LinearLR" and _rises(graph, found):
        return "constant_with_warmup"
    return name


def _in_turn(graph: Graph, parts: list[Any] | tuple[Any, ...]) -> str | None:
    """Return the name of two schedules, one after the other, where the first is a warm-up."""
    first, second = parts
    if not _rises(graph, first):
        return None
    return _WARMED.get(_class(graph, second) or "")


def _rises(graph: Graph, found: object) -> bool:
    inside = graph.mapping(found)
    start, end = graph.number(inside.get("start_factor")), graph.number(inside.get("end_factor"))
    return start is not None and end is not None and start < end


def _numbers(graph: Graph, found: object) -> tuple[float, ...]:
    numbers = [graph.number(entry) for entry in graph.sequence(found)[:_RATES]]
    known = tuple(number for number in numbers if number is not None)
    return known if len(known) == len(numbers) else ()
