"""One panel: its controls, the session behind them, and the displays that it updates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from diffai_jupyter.comparison import Comparison
from diffai_jupyter.contract.blocks import Chart
from diffai_jupyter.errors import DiffaiError
from diffai_jupyter.notebook.panel.choice import Choice
from diffai_jupyter.notebook.panel.controls import Controls
from diffai_jupyter.notebook.panel.export import Export
from diffai_jupyter.notebook.panel.place import Place
from diffai_jupyter.notebook.panel.plain import WITHOUT_KERNEL
from diffai_jupyter.notebook.panel.recent import RECENT
from diffai_jupyter.notebook.panel.session import Look, Session, without
from diffai_jupyter.notebook.panel.view import MOST_CHARTS, View
from diffai_jupyter.notebook.panel.work import MainLoop, Work
from diffai_jupyter.options import Request
from diffai_jupyter.render.progress import Progress
from diffai_jupyter.scan.run import Tick
from diffai_jupyter.wording import plural, told

NO_STOP = "Stop is not possible here: this kernel computes in the thread that answers the controls."


class Panel:
    """Controls for a comparison, above displays that hold what is chosen.

    Parameters
    ----------
    base : Request
        What is chosen at first, and the settings and evidence that hold whatever is chosen.
    session : Session
        What is compared; it may be empty.
    texts : tuple of str
        What stands for A and B.
    variables : dict of str to object
        Variables of the notebook; that of ``--into`` follows the view.
    loop : MainLoop, optional
        The loop of the kernel.
    view : View
        The displays.

    Attributes
    ----------
    place : Place
        Where the controls go.
    """

    def __init__(
        self, base: Request, session: Session, texts: tuple[str, str], variables: dict[str, Any],
        loop: MainLoop | None = None, view: View | None = None,
    ) -> None:  # fmt: skip
        self._base, self._session, self._variables = base, session, variables
        self._view = View() if view is None else view
        self._work, self._export = Work(loop), Export()
        self.place = Place()
        self._look: Look | None = None
        self._next: Callable[[], None] | None = None
        self.controls = Controls(
            base, texts, variables, self._on_main(self.refresh), self._on_main(self.run), self._stop, self._write
        )
        if not self._work.can_stop:
            self.controls.stop.tooltip = NO_STOP
        self._offer()

    @property
    def comparison(self) -> Comparison | None:
        """The comparison that is shown, with everything that is chosen; None before the first."""
        return None if self._look is None else self._look.comparison

    def __repr__(self) -> str:
        shown = "Nothing is compared yet." if self.comparison is None else repr(self.comparison)
        return f"{WITHOUT_KERNEL}\n{shown}"

    def _ipython_display_(self) -> None:
        self.show()

    def show(self) -> None:
        """Display the controls and what is chosen."""
        self.place.put(self.controls.box._repr_mimebundle_())
        self._view.create()
        if self._look is not None:
            self._present(self._look, self.controls.choice)
        elif self._session.pair is not None:
            # In the cell itself, so that a notebook that is executed without a front end holds the view, too.
            choice = self.controls.choice
            look = replace(self._session.look(choice, _silent), said="Compared by the cell")
            self._present(look, choice, draws_now=True)

    def run(self) -> None:
        """Compare what stands for A and B, with what is chosen."""
        texts, choice = self.controls.texts, self.controls.choice

        def job(tick: Tick) -> Look:
            is_new = self._session.open(texts, choice, tick)
            look = self._session.look(choice, tick)
            return replace(look, said="Both checkpoints read") if is_new else look

        self._begin(job, choice, texts)

    def refresh(self) -> None:
        """Show what is chosen now; nothing that is known is computed again."""
        if self._session.pair is None:
            return
        choice = self.controls.choice
        self._begin(lambda tick: self._session.look(choice, tick), choice)

    def _begin(self, job: Callable[[Tick], Look], choice: Choice, texts: tuple[str, str] | None = None) -> None:
        if self._work.is_busy:
            # The newest choice wins. What the other one has found out by now is kept.
            self._next = lambda: self._begin(job, choice, texts)
            self._work.stop()
            return
        self.controls.stop.disabled = not self._work.can_stop
        self._say("Working …")
        progress = Progress(lambda text: self._work.post(lambda: self._tell_progress(text)))

        def done(look: Look) -> None:
            for text in texts or ():
                RECENT.add(text)
            self._offer()
            self._present(look, choice)

        self._work.start(job, progress, self._then(done), self._then(self._fail))

    def _then(self, act: Callable[[Any], None]) -> Callable[[Any], None]:
        """Return what ends a job: it acts, or begins the next job where the choice has changed since."""

        def end(what: Any) -> None:
            self.controls.stop.disabled = True
            following, self._next = self._next, None
            if following is not None:
                following()
                return
            try:
                act(what)
            except Exception as error:  # it would be lost in the loop of the kernel
                self._fail(error)

        return end

    def _present(self, look: Look, choice: Choice, draws_now: bool = False) -> None:
        wanted = [key for key in look.charts if key not in choice.hidden][:MOST_CHARTS]
        hidden = frozenset(look.charts) - set(wanted)
        charts = {key: look.charts[key] for key in wanted}
        self._look = look
        if self._base.settings["into"]:
            self._variables[self._base.settings["into"]] = look.comparison
        self._view.write(without(look.document, hidden))
        self.controls.offer_charts(look.charts, wanted)
        number = plural(len(look.comparison.report.results), "analysis", "analyses")
        listed = "" if choice.shown.is_empty else f" Listed and drawn: {choice.shown.words}."
        said = f"{look.said}. Shown: {number}.{listed}"
        self._draw(look, charts, said, draws_now)

    def _draw(self, look: Look, charts: Mapping[str, Chart], said: str, draws_now: bool) -> None:
        """Draw the charts one by one; between two of them the kernel answers the controls."""
        if look is not self._look:
            return
        waiting = self._view.waiting(charts)
        if not waiting:
            self._view.place(charts)
            self._say(said)
            return
        self._say(f"{said} Drawing: {plural(len(waiting), 'chart')} left.")
        self._view.draw(waiting[0])
        self._view.place(charts)
        if draws_now:
            self._draw(look, charts, said, draws_now)
        else:
            self._work.later(lambda: self._draw(look, charts, said, draws_now))

    def _fail(self, error: BaseException) -> None:
        if isinstance(error, KeyboardInterrupt):
            kept = "What was found out is kept, and the view is the one before." if self._look else ""
            if not kept and self._session.pair is not None:
                kept = "What was found out is kept: Run goes on from there."
            self._say(f"Stopped. {kept}")
        elif isinstance(error, DiffaiError):
            self._say(str(error))
        else:
            self._say(f"{type(error).__name__}: {error}")

    def _tell_progress(self, text: str) -> None:
        if self._work.is_busy:
            said = text.removeprefix("diffai: ")
            self._say(said[:1].upper() + said[1:])

    def _offer(self) -> None:
        self.controls.offer_tensors(self._session.layers, self._session.roles)
        for source in self.controls.sources:
            source.offer()

    def _stop(self) -> None:
        self._next = None
        self._work.stop()
        self._say("Stopping at the next step …")

    def _write(self, form: str) -> None:
        def write() -> None:
            path = self._export.path_for(form, self.controls.path.value)
            self.controls.path.value = path
            try:
                self._say(self._export.write(form, path, self.comparison))
            except (DiffaiError, OSError) as error:
                self._fail(error)

        self._work.post(write)

    def _on_main(self, act: Callable[[], None]) -> Callable[[], None]:
        """Return what acts in the main thread, whichever thread of the kernel answers the controls."""
        return lambda: self._work.post(act)

    def _say(self, text: str) -> None:
        self.controls.status.value = told(text, self._base.settings["lang"])


def _silent(stage: str, done: int, total: int) -> None:
    """Tell nobody how far it is."""
