"""The fields of a panel for the thresholds of the ticked analyses, read off their declarations."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import ipywidgets as widgets

from diffai_jupyter.analyses import all_analyses
from diffai_jupyter.contract.declaration import Threshold
from diffai_jupyter.notebook.panel.choice import LIMITS, Limit, limits_of
from diffai_jupyter.options import Request
from diffai_jupyter.wording import told

_SLIDER_STEPS = 200
_LABEL_WIDTH = "170px"


class LimitFields:
    """The thresholds of one analysis at a time, and what was moved in any.

    Parameters
    ----------
    base : Request
        What the thresholds are when nothing is moved.
    changed : callable
        Called when a threshold was moved.
    """

    def __init__(self, base: Request, changed: Callable[[], None]) -> None:
        self._base, self._changed = base, changed
        self._lang: str = base.settings["lang"]
        self._is_quiet = False
        self._fields: dict[str, tuple[Limit, Any]] = {}
        self.moved: dict[str, float] = {}
        self._of = widgets.Dropdown(description="Limits of", options=(), style={"description_width": "70px"})
        self._part = widgets.Dropdown(description="Part", options=(), style={"description_width": "40px"})
        self._reset = widgets.Button(description="Reset these", tooltip="Back to the defaults of what is shown")
        self._reset_all = widgets.Button(description="Reset all", tooltip="Back to the defaults of all analyses")
        self._none = widgets.Label("None of the ticked analyses has limits.")
        self._rows = widgets.VBox(())
        head = widgets.HBox((self._of, self._part, self._reset, self._reset_all), layout={"flex_flow": "row wrap"})
        self.box = widgets.VBox((head, self._none, self._rows))
        self._of.observe(lambda _: self._choose_analysis(), names="value")
        self._part.observe(lambda _: self._fill(), names="value")
        self._reset.on_click(lambda _: self._to_default(self._fields))
        self._reset_all.on_click(lambda _: self._to_default(self._all_fields()))

    def offer(self, flags: Iterable[str]) -> None:
        """Offer the thresholds of these analyses."""
        with_limits = [flag for flag in flags if all_analyses()[flag].thresholds]
        kept = self._of.value if self._of.value in with_limits else next(iter(with_limits), None)
        options = tuple((told(title_of(flag), self._lang), flag) for flag in with_limits)
        if self._of.options != options:
            # New options choose the first of them for a moment: the fields are not to be made for that.
            self._is_quiet = True
            self._of.options, self._of.value = options, kept
            self._is_quiet = False
        self._none.layout.display = "none" if with_limits else None
        self._reset.disabled = self._reset_all.disabled = not with_limits
        self._choose_part()

    def _choose_analysis(self) -> None:
        if not self._is_quiet:
            self._choose_part()

    def _choose_part(self) -> None:
        parts = limits_of(self._of.value, self._base) if self._of.value else {}
        if self._part.options != tuple(parts):
            self._part.options = tuple(parts)
        self._part.layout.display = None if len(parts) > 1 else "none"
        self._fill()

    def _fill(self) -> None:
        parts = limits_of(self._of.value, self._base) if self._of.value else {}
        limits = parts.get(self._part.value or LIMITS, ())
        if [limit.name for limit in limits] != list(self._fields):
            self._close()
            self._fields = {limit.name: (limit, self._field(limit)) for limit in limits}
            self._rows.children = [_row(limit, field, self._lang) for limit, field in self._fields.values()]
        self._is_quiet = True
        for name, (limit, field) in self._fields.items():
            field.value = _as_shown(limit.threshold, self.moved.get(name, limit.value))
        self._is_quiet = False

    def _close(self) -> None:
        for row in self._rows.children:
            for one in row.children:
                one.close()
            row.close()

    def _field(self, limit: Limit) -> Any:
        field = field_of(limit.threshold, self.moved.get(limit.name, limit.value))
        field.observe(lambda change: self._move(limit, change["new"]), names="value")
        return field

    def _move(self, limit: Limit, value: float) -> None:
        if self._is_quiet:
            return
        if float(value) == float(limit.value):
            self.moved.pop(limit.name, None)
        else:
            self.moved[limit.name] = float(value)
        self._changed()

    def _all_fields(self) -> dict[str, tuple[Limit, Any]]:
        parts = (part for flag in all_analyses() for part in limits_of(flag, self._base).values())
        return {limit.name: (limit, None) for part in parts for limit in part}

    def _to_default(self, fields: dict[str, tuple[Limit, Any]]) -> None:
        before = dict(self.moved)
        for name, (limit, _) in fields.items():
            if limit.value == limit.threshold.default:
                self.moved.pop(name, None)
            else:
                # A settings file or a flag says otherwise; the panel wins.
                self.moved[name] = float(limit.threshold.default)
        self._fill()
        if self.moved != before:
            self._changed()


def title_of(flag: str) -> str:
    """Return the name of an analysis for people."""
    return all_analyses()[flag].title


def field_of(threshold: Threshold, value: float) -> Any:
    """Return the control of a threshold: words to choose from, a slider over a unit range, else a number."""
    shared = {
        "description": threshold.key.rpartition(".")[2],
        "tooltip": f"{threshold.basis} Accepted: {threshold.accepted}.",
        "style": {"description_width": _LABEL_WIDTH},
        "layout": widgets.Layout(width="420px"),
    }
    if threshold.words:
        options = [(word, number) for number, word in enumerate(threshold.words)]
        return widgets.Dropdown(options=options, value=int(value), **shared)
    span = threshold.high - threshold.low
    bounds = {"min": threshold.low, "max": threshold.high, "value": value}
    # A slider that moves in steps of a two-hundredth does not reach what lies far below one.
    if span <= 1 and (value == threshold.low or value - threshold.low >= span / _SLIDER_STEPS):
        return widgets.FloatSlider(
            **bounds, step=span / _SLIDER_STEPS, readout_format=".3f", continuous_update=False, **shared
        )
    return widgets.BoundedFloatText(**bounds, **shared)


def _as_shown(threshold: Threshold, value: float) -> float | int:
    return int(value) if threshold.words else value


def _row(limit: Limit, field: Any, lang: str) -> Any:
    default = limit.threshold.shown(limit.threshold.default)
    shown = default if isinstance(default, str) else f"{default:g}"
    unit = "" if limit.threshold.words else f" {told(limit.threshold.unit, lang)}"
    return widgets.HBox((field, widgets.Label(f"{told('default', lang)} {shown}{unit}")))
