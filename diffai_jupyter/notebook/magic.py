"""The magics ``%diffai`` and ``%%diffai``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from IPython.core.error import UsageError
from IPython.core.magic import Magics, line_cell_magic, magics_class, needs_local_scope, no_var_expand
from traitlets import Bool, Dict, Enum, Float, Int, TraitType, Unicode

from diffai_jupyter import __version__
from diffai_jupyter.arguments import NOTEBOOK_ONLY, Asked, Call, help_text, is_silenced, parse, split
from diffai_jupyter.comparison import Comparison, run_comparison
from diffai_jupyter.comparison.interrupted import Interrupted
from diffai_jupyter.comparison.shown import Shown
from diffai_jupyter.errors import ArgumentError, DiffaiError
from diffai_jupyter.notebook.display import Written, emit, emit_text, emit_written
from diffai_jupyter.notebook.panel import FixedPanel, is_terminal, made_panel
from diffai_jupyter.notebook.panel.place import Place
from diffai_jupyter.notebook.progress import ProgressCell
from diffai_jupyter.notebook.scope import Scope
from diffai_jupyter.notebook.summary_cell import insert_cell, summary_markdown
from diffai_jupyter.options import OPTIONS, Kind, Layer, Live, Request, Settings, check_option
from diffai_jupyter.render.progress import ProgressLine
from diffai_jupyter.report.configuration import configured
from diffai_jupyter.report.gate import gate_error
from diffai_jupyter.report.settings import settings_text

if TYPE_CHECKING:
    from diffai_jupyter.notebook.panel.live import Panel

CONFIGURED = (
    *("top", "sort_by", "ignore_keys_regex", "epsilon", "show_unchanged", "brief", "quiet", "workers", "executor"),
    *("time_budget", "context", "batch", "device", "report_type", "fail_on", "set"),
)


def _trait(key: str) -> TraitType:
    """Return an option as a trait of ``%config DiffAI``; None means that it is not set there."""
    option = OPTIONS[key]
    if option.kind is Kind.FLAG:
        trait = Bool(None, allow_none=True, help=option.help)
    elif option.kind is Kind.CHOICE:
        trait = Enum(option.choices, None, allow_none=True, help=option.help)
    elif option.kind in (Kind.INTEGER, Kind.NUMBER):
        number = Int if option.kind is Kind.INTEGER else Float
        trait = number(None, min=option.low, max=option.high, allow_none=True, help=option.help)
    elif option.kind is Kind.PAIRS:
        trait = Dict(None, allow_none=True, help=option.help)
    else:
        trait = Unicode(None, allow_none=True, help=option.help)
    return trait.tag(config=True)


@dataclass(frozen=True)
class _Last:
    """How the newest result of the magic is to be shown, if it is shown by the cell that made it."""

    identity: int
    cell: int
    handle: Any
    is_silent: bool


@magics_class
class DiffAI(Magics):  # type: ignore[misc]
    """Settings of ``%diffai``; a flag of a call wins over them, and they over the environment."""

    top = _trait("top")
    sort_by = _trait("sort_by")
    ignore_keys_regex = _trait("ignore_keys_regex")
    epsilon = _trait("epsilon")
    show_unchanged = _trait("show_unchanged")
    brief = _trait("brief")
    quiet = _trait("quiet")
    workers = _trait("workers")
    executor = _trait("executor")
    time_budget = _trait("time_budget")
    context = _trait("context")
    batch = _trait("batch")
    device = _trait("device")
    report_type = _trait("report_type")
    fail_on = _trait("fail_on")
    set = _trait("set")
    short_errors = Bool(True, help="Show errors without the traceback.").tag(config=True)

    _last: _Last | None = None

    @no_var_expand  # type: ignore[untyped-decorator]
    @needs_local_scope  # type: ignore[untyped-decorator]
    @line_cell_magic  # type: ignore[untyped-decorator]
    def diffai(self, line: str, cell: str | None = None, local_ns: Mapping[str, Any] | None = None) -> object:
        """Compare two checkpoints.

        Returns
        -------
        Comparison or Written or None
            The comparison, which the cell shows when the call is its last line; with ``--output`` the
            text in that form instead; nothing for ``--help`` and the like.
        """
        try:
            return self._run(line if cell is None else f"{line}\n{cell}", local_ns)
        except ArgumentError as error:
            if not self.short_errors:
                raise
            # IPython shows exactly this class, not one derived from it, without a traceback.
            raise UsageError(str(error)) from None
        except DiffaiError as error:
            if self.short_errors:
                said = f"{type(error).__name__}: {error}".splitlines()
                error._render_traceback_ = lambda: said[:3]  # type: ignore[attr-defined]
            raise

    # Read by `%diffai?` in place of the docstring; the text depends on the declared analyses.
    diffai.getdoc = help_text

    def show(self, result: Shown | Written | Panel | FixedPanel) -> None:
        """Show a result that is the value of a cell or is given to ``display``."""
        last, self._last = self._last, None
        if last is not None and (last.identity, last.cell) != (id(result), self.shell.execution_count):
            last = None
        if last is not None and last.is_silent:
            return
        handle = None if last is None else last.handle
        if not isinstance(result, (Shown, Written)):
            result.show()
        elif self._is_terminal():
            emit_text(result)
        elif isinstance(result, Written):
            emit_written(result)
        else:
            emit(result, handle)

    def _run(self, text: str, local: Mapping[str, Any] | None) -> object:
        scope = Scope(self.shell.user_ns, local)
        call = parse([scope.expand(word) for word in split(text)], below=self._below())
        self._refuse_in_terminal(call.request)
        if call.asked is Asked.PANEL:
            return made_panel(self.shell, _resolved(call.request, scope), (None, None), self.shell.user_ns)
        if call.asked is not Asked.COMPARISON:
            sys.stdout.write(_ANSWERS[call.asked](call))
            return None
        settings = call.request.settings
        is_silent = settings["quiet"] or is_silenced(text)
        (a, a_name), (b, b_name) = (scope.source(word) for word in call.sources)
        request = _resolved(call.request, scope)
        try:
            with ProgressLine(sys.stderr) if self._is_terminal() else ProgressCell() as progress:
                tick = None if is_silent else progress.tick
                comparison = run_comparison(a, b, request, names=(a_name, b_name), tick=tick)
        except Interrupted as stopped:
            self._keep_part(stopped.comparison, settings, is_silent)
            raise
        if settings["into"]:
            self.shell.user_ns[settings["into"]] = comparison
        if settings["summary_cell"]:
            insert_cell(self.shell, summary_markdown(comparison, settings["lang"]))
        form = settings["output"]
        result: Any = Written(comparison.written(form, is_fragment=True), form) if form else comparison
        if settings["panel"] and not form:
            sources = ((a, a_name), (b, b_name))
            result = made_panel(self.shell, request, sources, self.shell.user_ns, comparison)
            result.place = Place(progress.handle)
        self._last = _Last(id(result), self.shell.execution_count, progress.handle, is_silent)
        if comparison.failures:
            # The error ends the cell, so what it is about is shown first.
            self.show(result)
            raise gate_error(comparison.failures)
        return result

    def _keep_part(self, part: Comparison | None, settings: Settings, is_silent: bool) -> None:
        """Show, and store where that was asked for, what was known when the user interrupted the cell."""
        if part is None:
            return
        if settings["into"]:
            self.shell.user_ns[settings["into"]] = part
        if not is_silent:
            self.show(part)

    def _refuse_in_terminal(self, request: Request) -> None:
        for key, instead in NOTEBOOK_ONLY.items():
            if request.settings[key] and self._is_terminal():
                msg = f"The flag --{OPTIONS[key].flag} works in a notebook only. {instead}"
                raise ArgumentError(msg)

    def _is_terminal(self) -> bool:
        return is_terminal(self.shell)

    def _below(self) -> Iterator[Layer]:
        yield from configured()
        yield self._configured()

    def _configured(self) -> Layer:
        given = {key: getattr(self, key) for key in CONFIGURED}
        return "%config DiffAI.{key}", {key: value for key, value in given.items() if value not in (None, {})}


def _resolved(request: Request, scope: Scope) -> Request:
    """Return the request with what the names of variables in its options stand for."""
    settings = request.settings
    chosen = dict(settings)
    for key, value in settings.items():
        if isinstance(value, Live):
            chosen[key] = check_option(OPTIONS[key], scope.given(value, OPTIONS[key]), settings.source(key))
    return replace(request, settings=replace(settings, chosen=chosen))


_ANSWERS: Mapping[Asked, Callable[[Call], str]] = {
    Asked.HELP: lambda _: help_text(),
    Asked.VERSION: lambda _: f"diffai {__version__}\n",
    Asked.SETTINGS: lambda call: settings_text(call.request),
}
