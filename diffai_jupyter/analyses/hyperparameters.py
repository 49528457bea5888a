"""How the training was set: learning rate, schedule, batch, and what they did to the loss."""

from __future__ import annotations

import math

from diffai_jupyter.contract.blocks import Align, Block, Column, Curve, Mark, Sentence, Series, Table
from diffai_jupyter.contract.declaration import TEXT, Field, Group, Reads, Thresholds, analysis
from diffai_jupyter.contract.result import Result
from diffai_jupyter.evidence import Evidence, Unknowable, Value, derived, if_known, ladder, unknown
from diffai_jupyter.facts.training.hyperparameters import (
    Setting,
    current_rate,
    fitted_schedule,
    named_schedule,
    rate_bound,
    rates_compared,
    settings_of,
)
from diffai_jupyter.facts.training.losses import losses
from diffai_jupyter.facts.training.runs import window
from diffai_jupyter.facts.training.schedules import LEAST_FIT, SCHEDULES
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.wording import Name, write_number

LISTED = 30
_ABOUT_THE_RUN = ("max_steps", "global_step", "epoch", "num_train_epochs", "total_flos", "num_input_tokens_seen")
_NOISE_SCALE = "gradient noise scale is lr * samples / (batch * (1 - momentum))"


@analysis(
    flag="hyperparameter-impact",
    group=Group.MLOPS,
    reads=Reads.HEADERS,
    fields=(
        Field(
            "lr_impact",
            "Learning rate",
            "decades",
            Evidence.REPORTED,
            "|log10(learning rate of B / that of A)|: the current ones within one run, the peaks of two runs",
            "{:.4f}",
        ),
        Field("batch_impact", "Batch", "decades", Evidence.REPORTED, "|log10(batch of B / batch of A)|", "{:.4f}"),
        Field("convergence", "Loss", "ratio", Evidence.MEASURED, "|loss of B - loss of A| / loss of A", "{:.4f}"),
    ),
    references=(
        "Smith & Le 2018; McCandlish et al. 2018 (gradient noise scale: learning rate over batch).",
        "Separability was tested on 183 trained networks: batch size leaves no usable trace in weights.",
    ),
)
def hyperparameter_impact(pair: Pair, thresholds: Thresholds) -> Result:
    """Compare hyperparameters and relate them to the change of the loss.

    Learning rate and batch are given in decades of the noise that training adds to the gradient, so that
    they compare: 0.3010 is a factor of two. The effect on the loss is not attributed to one of them when
    several differ.
    """
    values = {
        "lr_impact": ladder(lambda: _decades(*rates_compared(pair))),
        "batch_impact": ladder(lambda: _batches(pair)),
        "convergence": ladder(lambda: _loss_change(pair)),
    }
    settings = settings_of(pair)
    differing = [s for s in settings if s.differs and s.name not in _ABOUT_THE_RUN]
    return Result(
        values,
        _impact_meaning(values, differing),
        blocks=(*_caveat(values, differing), *_settings_table(settings)),
        assumptions=(_NOISE_SCALE,) if values["lr_impact"].is_known or values["batch_impact"].is_known else (),
    )


def _decades(a: Value, b: Value) -> Value:
    if a.value <= 0 or b.value <= 0:
        raise Unknowable("ZERO_REFERENCE", learning_rates=f"{a.value:g}, {b.value:g}")
    return _weaker(a, b, abs(math.log10(b.value / a.value)))


def _batches(pair: Pair) -> Value:
    a, b = pair.a.training.batch, pair.b.training.batch
    for side in (a, b):
        if not side.is_known:
            return unknown(side.reason or "NEEDS_SETTINGS", side.detail)
    return _weaker(a, b, abs(math.log10(b.value / a.value)))


def _loss_change(pair: Pair) -> Value:
    found = losses(pair)
    return found.as_value(abs(found.b - found.a) / found.a)


def _weaker(a: Value, b: Value, value: float) -> Value:
    evidence = max(a.evidence, b.evidence, key=lambda kind: kind.rank)
    return Value(value, evidence, a.source if a.source == b.source else f"A: {a.source}; B: {b.source}")


def _impact_meaning(values: dict[str, Value], differing: list[Setting]) -> Sentence:
    if not any(value.is_known for value in values.values()):
        return Sentence(
            "Learning rate and batch leave no separable trace in weights: nothing beside these checkpoints tells them."
        )
    parts = []
    if values["lr_impact"].is_known:
        parts.append(f"The learning rates differ by a factor of {10 ** values['lr_impact'].value:.4g}")
    if values["batch_impact"].is_known:
        parts.append(f"the batches by a factor of {10 ** values['batch_impact'].value:.4g}")
    if values["convergence"].is_known:
        parts.append(f"the losses by {values['convergence'].value:.2%}")
    text = ", ".join(parts)
    said: dict[str, object] = {"text": text[0].upper() + text[1:], "n": len(differing)}
    return Sentence("{text}; {n} of the settings that both state differ." if differing else "{text}.", said)


def _caveat(values: dict[str, Value], differing: list[Setting]) -> list[Block]:
    names = [setting.name for setting in differing]
    if len(names) > 1 or any("seed" in name for name in names):
        said = {"names": [Name(name) for name in names[:LISTED]]}
        return [Sentence("CONFOUNDED: the effect on the loss cannot be attributed, as {names} differ.", said)]
    if values["lr_impact"].is_known and values["lr_impact"].value and not names:
        return [Sentence("No other setting that both state differs; the order of the data is not compared.")]
    return []


def _settings_table(settings: tuple[Setting, ...]) -> list[Block]:
    if not settings:
        return []
    ordered = sorted(settings, key=lambda s: (not s.differs, s.a is None or s.b is None, s.name))
    return [
        Table(
            "Settings of the training",
            (Column("setting", Align.TEXT), Column("A"), Column("B"), Column("differs", Align.TEXT)),
            tuple((Name(s.name), _cell(s.a), _cell(s.b), "yes" if s.differs else "") for s in ordered[:LISTED]),
            total=len(ordered) if len(ordered) > LISTED else 0,
            note="As side-cars report them; an empty cell is not stated.",
        )
    ]


def _cell(value: object) -> Name | None:
    return None if value is None else Name(write_number(value) if isinstance(value, float) else str(value))


@analysis(
    flag="learning-rate-analysis",
    group=Group.MLOPS,
    reads=Reads.PASS,
    fields=(
        Field(
            "current_lr",
            "Learning rate at B",
            "learning rate",
            Evidence.REPORTED,
            "Largest of the parameter groups of the optimizer, else what the scheduler or the log says",
            "{:.6f}",
        ),
        Field(
            "schedule",
            "Schedule",
            TEXT,
            Evidence.REPORTED,
            f"Its name in a side-car, else the template that explains {LEAST_FIT:.1%} of the logged curve",
            words=SCHEDULES,
        ),
        Field(
            "effectiveness",
            "Loss removed",
            "share",
            Evidence.MEASURED,
            "max(0, 1 - loss of B / loss of A): what was removed while this learning rate was in use",
            "{:.4f}",
        ),
    ),
    references=(
        "Kingma & Ba 2015, Adam (size of a step); the bound used here follows from the Cauchy-Schwarz inequality.",
        "Over learning rates from 10^-2.5 to 10^2 times the best one, the share of loss removed peaks at the best one.",
    ),
)
def learning_rate_analysis(pair: Pair, thresholds: Thresholds) -> Result:
    """Read the learning rate and its schedule, and what the loss did under it.

    No learning rate is concluded from weights. Where the optimizer is of the Adam family and the number
    of steps is known, the displacement bounds it from below; that bound is shown beside.
    """
    values = {
        "current_lr": ladder(lambda: current_rate(pair.b)),
        "schedule": ladder(lambda: named_schedule(pair), lambda: _fitted(pair)),
        "effectiveness": ladder(lambda: _removed(pair)),
    }
    blocks: list[Block] = []
    for block in (_groups(pair), _bound(pair), _curve(pair, values)):
        if block is not None:
            blocks.append(block)
    return Result(values, _rate_meaning(pair, values), blocks=tuple(blocks))


def _fitted(pair: Pair) -> Value:
    found = fitted_schedule(pair)
    source = f"{found.points} learning rates of {pair.b.training.lr.source}, R² {found.r_squared:.6f}"
    if found.name == "custom":
        return derived("custom", f"no template explains {LEAST_FIT:.1%} of the logged curve", source)
    return derived(found.name, "the simplest template that fits the logged learning rates", source)


def _removed(pair: Pair) -> Value:
    found = losses(pair)
    return found.as_value(max(0.0, found.removed))


def _rate_meaning(pair: Pair, values: dict[str, Value]) -> Sentence:
    rate, schedule, removed = (values[key] for key in ("current_lr", "schedule", "effectiveness"))
    if not any(value.is_known for value in values.values()):
        return Sentence("No optimizer, scheduler or log was found: weights do not tell the learning rate.")
    parts = []
    if rate.is_known:
        parts.append(f"The learning rate at B is {write_number(rate.value)}")
    if schedule.is_known:
        parts.append(f"its schedule is {schedule.value}")
    if removed.is_known:
        loss = losses(pair)
        words = f"removed {removed.value:.2%} of the loss" if loss.removed > 0 else "did not lower the loss"
        between = "training between A and B" if window(pair).is_same_run else "B against A"
        parts.append(f"{between} {words} ({loss.name} {write_number(loss.a)} to {write_number(loss.b)})")
    text = ", ".join(parts)
    return Sentence("{text}.", {"text": text[0].upper() + text[1:]})


def _groups(pair: Pair) -> Table | None:
    state = pair.b.optimizer_state
    if state is None or not state.groups:
        return None
    keys = ("lr", "weight_decay", "betas", "momentum", "eps")
    shown = [key for key in keys if any(key in group.settings for group in state.groups)]
    return Table(
        "Parameter groups of the optimizer",
        (Column("group"), *(Column(key) for key in shown), Column("tensors")),
        tuple(
            (i + 1, *(_cell(group.settings.get(key)) for key in shown), len(group.ids))
            for i, group in enumerate(state.groups[:LISTED])
        ),
        total=len(state.groups) if len(state.groups) > LISTED else 0,
    )


def _bound(pair: Pair) -> Table | None:
    found = if_known(lambda: rate_bound(pair))
    if found is None:
        return None
    return Table(
        "What the displacement says of the mean learning rate",
        (Column("what", Align.TEXT), Column("learning rate"), Column("evidence", Align.TEXT)),
        (
            ("lower bound", found.lower, str(Evidence.DERIVED)),
            ("order of magnitude", found.guess, f"{Evidence.ESTIMATED} (0.7)"),
        ),
        note=f"Over {found.steps} steps of Adam; {found.assumption}.",
    )


def _curve(pair: Pair, values: dict[str, Value]) -> Series | None:
    log = pair.b.training.lr
    points = [(step, rate) for step, rate in log.value if math.isfinite(rate)] if log.is_known else []
    if len(points) < 2:
        return None
    at = window(pair)
    curves = [Curve("learning rate", tuple(float(s) for s, _ in points), tuple(rate for _, rate in points))]
    last = max(points, key=lambda point: point[1])
    schedule = values["schedule"].value if values["schedule"].is_known else "not known"
    for label, step in (("A", at.step_a), ("B", at.step_b)):
        if step is not None:
            nearest = min(points, key=lambda point: (abs(point[0] - step), point[0]))
            curves.append(Curve(label, (float(nearest[0]),), (nearest[1],)))
    return Series(
        "learning_rate",
        "Learning rate",
        Mark.LINE,
        tuple(curves),
        "step",
        "learning rate",
        Sentence(
            "The learning rate peaks at {peak:.3g} (step {step}); its schedule is {schedule}.",
            {"peak": last[1], "step": last[0], "schedule": schedule},
        ),
    )
