"""What is shown and said of gradients, wherever they are judged."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from statistics import median

from diffai_jupyter.analyses.shown.pictures import BARS
from diffai_jupyter.checkpoint.optimizer import Setting
from diffai_jupyter.contract.blocks import (
    Align,
    Block,
    Cell,
    Column,
    Curve,
    Fact,
    Facts,
    Mark,
    Sentence,
    Series,
    Table,
)
from diffai_jupyter.evidence import REASONS, Unknowable, derived, measured
from diffai_jupyter.facts.change.changes import changes
from diffai_jupyter.facts.training.gradients import Gradient, Gradients, Source, depth, gradients
from diffai_jupyter.facts.training.instability import Explosion, Sign, growth, spike
from diffai_jupyter.facts.training.moments import nonfinite_moments
from diffai_jupyter.facts.training.runs import window
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.wording import Name, plural, some, write_number

LISTED, DISPLACED = 20, 10
SETTINGS = ("lr", "betas", "momentum", "dampening", "eps", "weight_decay")
EXPLODING_ACTION = "Go back to a checkpoint before it, clip gradients, lower the learning rate."
VANISHING_ACTION = "Use residual connections, normalization or other activations; a frozen layer does not count here."

Told = tuple[str, Mapping[str, object]]


def sign_told(pair: Pair, found: Explosion) -> Told:
    """Say what shows that gradients exploded."""
    if found.sign is Sign.NONFINITE:
        logged = spike(pair)
        said: dict[str, object] = {"n": logged.nonfinite, "step": logged.step, "logs": logged.logs}
        return "{n} of {logs} logged gradient norms are not finite, the first at step {step}.", said
    if found.sign is Sign.SPIKE:
        logged = spike(pair)
        said = {"norm": write_number(logged.value), "step": logged.step, "times": write_number(logged.times, 3)}
        return "The gradient norm reached {norm} at step {step}, {times} times its median and a new record.", said
    said = {"times": write_number(found.times, 3), "names": some(found.layers or (), 3)}
    if found.sign is Sign.GROWTH:
        return "Gradients between A and B were {times} times those before A, says the optimizer's state.", said
    return "The gradients of {names} are {times} times those of the median matrix.", said


def nonfinite_told(pair: Pair) -> Told:
    """Say that the optimizer's state holds NaN or infinity."""
    bad = nonfinite_moments(pair)
    said = {
        "n": plural(sum(moment.nan + moment.infinite for moment in bad), "NaN or infinite element"),
        "name": Name(bad[0].label),
        "moment": Name(bad[0].moment),
    }
    return "The optimizer's state of B holds {n}, the first in {moment} of {name}: the next step spreads them.", said


def not_looked_at(pair: Pair) -> tuple[str, ...]:
    """Name the checks of gradients for which nothing was found, each with what would settle it."""
    has_log, has_both = _knows(spike, pair), _knows(growth, pair)
    try:
        gradients(pair).thirds()
        missing = ""
    except Unknowable as miss:
        missing = miss.reason
    if missing == "NEEDS_OPTIM" and not has_log:
        reason = REASONS[missing]
        return (f"gradient_explosion and gradient_vanishing ({_clause(reason.sentence)}: {_clause(reason.remedy)})",)
    items = []
    if not has_log and not has_both:
        text = "no log of gradient norms, and no state of the optimizer of both: give a --history that logs grad_norm"
        items.append(f"gradient_explosion between A and B ({text})")
    if missing == "NEEDS_OPTIM":
        items.append("gradient_vanishing (a log does not tell layers apart: put optimizer.pt beside the weights)")
    elif missing:
        items.append(f"gradient_vanishing ({_clause(REASONS[missing].sentence)})")
    return tuple(items)


def _clause(sentence: str) -> str:
    """Return a sentence as part of another one; a capital that stands alone is a name."""
    first = sentence if sentence[1:2] == " " else sentence[0].lower() + sentence[1:]
    return first.rstrip(".")


def _knows(ask: Callable[[Pair], object], pair: Pair) -> bool:
    try:
        ask(pair)
    except Unknowable:
        return False
    return True


def blocks_of(pair: Pair) -> tuple[Block, ...]:
    """Return the tables and charts about gradients: those of the optimizer, of the log, and the displacement."""
    found: list[Block | None] = []
    if _knows(gradients, pair) and (known := gradients(pair)).source is not Source.DISPLACEMENT:
        found += [_summary(known), gradient_flow(known), _by_tensor(known), _frozen(known)]
    found += [_settings(pair), norm_curve(pair), displacement_by_layer(pair), _displaced(pair)]
    return tuple(block for block in found if block is not None)


def _summary(known: Gradients) -> Facts:
    elements = sum(gradient.elements for gradient in known.tensors)
    facts = [Fact("trained tensors", measured(len(known.tensors), known.file), "{}")]
    noise = [gradient.noise for gradient in known.tensors if gradient.noise is not None]
    if noise:
        total = math.fsum(noise)
        source = f"exp_avg_sq in {known.file}"
        mini = derived(math.sqrt(total), "a mean over the last thousand steps", source)
        facts.append(Fact("norm of mini-batch gradients", mini, "{:.4g}", "larger by the noise of the batch"))
        if total:
            share = derived(known.squares / total, "a steady gradient", source)
            facts.append(Fact("signal over noise", share, "{:.3g}", "1: all batches agree; near 0.05: noise alone"))
        if elements:
            bound = sum(gradient.below_epsilon for gradient in known.tensors) / elements
            said = "the gradient there is too small to matter to Adam"
            facts.append(Fact("elements bound by eps", measured(bound, source), "{:.2%}", said))
    return Facts(tuple(facts), "Gradients in the state of the optimizer")


def gradient_flow(known: Gradients) -> Series | None:
    """Draw the gradient of each matrix against its place in depth order."""
    matrices = known.matrices
    if len(matrices) < 2:
        return None
    most, least = max(matrices, key=lambda g: g.rms), min(matrices, key=lambda g: g.rms)
    return Series(
        "gradient_flow",
        "Gradient flow by depth",
        Mark.LINE,
        (Curve("B", tuple(float(i) for i in range(1, len(matrices) + 1)), tuple(g.rms for g in matrices)),),
        "matrix, in depth order",
        "root mean square of the gradient",
        Sentence(
            "{most} gets the largest gradient ({high:.3g} in its root mean square), {least} the smallest ({low:.3g}).",
            {"most": _name(most), "high": most.rms, "least": _name(least), "low": least.rms},
        ),
        is_log=True,
    )


def _by_tensor(known: Gradients) -> Table:
    total = known.squares
    has_noise = any(gradient.noise is not None for gradient in known.tensors)
    rows = [
        (
            _name(gradient), " x ".join(map(str, gradient.shape)), gradient.rms,
            100 * gradient.squares / total if total else None,
            *((gradient.signal, 100 * gradient.below_epsilon / max(1, gradient.elements)) if has_noise else ()),
        )
        for gradient in known.tensors
    ]  # fmt: skip
    titles = ["rms gradient", "% of the squared norm", *(("signal / noise", "% bound by eps") if has_noise else ())]
    return Table(
        "Gradient by tensor, in depth order",
        (Column("tensor", Align.TEXT), Column("shape", Align.TEXT), *(Column(title) for title in titles)),
        tuple(tuple(None if _is_nan(cell) else cell for cell in row) for row in _ends(rows)),
        total=len(rows) if len(rows) > LISTED else 0,
        note="The first and the last ones." if len(rows) > LISTED else "",
    )


def _ends(rows: list[tuple[Cell, ...]]) -> list[tuple[Cell, ...]]:
    """Return all rows, or as many from either end as are shown: the flow goes from one to the other."""
    half = LISTED // 2
    return rows if len(rows) <= LISTED else [*rows[:half], *rows[-half:]]


def _is_nan(cell: Cell) -> bool:
    return isinstance(cell, float) and math.isnan(cell)


def _name(gradient: Gradient) -> str:
    return Name(gradient.label) if gradient.is_named else gradient.label


def _frozen(known: Gradients) -> Sentence | None:
    if not known.frozen:
        return None
    said = {"n": plural(len(known.frozen), "tensor"), "names": some(known.frozen, 3)}
    return Sentence("{n} took no part in training and count as frozen, not as vanishing: {names}.", said)


def _settings(pair: Pair) -> Table | None:
    state = pair.b.optimizer_state
    shown = [key for key in SETTINGS if state is not None and any(key in group.settings for group in state.groups)]
    if state is None or not shown:
        return None
    return Table(
        "Settings of the optimizer of B",
        (Column("group"), Column("tensors"), *(Column(key) for key in shown)),
        tuple(
            (i, len(group.ids), *(_setting(group.settings.get(key)) for key in shown))
            for i, group in enumerate(state.groups[:LISTED], 1)
        ),
        total=len(state.groups) if len(state.groups) > LISTED else 0,
    )


def _setting(found: Setting) -> Cell:
    if isinstance(found, tuple):
        return ", ".join(f"{number:g}" for number in found)
    return Name(found) if isinstance(found, str) else found


def norm_curve(pair: Pair) -> Series | None:
    """Draw the logged gradient norm, with the places of A and B."""
    at = window(pair)
    log = at.log.grad_norms
    points = [(float(step), norm) for step, norm in log.value if math.isfinite(norm)] if log.is_known else []
    if len(points) < 2:
        return None
    curves = [Curve("gradient norm", tuple(step for step, _ in points), tuple(norm for _, norm in points))]
    for label, step in (("A", at.step_a), ("B", at.step_b)):
        if step is not None:
            nearest = min(points, key=lambda point: (abs(point[0] - step), point[0]))
            curves.append(Curve(label, nearest[:1], nearest[1:]))
    top = max(points, key=lambda point: point[1])
    said = {"top": top[1], "step": f"{top[0]:.0f}", "middle": median(norm for _, norm in points)}
    takeaway = Sentence("The logged gradient norm peaks at {top:.3g} (step {step}); its median is {middle:.3g}.", said)
    is_log = all(norm > 0 for _, norm in points)
    return Series(
        "gradient_norm", "Logged gradient norm", Mark.LINE, tuple(curves), "step", "gradient norm", takeaway, is_log
    )


def displacement_by_layer(pair: Pair) -> Series | None:
    """Draw how far the elements of each layer moved, in the order of the layers."""
    rows = [(layer, rms) for layer, rms, _ in _moved(pair) if rms > 0]
    if not rows:
        return None
    top = sorted(rows, key=lambda row: -row[1])[:BARS]
    shown = [row for row in rows if row in top]
    return Series(
        "displacement_by_layer",
        "Displacement by layer (not the gradient)",
        Mark.BAR,
        (Curve("B", tuple(Name(layer) for layer, _ in shown), tuple(rms for _, rms in shown)),),
        "layer" if len(shown) == len(rows) else f"layer (the {len(shown)} most displaced of {len(rows)})",
        "root mean square of B−A",
        Sentence(
            "{layer} was displaced most, by {rms:.3g} in the root mean square; this is no gradient.",
            {"layer": Name(top[0][0]), "rms": top[0][1]},
        ),
        is_log=True,
    )


def _displaced(pair: Pair) -> Table | None:
    rows = _moved(pair)
    if not any(rms for _, rms, _ in rows):
        return None
    return Table(
        "Displacement by layer: not the gradient",
        (Column("layer", Align.TEXT), Column("rms of B−A"), Column("elements")),
        tuple((Name(layer), rms, elements) for layer, rms, elements in rows[:DISPLACED]),
        total=len(rows) if len(rows) > DISPLACED else 0,
        note="Federated and meta-learning use A−B in place of a gradient. Adam moves every element about equally far.",
    )


def _moved(pair: Pair) -> list[tuple[str, float, int]]:
    """Return layer, root mean square of B - A, and elements, in depth order as far as names tell."""
    sums: dict[str, list[tuple[float, int]]] = {}
    for change in sorted(changes(pair), key=depth):
        if change.tensor.is_parameter and change.both is not None and change.both.finite:
            name = change.tensor.shown_name
            layer = name.rpartition(".")[0] or name
            sums.setdefault(layer, []).append((change.both.d_squares, change.both.finite))
    return [
        (layer, math.sqrt(math.fsum(squares for squares, _ in found) / count), count)
        for layer, found in sums.items()
        if (count := sum(elements for _, elements in found))
    ]
