"""From what was given to a comparison: opens, folds evidence in, pairs and runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from diffai_jupyter.analyses import MARKDOWN_FLAG, ON_DRAFT, REPORT_FLAG
from diffai_jupyter.checkpoint.model import Checkpoint
from diffai_jupyter.comparison.folders import FolderComparison
from diffai_jupyter.comparison.interrupted import NOT_COMPARED, Interrupted, partial_comparison
from diffai_jupyter.comparison.single import Comparison
from diffai_jupyter.errors import ArgumentError, DiffaiError, ExecutorError
from diffai_jupyter.facts.alignment.alignment import aligned
from diffai_jupyter.options import Request
from diffai_jupyter.readers import local_folder, open_checkpoint, release
from diffai_jupyter.readers.given import Given, given_by
from diffai_jupyter.readers.sources.folder import NoWeights
from diffai_jupyter.readers.sources.tree import Tree, are_same, left_out, list_tree, match
from diffai_jupyter.report.folders import FolderPair
from diffai_jupyter.scan.merging import reconcile
from diffai_jupyter.scan.pairing import Filters, pair_checkpoints
from diffai_jupyter.scan.run import Run
from diffai_jupyter.scan.workers.places import check_executor
from diffai_jupyter.wording import show_name

Tick = Callable[[str, int, int], None]


def run_comparison(
    a: object, b: object, request: Request, *, names: tuple[str, str] = ("", ""), tick: Tick | None = None
) -> Comparison:
    """Open, pair and compare two checkpoints.

    Parameters
    ----------
    a, b : path or live object
        The first and the second checkpoint.
    request : Request
        What to do.
    names : tuple of str
        Names of the variables that hold live objects.
    tick : callable, optional
        Called as ``tick(stage, done, total)``.

    Raises
    ------
    SourceError
        If a checkpoint cannot be read.
    ExecutorError
        If the workers of ``--executor`` cannot be reached, or do not finish.
    Interrupted
        If the user stops it; it holds a report of what was known by then.
    """
    given = given_by(request.settings)
    run = _run(request, tick)
    run.begin(request.settings["time_budget"])
    try:
        with run.watch.stage("open"):
            first, second = open_checkpoint(a, names[0]), open_checkpoint(b, names[1])
    except NoWeights:
        trees = _trees(a, b)
        if trees is None:
            raise
        comparison: Comparison = _compare_trees(*trees, request, given, tick)
    else:
        comparison = _compare_opened(first, second, request, given, run)
    finally:
        release()
    if MARKDOWN_FLAG in request.paths:
        comparison.to_markdown(request.paths[MARKDOWN_FLAG])
    if REPORT_FLAG in request.paths:
        comparison.to_files(request.paths[REPORT_FLAG])
    return comparison


def _run(request: Request, tick: Tick | None) -> Run:
    settings = request.settings
    executor = settings["executor"] and settings["executor"].value
    check_executor(executor, settings.source("executor"))
    return Run(executor=executor, workers=settings["workers"], tick=tick, verifies=settings["verify"])


def _compare_opened(
    first: Checkpoint, second: Checkpoint, request: Request, given: Given, run: Run
) -> Comparison:
    settings = request.settings
    filters = Filters(settings["path"] or "", settings["ignore_keys_regex"] or "")
    with run.watch.stage("pair"):
        first, second = given.fold(*reconcile(first, second))
        pair = pair_checkpoints(first, second, run, settings["epsilon"], filters)
    pair.steps, pair.evaluate, pair.deployment = given.steps, given.evaluate, given.deployment
    pair.is_spectral = settings["spectral"]
    if settings["align"]:
        pair = aligned(pair)
    if pair.left_out and not pair.tensors:
        msg = f"No tensor is left: {show_name(pair.left_out[0][1])} leaves out all {len(pair.left_out)}."
        raise ArgumentError(msg)
    try:
        return Comparison(pair, request)
    except KeyboardInterrupt:
        run.tick = None
        raise Interrupted(partial_comparison(pair, request), pair) from None
    finally:
        # Its facts can be asked for later, when whoever watched the progress has put something else in its place, and
        # nobody waits for the whole report.
        run.tick = run.seconds = None


def _trees(a: object, b: object) -> tuple[Tree, Tree] | None:
    """Return both sides as trees, if they are folders that hold checkpoints and are none as a whole."""
    folders = local_folder(a), local_folder(b)
    if folders[0] is None or folders[1] is None:
        return None
    first, second = list_tree(folders[0]), list_tree(folders[1])
    # A folder that is one checkpoint as a whole may still hold others.
    several = all(len(tree.units) > 1 or _is_no_whole(given) for tree, given in ((first, a), (second, b)))
    return (first, second) if several and first.units and second.units else None


def _is_no_whole(folder: object) -> bool:
    try:
        open_checkpoint(folder)
    except NoWeights:
        return True
    return False


def _compare_trees(a: Tree, b: Tree, request: Request, given: Given, tick: Tick | None) -> FolderComparison:
    """Compare the checkpoints of two trees pair by pair; one that cannot be read does not stop the others."""
    matched = match(a, b)
    of_each = replace(request, analyses=tuple(f for f in request.analyses if f not in ON_DRAFT), paths={})
    given = given.for_each(len(matched.pairs))
    children: dict[str, Comparison] = {}
    same, unread = [], []
    refusal: ArgumentError | None = None
    is_stopped = False
    budget, start = request.settings["time_budget"], time.monotonic()
    for i, (unit_a, unit_b) in enumerate(matched.pairs):
        name = unit_a.name if unit_a.name == unit_b.name else f"{unit_a.name} → {unit_b.name}"
        if is_stopped:
            unread.append((name, NOT_COMPARED))
            continue
        counted = tick and _counted(tick, f"{i + 1} of {len(matched.pairs)}")
        try:
            run = _run(request, counted)
            if budget is not None:
                # What is left, shared out evenly.
                run.begin(max(0.0, budget - (time.monotonic() - start)) / (len(matched.pairs) - i))
            children[name] = _compare_opened(a.open(unit_a), b.open(unit_b), of_each, given, run)
        except ArgumentError as error:
            # The filter leaves nothing of this pair: it was not asked about.
            refusal = error
        except ExecutorError:
            # It would be no better for the others.
            raise
        except KeyboardInterrupt:
            is_stopped = True
            unread.append((name, NOT_COMPARED))
        except DiffaiError as error:
            if are_same(a, unit_a, b, unit_b):
                same.append(name)
            else:
                unread.append((name, str(error)))
    if refusal is not None and not children:
        raise refusal
    reports = tuple(child.report for child in children.values())
    found = FolderPair(
        show_name(str(a.root)), show_name(str(b.root)), tuple(children), reports, tuple(same), tuple(unread),
        matched.only_a, matched.only_b, left_out(a, b),
        tuple(flag for flag in ON_DRAFT if flag in request.analyses and flag not in request.paths),
    )
    comparison = FolderComparison(found, children, request)
    if is_stopped:
        raise Interrupted(comparison if children else None)
    return comparison


def _counted(tick: Tick, which: str) -> Tick:
    return lambda stage, done, total: tick(f"{stage} ({which})", done, total)
