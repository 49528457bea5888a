"""The controls of a panel: they say what is chosen and tell when it changes; they hold no result."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ipywidgets as widgets

from diffai_jupyter.analyses import CHARTS_FLAG, all_analyses
from diffai_jupyter.contract.blocks import Chart
from diffai_jupyter.notebook.panel.choice import COMBINATIONS, Choice, choice_of, groups
from diffai_jupyter.notebook.panel.export import DEFAULT_PATH, Export
from diffai_jupyter.notebook.panel.language import translate
from diffai_jupyter.notebook.panel.limits import LimitFields, title_of
from diffai_jupyter.notebook.panel.plain import WITHOUT_KERNEL, bundle_of_line
from diffai_jupyter.notebook.panel.sources import SourceBox
from diffai_jupyter.options import OPTIONS, ORDERS, Request
from diffai_jupyter.report.listing import OUTSIDE, Filter
from diffai_jupyter.wording import show_name, told

_ORDER_NAMES = {
    "rel": "relative change", "abs": "norm of the change", "energy": "share of the change",
    "max": "largest element changed", "frac": "share of elements changed", "role_z": "unusual for its role",
}  # fmt: skip
_ANY = ("any", "")


class PanelBox(widgets.VBox):  # type: ignore[misc]
    """All controls as one, with a line of text where there is no kernel to answer them."""

    def _repr_mimebundle_(self, include: object = None, exclude: object = None, **more: Any) -> dict[str, Any]:
        return {**(super()._repr_mimebundle_(**more) or {}), **bundle_of_line(WITHOUT_KERNEL)}


class Controls:
    """The controls of one panel.

    Parameters
    ----------
    base : Request
        What is chosen at first.
    texts : tuple of str
        What stands for A and B at first.
    variables : mapping of str to object
        Variables of the notebook.
    changed : callable
        Called when something was chosen.
    run, stop : callable
        Called when their buttons are pressed.
    export : callable
        Called with the name of a form when its button is pressed.
    """

    def __init__(
        self, base: Request, texts: tuple[str, str], variables: Mapping[str, Any], changed: Callable[[], None],
        run: Callable[[], None], stop: Callable[[], None], export: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._changed, self._is_quiet = changed, False
        self._lang: str = base.settings["lang"]
        first = choice_of(base)
        self.sources = tuple(SourceBox(label, text, variables) for label, text in zip("AB", texts, strict=True))
        narrow = widgets.Layout(width="90px")
        self.run = widgets.Button(description="Run", button_style="primary", tooltip="Compare A and B", layout=narrow)
        self.stop = widgets.Button(description="Stop", disabled=True, tooltip="Stop at the next step", layout=narrow)
        self.status = widgets.Label("Choose A and B and press Run.")
        self.status.add_class("diffai-status")
        self.boxes = {flag: self._box(flag, flag in first.flags) for flag in all_analyses()}
        self.combinations = {name: _button(name, self._tick, flags) for name, flags in COMBINATIONS.items()}
        self.every = _button("All", self._tick, tuple(all_analyses()))
        self.none = _button("None", self._tick, ())
        self.limits = LimitFields(base, self._limit_moved)
        self._make_filters(first)
        self.charts = widgets.SelectMultiple(
            description="Charts", options=(), rows=8, layout=widgets.Layout(width="480px"),
            tooltip="Which charts are drawn; Ctrl adds one",
        )  # fmt: skip
        self.charts_note = widgets.Label("")
        self.path = widgets.Text(
            value=DEFAULT_PATH, description="Write to", layout=widgets.Layout(width="420px"), continuous_update=True
        )
        self.exports = {
            form: widgets.Button(description=form, layout=widgets.Layout(width="auto")) for form in Export.FORMS
        }
        for control in (*self.boxes.values(), self.layer, self.role, self.pattern, self.only_differences,
                        self.sort_by, self.top):  # fmt: skip
            control.observe(lambda _: self._tell(), names="value")
        self.charts.observe(lambda _: self._choose_charts(), names="value")
        self.run.on_click(lambda _: run())
        self.stop.on_click(lambda _: stop())
        for form, button in self.exports.items():
            button.on_click(lambda _, form=form: export(form))
        self._hidden: frozenset[str] = frozenset()
        self._offer_limits()
        self._note_charts()
        self.box = PanelBox(self._rows(), layout=widgets.Layout(width="auto"))
        with self.quiet():
            translate(self.box, self._lang)

    def _box(self, flag: str, is_ticked: bool) -> Any:
        return widgets.Checkbox(
            value=is_ticked, description=title_of(flag), indent=False, tooltip=all_analyses()[flag].summary,
            layout=widgets.Layout(width="auto"),
        )  # fmt: skip

    def _make_filters(self, first: Choice) -> None:
        style, narrow = {"description_width": "70px"}, widgets.Layout(width="230px")
        self.layer = widgets.Dropdown(description="Layer", options=[_ANY], style=style, layout=narrow)
        self.role = widgets.Dropdown(description="Role", options=[_ANY], style=style, layout=narrow)
        self.pattern = widgets.Text(
            description="Name", placeholder="regular expression", continuous_update=False, style=style,
            layout=widgets.Layout(width="320px"), tooltip="Searched for in the names of the tensors; Enter applies it",
        )  # fmt: skip
        self.only_differences = widgets.Checkbox(
            value=first.only_differences, description="Only differences", indent=False,
            layout=widgets.Layout(width="auto"),
        )  # fmt: skip
        self.sort_by = widgets.Dropdown(
            description="Order", options=[(_ORDER_NAMES.get(key, key), key) for key in ORDERS], value=first.sort_by,
            style=style, layout=widgets.Layout(width="290px"), tooltip=OPTIONS["sort_by"].help,
        )  # fmt: skip
        self.top = widgets.BoundedIntText(
            description="At most", value=first.top, min=OPTIONS["top"].low, max=OPTIONS["top"].high, style=style,
            layout=widgets.Layout(width="160px"), tooltip=OPTIONS["top"].help,
        )  # fmt: skip

    def _rows(self) -> tuple[Any, ...]:
        combinations = _row(widgets.Label("Tick"), self.every, self.none, *self.combinations.values())
        columns = widgets.GridBox(
            [_group(group.value, [self.boxes[flag] for flag in flags]) for group, flags in groups().items()],
            layout=widgets.Layout(grid_template_columns="repeat(auto-fill, minmax(230px, 1fr))", width="auto"),
        )
        filters = widgets.VBox((
            _row(self.layer, self.role, self.pattern),
            _row(self.sort_by, self.top, self.only_differences),
            widgets.Label("Filters choose what is listed and drawn; the analyses count all tensors."),
        ))  # fmt: skip
        charts = widgets.VBox((self.charts, self.charts_note))
        export = _row(self.path, *self.exports.values())
        parts = {
            "Analyses": widgets.VBox((combinations, columns)), "Limits": self.limits.box, "Tensors": filters,
            "Charts": charts, "Export": export,
        }  # fmt: skip
        self.parts = {name: _opener(name, part, is_open=name == "Analyses") for name, part in parts.items()}
        return (
            _row(*(source.widget for source in self.sources), self.run, self.stop),
            self.status,
            _row(widgets.Label("Show"), *self.parts.values()),
            *parts.values(),
        )

    @property
    def flags(self) -> frozenset[str]:
        """The analyses that are ticked."""
        return frozenset(flag for flag, box in self.boxes.items() if box.value)

    @property
    def texts(self) -> tuple[str, str]:
        """What stands for A and B."""
        a, b = self.sources
        return a.text, b.text

    @property
    def choice(self) -> Choice:
        """What is chosen."""
        return Choice(
            self.flags, dict(self.limits.moved), Filter(self.layer.value, self.role.value, self.pattern.value),
            self.only_differences.value, self.sort_by.value, self.top.value, self._hidden,
        )  # fmt: skip

    def offer_tensors(self, layers: Iterable[str], roles: Iterable[str]) -> None:
        """Offer the layers and roles that the checkpoints have."""
        with self.quiet():
            outside, anything = told("outside of the layers", self._lang), (told(_ANY[0], self._lang), _ANY[1])
            named = [(outside if layer == OUTSIDE else layer, layer) for layer in layers]
            for control, options in ((self.layer, named), (self.role, [(show_name(r), r) for r in roles])):
                wanted, kept = (anything, *options), control.value
                if control.options != wanted:
                    control.options = wanted
                    control.value = kept if any(value == kept for _, value in wanted) else ""

    def offer_charts(self, charts: Mapping[str, Chart], shown: Collection[str]) -> None:
        """Offer the charts there are, with those that are shown chosen."""
        with self.quiet():
            titles = [(_numbered(chart, charts), key) for key, chart in charts.items()]
            if self.charts.options != tuple(titles):
                self.charts.value = ()
                self.charts.options = titles
            self.charts.value = tuple(key for key in charts if key in shown)
        self._note_charts()

    def _note_charts(self) -> None:
        chosen, every = len(self.charts.value), len(self.charts.options)
        self.charts.disabled = not self.boxes[CHARTS_FLAG].value
        if self.charts.disabled:
            said = f"Tick '{title_of(CHARTS_FLAG)}' to draw charts."
        else:
            said = f"{chosen} of {every} charts are drawn."
        self.charts_note.value = told(said, self._lang)

    def _tick(self, flags: Collection[str]) -> None:
        with self.quiet():
            for flag, box in self.boxes.items():
                box.value = flag in flags
        self._tell()

    def _tell(self) -> None:
        if self._is_quiet:
            return
        self._offer_limits()
        self._note_charts()
        self._changed()

    def _offer_limits(self) -> None:
        self.limits.offer(flag for flag, box in self.boxes.items() if box.value)

    def _choose_charts(self) -> None:
        if not self._is_quiet:
            every = {key for _, key in self.charts.options}
            self._hidden = (self._hidden - every) | (every - set(self.charts.value))
            self._tell()

    def _limit_moved(self) -> None:
        if not self._is_quiet:
            self._changed()

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Set controls without telling of it."""
        before, self._is_quiet = self._is_quiet, True
        try:
            yield
        finally:
            self._is_quiet = before


def _button(name: str, tick: Callable[[Collection[str]], None], flags: Collection[str]) -> Any:
    said = ", ".join(title_of(flag) for flag in flags) if len(flags) <= len(COMBINATIONS) else ""
    button = widgets.Button(description=name, tooltip=said, layout=widgets.Layout(width="auto"))
    button.on_click(lambda _: tick(flags))
    return button


def _opener(name: str, part: Any, is_open: bool) -> Any:
    """Return a button that opens and closes a part of the panel; unlike an accordion, the keyboard reaches it."""
    button = widgets.ToggleButton(value=is_open, description=name, layout=widgets.Layout(width="auto"))
    part.layout.display = None if is_open else "none"
    button.observe(lambda change: setattr(part.layout, "display", None if change["new"] else "none"), names="value")
    return button


def _group(name: str, boxes: list[Any]) -> Any:
    title = widgets.Label(name, style={"font_weight": "bold"})
    return widgets.VBox((title, *boxes), layout=widgets.Layout(margin="0 8px 8px 0"))


def _row(*children: Any) -> Any:
    return widgets.HBox(children, layout=widgets.Layout(flex_flow="row wrap", align_items="center", width="auto"))


def _numbered(chart: Chart, charts: Mapping[str, Chart]) -> str:
    """Return the title of a chart, with a number where several have it."""
    alike = [key for key, other in charts.items() if other.title == chart.title]
    number = f" {alike.index(chart.key) + 1}" if len(alike) > 1 else ""
    return f"{show_name(str(chart.title))}{number}"
