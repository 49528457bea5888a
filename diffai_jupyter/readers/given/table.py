"""Whatever holds a log or a row of numbers, as columns: lists of dicts, dicts of lists, data frames, arrays."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Cell = float | None
"""A number as it was logged, which may be NaN, or None where there is none."""
Columns = dict[str, list[object]]

LOSSES = "loss"
"""What a plain list of numbers is taken for."""
_TOGETHER = 2
"""Rows that hold two columns before they are said to be logged together."""


def columns_of(found: object) -> Columns | None:
    """Return the columns of a log by name, each with one cell a row; None where it has none.

    Understood are a list of dicts, a dict of lists, both nested one level (``train/loss``), a data frame or
    whatever has columns, an object with ``log_history`` (the state of the Hugging Face trainer) or ``history``
    (what Keras returns), and a list or an array of numbers: losses.
    """
    if isinstance(found, Mapping):
        if isinstance(log := found.get("log_history"), list):
            return _of_trainer(log)
        return _of_mapping(found)
    for holder in (getattr(found, "state", None), found):
        if isinstance(log := getattr(holder, "log_history", None), list):
            return _of_trainer(log)
    if isinstance(log := getattr(found, "history", None), Mapping):
        epochs = getattr(found, "epoch", None)
        return _of_mapping({**({"epoch": epochs} if isinstance(epochs, list) else {}), **log})
    return _of_frame(found) or _of_sequence(found)


def number_of(cell: object) -> Cell:
    """Return the number in a cell, NaN and infinity included; None for everything else.

    Examples
    --------
    >>> number_of("1e-3"), number_of(2), number_of("inf"), number_of(""), number_of(True), number_of("high")
    (0.001, 2.0, inf, None, None, None)
    """
    if type(cell) is float:
        # Nearly every cell, and a log may have a million.
        return cell
    if not isinstance(cell, str):
        scalar: Callable[[], object] | None = getattr(cell, "item", None)
        if getattr(cell, "shape", None) == () and callable(scalar):
            # of NumPy or torch
            cell = scalar()
        if isinstance(cell, bool) or not hasattr(cell, "__float__"):
            return None
    try:
        return float(cell)
    except OverflowError:
        return math.inf if cell > 0 else -math.inf  # type: ignore[operator]
    except (TypeError, ValueError):
        return None


def flattened(found: Mapping[Any, object], depth: int = 1) -> dict[str, object]:
    """Return a mapping whose mappings are taken apart, `depth` levels deep.

    Examples
    --------
    >>> flattened({"step": 1, "train": {"loss": 0.5}})
    {'step': 1, 'train/loss': 0.5}
    """
    flat: dict[str, object] = {}
    for name, value in found.items():
        if depth and isinstance(value, Mapping):
            flat |= {f"{name}/{inner}": entry for inner, entry in flattened(value, depth - 1).items()}
        else:
            flat[str(name)] = value
    return flat


def without_gaps(
    columns: Mapping[str, Sequence[Cell]], others: Mapping[str, Sequence[Cell]], expected: str = ""
) -> dict[str, list[Cell]]:
    """Tell NaN that was logged from NaN that stands for an empty cell, and turn the latter into None.

    Data frames fill empty cells with NaN, since losses and evaluations are logged in rows of their own; a run that
    diverged logs NaN as well. Where the log has empty cells (None), each NaN was logged. Else a NaN was logged

    * in a training loss without a single number;
    * where its row also holds a column that came with a number of this one in the first two rows that hold it;
    * where its row holds nothing else, in the training loss and in what came with the first loss.

    Parameters
    ----------
    columns : mapping of str to sequence
        What is wanted.
    others : mapping of str to sequence
        What else was logged, but for steps and the like, which each row holds. All are of one length.
    expected : str
        Which of `columns` is the training loss.
    """
    if any(cell is None for cells in columns.values() for cell in cells):
        return {name: list(cells) for name, cells in columns.items()}
    holes = {name: [cell is None or cell != cell for cell in cells] for name, cells in {**columns, **others}.items()}
    empty = [all(row) for row in zip(*holes.values(), strict=True)]
    kept = {}
    for name, cells in columns.items():
        mine = holes[name]
        partners = [other for other in holes if other != name and _came_together(mine, holes[other], _TOGETHER)]
        is_expected = name == (expected or name) or _came_together(mine, holes[expected], 1)
        is_logged = [
            (all(mine) and name == expected)
            or (is_empty and is_expected)
            or any(not holes[partner][i] for partner in partners)
            for i, is_empty in enumerate(empty)
        ]
        rows = zip(cells, mine, is_logged, strict=True)
        kept[name] = [None if is_hole and not is_true else cell for cell, is_hole, is_true in rows]
    return kept


def _came_together(mine: Sequence[bool], other: Sequence[bool], least: int) -> bool:
    """Say whether a column has a number in each of the first rows that hold another, `least` at least."""
    shared = [hole for hole, is_missing in zip(mine, other, strict=True) if not is_missing]
    return len(shared) >= least and not any(shared[:least])


def _of_trainer(log: list[object]) -> Columns | None:
    # The last entry sums the run up: its train_loss is a mean over all steps.
    return _of_rows([{k: v for k, v in row.items() if k != "train_loss"} for row in log if isinstance(row, Mapping)])


def _of_mapping(found: Mapping[Any, object]) -> Columns | None:
    columns = {name: _cells(value) for name, value in flattened(found).items()}
    known = {name: cells for name, cells in columns.items() if cells is not None}
    return known or None


def _of_frame(found: object) -> Columns | None:
    """Return the columns of a data frame of whichever library, and its index where that has a name."""
    as_dict: Callable[[], object] | None = getattr(found, "to_pydict", None)
    if callable(as_dict) and isinstance(columns := as_dict(), Mapping):
        return _of_mapping(columns)
    names = getattr(getattr(found, "dtype", None), "names", None) or getattr(found, "columns", None)
    if names is None or callable(names) or isinstance(found, type):
        return None
    read: Any = found
    index = getattr(found, "index", None)
    columns = {str(index.name): list(index)} if isinstance(getattr(index, "name", None), str) else {}  # type: ignore[union-attr,arg-type]
    columns |= {str(name): list(read[name]) for name in names}
    return columns or None


def _of_sequence(found: object) -> Columns | None:
    cells = _cells(found)
    if not cells:
        return None
    if all(isinstance(cell, Mapping) for cell in cells):
        return _of_rows(cells)
    return {LOSSES: cells} if all(number_of(cell) is not None for cell in cells) else None


def _of_rows(rows: Iterable[Any]) -> Columns | None:
    flat = [flattened(row) for row in rows]
    names = dict.fromkeys(name for row in flat for name in row)
    return {name: [row.get(name) for row in flat] for name in names} or None


def _cells(found: object) -> list[object] | None:
    """Return the entries of a list or of an array with one axis; None for everything else."""
    if isinstance(found, Sequence) and not isinstance(found, (str, bytes)):
        return list(found)
    as_list: Callable[[], object] | None = getattr(found, "tolist", None)
    if not callable(as_list) or isinstance(found, type) or len(getattr(found, "shape", ())) != 1:
        return None
    cells = as_list()
    return cells if isinstance(cells, list) else None
