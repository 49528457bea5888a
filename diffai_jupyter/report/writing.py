"""From a pair to a report: runs what was asked for and gathers what every report holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePath
from typing import Any

from diffai_jupyter.analyses import ON_DRAFT, all_analyses
from diffai_jupyter.checkpoint.model import Training
from diffai_jupyter.contract.declaration import Analysis, Reads
from diffai_jupyter.contract.report import Coverage, Report, Side
from diffai_jupyter.contract.result import Result
from diffai_jupyter.evidence import Unknowable, Value, unknown
from diffai_jupyter.facts import known_already
from diffai_jupyter.facts.change.changes import changes
from diffai_jupyter.facts.training.metrics import ignored_metrics, reported_metrics
from diffai_jupyter.options import Request
from diffai_jupyter.report.change import describe_change, describe_headers
from diffai_jupyter.report.remembered import kept_result
from diffai_jupyter.report.rows import pairing_rows, tensor_rows
from diffai_jupyter.report.settings import settings_of
from diffai_jupyter.report.time_budget import without_result
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.wording import listed, say, show_name

RESULT = "result"


def write_report(pair: Pair, request: Request) -> Report:
    """Run the analyses that read the checkpoints, and describe the change.

    When every analysis asked for reads headers only, nothing else is read; what was read before is told all the same.
    Results are remembered on the pair by their thresholds.
    """
    asked = [all_analyses()[flag] for flag in request.analyses if flag in all_analyses()]
    reads_values = _reads_values(asked, request) or known_already(pair, changes) is not None
    results = {
        analysis.flag: _run(analysis, pair, request) for analysis in asked if analysis.flag not in ON_DRAFT
    }
    change = describe_change(pair) if reads_values else describe_headers(pair)
    return Report(
        a=_side(pair, is_a=True),
        b=_side(pair, is_a=False),
        change=change,
        coverage=_coverage(pair, reads_values),
        tensors=tensor_rows(pair, request.settings["sort_by"]) if reads_values else (),
        analyses=tuple(asked),
        results=results,
        settings=settings_of(request, asked),
        pairing=_pairing(pair, reads_values) if request.settings["show_pairing"] else (),
    )


def _run(analysis: Analysis[Any], pair: Pair, request: Request) -> Result:
    thresholds = thresholds_of(analysis, request)

    def run() -> Result:
        with pair.run.watch.stage(analysis.flag):
            try:
                return analysis.run(pair, thresholds)
            except Unknowable as stopped:
                if stopped.reason != "TIME_BUDGET":
                    raise
                return without_result(analysis, stopped)

    def compute() -> Result:
        return kept_result(pair, analysis, thresholds, run)

    result: Result = pair.remember((RESULT, analysis.flag, tuple(thresholds.items())), compute)
    return result


def flags_run(pair: Pair) -> frozenset[tuple[object, ...]]:
    """Return the analyses that have been run on a pair, each with its thresholds."""
    return frozenset(key for key in pair.memory if isinstance(key, tuple) and key[0] == RESULT)


def _pairing(pair: Pair, reads_values: bool) -> tuple[tuple[str, str, str], ...]:
    return pairing_rows([change.tensor for change in changes(pair)] if reads_values else pair.tensors)


def thresholds_of(analysis: Analysis[Any], request: Request) -> dict[str, float]:
    """Return the thresholds of an analysis: what was set, else the defaults."""
    given = request.thresholds.get(analysis.flag, {})
    return {t.key: given[t.key][0] if t.key in given else t.default for t in analysis.thresholds}


def _reads_values(asked: list[Analysis[Any]], request: Request) -> bool:
    """Say whether tensors have to be read: not when only headers were asked about."""
    listing = request.settings["stats"] or request.settings["show_unchanged"]
    about_pair = [analysis for analysis in asked if analysis.flag not in ON_DRAFT]
    return bool(listing) or not about_pair or any(analysis.reads is not Reads.HEADERS for analysis in asked)


def _side(pair: Pair, is_a: bool) -> Side:
    checkpoint = pair.a if is_a else pair.b
    dtypes: dict[str, int] = {}
    for tensor in checkpoint.tensors.values():
        dtypes[tensor.dtype.name] = dtypes.get(tensor.dtype.name, 0) + tensor.size
    return Side(
        show_name(checkpoint.source),
        checkpoint.format,
        len(checkpoint.tensors),
        checkpoint.size,
        checkpoint.nbytes,
        dict(sorted(dtypes.items(), key=lambda item: (-item[1], item[0]))),
        (*(say(note.template, note.said) for note in checkpoint.notes), *(() if is_a else _ignored(pair))),
        _training(checkpoint.training, reported_metrics(pair, is_a)),
        tuple((PurePath(f.path).name, f.size, str(getattr(f, "digest", ""))) for f in checkpoint.files),
    )


def _ignored(pair: Pair) -> tuple[str, ...]:
    """Say once which metrics are ignored; they concern both sides."""
    names = ignored_metrics(pair)
    return (f"metrics that are ignored, as it is not known which way is better: {listed(names)}",) if names else ()


def _training(training: Training, metrics: Mapping[str, Value]) -> dict[str, Value]:
    """Return what is known of the training: the metrics of the checkpoint, else the last entry of each history."""
    found = {
        "step": training.step,
        "training loss": _last(training.losses),
        "learning rate": _last(training.lr),
    }
    if training.metrics.is_known:
        for name, history in training.metrics.value.items():
            found[name] = _last(replace(training.metrics, value=history))
    found |= metrics
    return {name: value for name, value in found.items() if value.is_known}


def _last(history: Value) -> Value:
    return (
        replace(history, value=history.value[-1][1])
        if history.is_known and history.value
        else unknown("NEEDS_LOSS")
    )


def _coverage(pair: Pair, reads_values: bool) -> Coverage:
    tensors = [change.tensor for change in changes(pair)] if reads_values else list(pair.tensors)
    not_compared = [(tensor.shown_name, tensor.reason) for tensor in tensors if tensor.reason]
    not_compared += [(name, f"left out by {refusal}") for name, refusal in pair.left_out]
    for side, checkpoint in (("A", pair.a), ("B", pair.b)):
        not_compared += [
            (name, f"promised by the index of {side}, in no file") for name in checkpoint.missing
        ]
    warnings = tuple(
        f"{side}: {say(note.template, note.said)}"
        for side, checkpoint in (("A", pair.a), ("B", pair.b))
        for note in checkpoint.notes
        if note.is_warning
    )
    both = [change.both for change in changes(pair) if change.both is not None] if reads_values else []
    return Coverage(
        len(both),
        len(tensors) + len(pair.left_out),
        sum(record.finite for record in both),
        tuple(not_compared),
        warnings,
    )
