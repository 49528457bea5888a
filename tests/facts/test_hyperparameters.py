"""Learning rates and settings against hand-made side-cars; the bound of Adam against its own worst case."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from diffai_jupyter.checkpoint.model import Checkpoint, Training
from diffai_jupyter.checkpoint.optimizer import OptimizerState, ParameterGroup
from diffai_jupyter.evidence import Unknowable, reported
from diffai_jupyter.facts.training import hyperparameters as facts
from diffai_jupyter.facts.training.losses import losses
from diffai_jupyter.readers.sources.live import open_live
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.scan.pairing import pair_checkpoints
from diffai_jupyter.scan.run import Run


def trained(arrays: object = None, source: str = "log", **known: object) -> Checkpoint:
    training = Training(**{key: reported(value, source) for key, value in known.items()})
    return replace(open_live(arrays or {"w": np.ones((4, 4), "f4")}), training=training)


def pair_of(a: Checkpoint, b: Checkpoint) -> Pair:
    return pair_checkpoints(a, b, Run())


def state(*rates: float, kind: str = "adam", **settings: object) -> OptimizerState:
    groups = tuple(ParameterGroup({"lr": rate, **settings}, (i,)) for i, rate in enumerate(rates))  # type: ignore[dict-item]
    return OptimizerState("optimizer.pt", kind, groups, ())


LOG = tuple((10 * i, 1e-3 / i) for i in range(1, 11))


def test_the_optimizer_is_believed_before_the_log() -> None:
    b = trained(step=50, lr=LOG)
    assert facts.current_rate(b).value == 1e-3 / 5
    with_state = replace(b, optimizer_state=state(1e-4, 3e-4))
    assert facts.current_rate(with_state).value == 3e-4
    assert facts.current_rate(with_state).source == "optimizer.pt, the largest of 2 groups"


def test_without_anything_no_rate_is_known() -> None:
    for ask in (facts.current_rate, facts.peak_rate):
        with pytest.raises(Unknowable, match="NEEDS_LR"):
            ask(trained())


def test_within_one_run_the_rates_in_use_are_compared_and_of_two_runs_the_peaks() -> None:
    one_run = pair_of(trained(step=20), trained(step=50, lr=LOG))
    a, b = facts.rates_compared(one_run)
    assert (a.value, b.value) == (1e-3 / 2, 1e-3 / 5)
    other = tuple((step, 10 * rate) for step, rate in LOG)
    a, b = facts.rates_compared(pair_of(trained(step=20, lr=LOG), trained(step=50, lr=other)))
    assert (a.value, b.value) == (1e-3, 1e-2)


def test_a_rate_that_was_set_is_the_peak() -> None:
    run = trained(lr=LOG, hyperparameters={"learning_rate": 5e-3})
    assert facts.peak_rate(run).value == 5e-3


def test_settings_of_both_sides_are_listed_and_compared() -> None:
    pair = pair_of(
        trained(hyperparameters={"seed": 1, "weight_decay": 0.1}, batch=32),
        trained(hyperparameters={"seed": 2, "weight_decay": 0.1}, optimizer="adamw"),
    )
    found = {s.name: (s.a, s.b, s.differs) for s in facts.settings_of(pair)}
    assert found == {
        "seed": (1, 2, True), "weight_decay": (0.1, 0.1, False), "batch": (32, None, False),
        "optimizer": (None, "adamw", False),
    }  # fmt: skip


def worst_case_of_adam(b1: float, b2: float, steps: int, lr: float) -> float:
    """Return the largest step that Adam can make: the gradients that attain the Cauchy-Schwarz bound."""
    ages = np.arange(steps)[::-1]
    gradients = (b1 / b2) ** ages
    m = v = 0.0
    for gradient in gradients:
        m, v = b1 * m + (1 - b1) * gradient, b2 * v + (1 - b2) * gradient**2
    return lr * m / math.sqrt(v)


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.9, 0.98), (0.9, 0.95)])
def test_the_bound_is_attained_by_the_worst_gradients(betas: tuple[float, float]) -> None:
    b1, b2 = betas
    lr = 1e-3
    largest = worst_case_of_adam(b1, b2, 400, lr)
    before = {"w": np.zeros((20, 20), "f8")}
    after = {"w": np.zeros((20, 20), "f8")}
    after["w"][3, 3] = largest
    a, b = trained(before, step=9), trained(after, step=10, optimizer="adam")
    b = replace(b, optimizer_state=state(lr, betas=betas, weight_decay=0.0))
    bound = facts.rate_bound(pair_of(a, b))
    assert bound.lower == pytest.approx(lr, rel=1e-3)
    assert bound.lower <= lr * (1 + 1e-9)
    assert bound.guess == pytest.approx(largest)
    assert bound.guess > lr  # the folk bound |B - A| <= lr * steps does not hold


def test_the_bound_needs_adam_and_steps() -> None:
    a, b = {"w": np.zeros((4, 4), "f4")}, {"w": np.ones((4, 4), "f4")}
    with pytest.raises(Unknowable, match="NEEDS_OPTIM"):
        facts.rate_bound(pair_of(trained(a), trained(b, optimizer="sgd")))
    with pytest.raises(Unknowable, match="NEEDS_STEPS"):
        facts.rate_bound(pair_of(trained(a), trained(b, optimizer="adamw")))
    given = replace(pair_of(trained(a), trained(b, optimizer="adamw")), steps=reported(100, "--steps"))
    assert facts.rate_bound(given).assumption == (
        "betas 0.9 and 0.999, the defaults; weight decay 0.01, the default"
    )


@pytest.mark.parametrize(
    ("name", "is_adam"),
    [("adamw_torch_fused", True), ("paged_adamw_8bit", True), ("bitsandbytes.optim.adamw.AdamW8bit", True),
     ("adam", True), ("adafactor", False), ("adamax", False), ("lion_8bit", False), ("sgd", False)],
)  # fmt: skip
def test_names_of_the_adam_family(name: str, is_adam: bool) -> None:
    a, b = {"w": np.zeros((4, 4), "f4")}, {"w": np.ones((4, 4), "f4")}
    pair = replace(pair_of(trained(a), trained(b, optimizer=name)), steps=reported(10, "--steps"))
    if is_adam:
        assert facts.rate_bound(pair).steps == 10
    else:
        with pytest.raises(Unknowable, match="NEEDS_OPTIM"):
            facts.rate_bound(pair)


def test_a_scheduler_tells_its_base_rates() -> None:
    assert facts.peak_rate(trained(lr=LOG, hyperparameters={"base_lrs": (1e-4, 2e-3)})).value == 2e-3


def test_what_the_user_gave_is_believed_before_the_optimizer() -> None:
    given = replace(trained(source="--lr", lr=((0, 0.5),)), optimizer_state=state(1e-3))
    assert facts.current_rate(given).value == 0.5


def test_a_single_bad_log_does_not_hide_the_loss_around_it() -> None:
    log = ((1, 3.0), (2, math.nan), (3, 2.0), (4, 1.0))
    found = losses(pair_of(trained(losses=log[:1]), trained(losses=log)))
    assert found.b == 2.0


def test_the_loss_of_an_evaluation_comes_before_that_of_training() -> None:
    train = tuple((i, 10.0 / i) for i in range(1, 101))
    evals = {"eval_loss": ((50, 2.0), (100, 1.0))}
    both = pair_of(trained(step=50), trained(step=100, losses=train, metrics=evals))
    assert (losses(both).name, losses(both).a, losses(both).b) == ("eval_loss", 2.0, 1.0)
    only = losses(pair_of(trained(step=50), trained(step=100, losses=train)))
    assert (only.a, only.b) == (10 / 50, 10 / 98)
    assert only.removed == pytest.approx(1 - 50 / 98)


@pytest.mark.parametrize(
    ("log", "reason"),
    [(((1, 1.0), (2, math.nan)), "ALL_NONFINITE"), (((1, 0.0), (2, 1.0)), "ZERO_REFERENCE")],
)
def test_a_loss_that_is_no_reference_is_no_loss(log: tuple[tuple[int, float], ...], reason: str) -> None:
    with pytest.raises(Unknowable, match=reason):
        losses(pair_of(trained(losses=log[:1]), trained(losses=log[1:])))
    with pytest.raises(Unknowable, match="NEEDS_LOSS"):
        losses(pair_of(trained(), trained()))
