"""What is left of a comparison that was interrupted: all that was known by then."""

from __future__ import annotations

from dataclasses import replace

from diffai_jupyter.comparison.single import Comparison
from diffai_jupyter.facts import known_already
from diffai_jupyter.facts.change.update_type import update_type
from diffai_jupyter.options import Request
from diffai_jupyter.report.writing import flags_run
from diffai_jupyter.scan.pair import Pair

NOT_COMPARED = "Interrupted before it was compared."


class Interrupted(KeyboardInterrupt):
    """The user stopped a comparison.

    Parameters
    ----------
    comparison : Comparison, optional
        A report of what was known by then; None where the tensors were not all read yet.
    pair : Pair, optional
        The pair, with every fact and every tensor that was finished: another comparison of it goes on from there.
    """

    def __init__(self, comparison: Comparison | None = None, pair: Pair | None = None) -> None:
        self.comparison, self.pair = comparison, pair
        super().__init__("The comparison was interrupted.")

    def _render_traceback_(self) -> list[str]:
        """Return what IPython shows: where the user's own interrupt hit tells nothing."""
        return [f"KeyboardInterrupt: {self}"]


def partial_comparison(pair: Pair, request: Request) -> Comparison | None:
    """Return a comparison of what is known of a pair; computes nothing that takes time.

    Parameters
    ----------
    pair : Pair
        As the interrupt left it.
    request : Request
        What was asked for; the gate is not judged.

    Returns
    -------
    Comparison or None
        With the analyses that were finished, and a warning that names the others. None where the kind of change
        is not known yet.
    """
    if known_already(pair, update_type) is None:
        return None
    run = {str(key[1]) for key in flags_run(pair)}
    done = tuple(flag for flag in request.analyses if flag in run)
    settings = replace(request.settings, chosen={**request.settings, "fail_on": None})
    found = Comparison(pair, replace(request, analyses=done, settings=settings, paths={}))
    left = ", ".join(f"--{flag}" for flag in request.analyses if flag not in run)
    said = f"Interrupted before everything was computed; missing: {left or 'the end of the report'}."
    coverage = replace(found.report.coverage, warnings=(said, *found.report.coverage.warnings))
    found.report = replace(found.report, coverage=coverage)
    return found
