"""The log of a training run that the user gives, in whichever form, as `Training`."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from diffai_jupyter.checkpoint.model import History, Note, Training
from diffai_jupyter.errors import ArgumentError
from diffai_jupyter.options import Live
from diffai_jupyter.readers.given.files import IN_FOLDER, read_file
from diffai_jupyter.readers.given.names import EPOCHS as EPOCH_NAMES
from diffai_jupyter.readers.given.names import STEPS, is_bookkeeping, key_of, roles_of
from diffai_jupyter.readers.given.table import Cell, Columns, columns_of, number_of, without_gaps
from diffai_jupyter.readers.sidecars.training import by_step, known_fields, resumed, step_of
from diffai_jupyter.wording import Name, listed, plural, show_name, some

ROWS, EPOCHS = "row numbers stand for steps", "epochs stand for steps"
"""What a log without steps is placed by, as the assumption of each of its values."""

_OWN = ("losses", "lr", "grad_norms")

_EXPECTED = (
    "Give trainer_state.json, a CSV or JSON file, a data frame, a list of dicts or a dict of lists, with columns "
    "such as step, loss, lr and eval_loss"
)
_WANDB_RUN = re.compile(r"(.+) - (.+)")
_WANDB_RANGE = ("__MIN", "__MAX")


@dataclass(frozen=True, slots=True)
class GivenLog:
    """What a log holds.

    Parameters
    ----------
    training : Training
        Losses, metrics, gradient norms and learning rates, as far as it has them; reported.
    notes : tuple of Note
        What of it was not used.
    counts_steps : bool
        Whether it says the steps; else rows or epochs stand for them, which its values say as their assumption.
    """

    training: Training
    notes: tuple[Note, ...]
    counts_steps: bool


def read_history(given: Live) -> GivenLog:
    """Read a log of training.

    A row is one logging. An empty cell is no value; NaN and infinity that were logged are kept, see
    `diffai_jupyter.readers.given.table.without_gaps`. Steps, losses, learning rates and gradient norms are
    known by their usual names, evaluation metrics by ``eval``, ``val``, ``valid``, ``test`` or ``dev`` in front
    or behind.

    Parameters
    ----------
    given : Live
        A path, or an object as `diffai_jupyter.readers.given.table.columns_of` understands.

    Raises
    ------
    ArgumentError
        If it holds no log that can be understood.
    SourceError
        If the file cannot be read.
    """
    title = f"--history {show_name(given.name)}"
    found = given.value
    if isinstance(found, (str, os.PathLike)):
        found = read_file(os.fsdecode(found), title, IN_FOLDER)
    columns = columns_of(found)
    if columns is None:
        msg = f"{title}: a {type(found).__name__} of this kind holds no log. {_EXPECTED}."
        raise ArgumentError(msg)
    numbers, notes = _numbers(_of_one_run(columns, title), title)
    roles = roles_of(name for name, cells in numbers.items() if any(cell is not None for cell in cells))
    metrics = [name for name in roles if name not in _OWN]
    if not roles:
        msg = f"{title}: it has no loss, learning rate, gradient norm or metric (only {listed(numbers)}). {_EXPECTED}."
        raise ArgumentError(msg)
    steps, assumption = _steps(numbers, list(roles.values()))
    wanted = {name: numbers[name] for name in roles.values()}
    cells = without_gaps(wanted, _others(numbers, wanted), roles.get("losses", ""))
    curves = {role: _curve(steps, cells[name]) for role, name in roles.items()}
    known = known_fields(
        title,
        metrics={name: curves[name] for name in metrics if curves[name]},
        **{role: curves[role] for role in _OWN if role in roles},
    )
    if assumption:
        known = {field: replace(value, assumption=assumption) for field, value in known.items()}
    homeless = sum(step is None and any(c[i] is not None for c in cells.values()) for i, step in enumerate(steps))
    if homeless:
        notes.append(_note("{title}: left out {n} without a step.", title, n=plural(homeless, "row")))
    unused = [name for name in numbers if name not in wanted and not _is_place(name) and not is_bookkeeping(name)]
    if unused:
        notes.append(_note("{title}: columns that were not used: {names}.", title, names=some(unused)))
    return GivenLog(Training(**known), tuple(notes), not assumption)


def _note(template: str, title: str, **said: object) -> Note:
    return Note(template, {"title": Name(title), **said})


def _of_one_run(columns: Columns, title: str) -> Columns:
    """Take off what Weights & Biases puts around the names of an exported chart: the run, and the range."""
    if not any(name.endswith(_WANDB_RANGE) for name in columns):
        return columns
    runs = {found[1] for name in columns if (found := _WANDB_RUN.fullmatch(name))}
    if len(runs) > 1:
        msg = f"{title}: it holds several runs ({listed(sorted(runs))}). Keep the columns of one."
        raise ArgumentError(msg)
    return {
        _WANDB_RUN.sub(r"\2", name): cells
        for name, cells in columns.items()
        if not name.endswith(_WANDB_RANGE)
    }


def _numbers(columns: Columns, title: str) -> tuple[dict[str, list[Cell]], list[Note]]:
    """Return the columns that hold something and fit each other, as numbers, and notes on what was left out."""
    by_key = {key_of(name): cells for name, cells in columns.items()}
    leading = next((by_key[key] for key in (*STEPS, *EPOCH_NAMES) if key in by_key), None)
    length = max(map(len, columns.values())) if leading is None else len(leading)
    numbers: dict[str, list[Cell]] = {}
    notes = []
    for name, cells in columns.items():
        if len(cells) != length:
            template = "{title}: {name} has {n} where others have {m}; it was left out."
            notes.append(_note(template, title, name=Name(name), n=plural(len(cells), "entry", "entries"), m=length))
            continue
        found = [number_of(cell) for cell in cells]
        bad = sum(number is None and _is_filled(cell) for number, cell in zip(found, cells, strict=True))
        has_numbers = any(number is not None for number in found)
        if has_numbers and bad and not is_bookkeeping(name):
            template = "{title}: skipped {n} of {name}: no number."
            notes.append(_note(template, title, n=plural(bad, "cell"), name=Name(name)))
        if has_numbers or bad:
            numbers[name] = found
    return numbers, notes


def _others(numbers: Mapping[str, list[Cell]], wanted: Mapping[str, object]) -> dict[str, list[Cell]]:
    """Return what else was logged: no steps and epochs, and no times that each row holds."""
    return {
        name: cells
        for name, cells in numbers.items()
        if name not in wanted
        and not _is_place(name)
        and not (is_bookkeeping(name) and all(cell is not None and cell == cell for cell in cells))
    }


def _is_place(name: str) -> bool:
    return key_of(name) in (*STEPS, *EPOCH_NAMES)


def _steps(numbers: Mapping[str, list[Cell]], logged: Sequence[str]) -> tuple[list[int | None], str]:
    """Return the step of each row, and what was assumed where no column says it."""
    by_key = {key_of(name): cells for name, cells in numbers.items()}
    for key in STEPS:
        steps = [_whole(cell) for cell in by_key.get(key, ())]
        if any(step is not None for step in steps):
            return steps, ""
    for key in EPOCH_NAMES:
        epochs = [_whole(cell) for cell in by_key.get(key, ())]
        whole = [epoch for epoch in epochs if epoch is not None]
        is_whole = len(whole) == sum(cell is not None and cell == cell for cell in by_key.get(key, ()))
        if whole and is_whole and not any(_repeats(epochs, numbers[name]) for name in logged):
            # Epochs that are counted from zero are logged at their end.
            first = min(whole)
            return [None if epoch is None else epoch + (first == 0) for epoch in epochs], EPOCHS
    return list(range(1, len(numbers[logged[0]]) + 1)), ROWS


def _repeats(epochs: Sequence[int | None], cells: Sequence[Cell]) -> bool:
    """Say whether a column has several numbers in one epoch."""
    filled = [epoch for epoch, cell in zip(epochs, cells, strict=True) if cell is not None and cell == cell]
    return len(set(filled)) < len(filled)


def _whole(cell: Cell) -> int | None:
    is_whole = cell is not None and math.isfinite(cell) and cell == int(cell)
    return step_of(int(cell)) if cell is not None and is_whole else None


def _curve(steps: Iterable[int | None], cells: Iterable[Cell]) -> History:
    """Return a curve in the order of its steps; of a log that goes back now and then, what was resumed counts."""
    rows = zip(steps, cells, strict=True)
    points = [(step, cell) for step, cell in rows if step is not None and cell is not None]
    moves = [later - earlier for (earlier, _), (later, _) in pairwise(points)]
    is_in_order = sum(move > 0 for move in moves) > sum(move < 0 for move in moves)
    return resumed(points) if is_in_order else by_step(points)


def _is_filled(cell: object) -> bool:
    """Say whether something stands in a cell; pandas has values of its own for nothing."""
    return cell is not None and str(cell).strip() not in ("", "<NA>", "NaT")
