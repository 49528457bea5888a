"""Where two checkpoints stand in a log, as a table of scenarios."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from builders import checkpoint_of, pair_of

from diffai_jupyter.checkpoint.model import Training
from diffai_jupyter.evidence import reported
from diffai_jupyter.facts.training.runs import Window, near, window
from diffai_jupyter.readers.given.history import EPOCHS, ROWS
from diffai_jupyter.scan.pairing import pair_checkpoints

STATE = "trainer_state.json"


def log(first: int, last: int, every: int = 10, scale: float = 1.0) -> tuple[tuple[int, float], ...]:
    return tuple((step, scale / step) for step in range(first, last + 1, every))


def run(
    step: int | None = None, losses: Any = (), source: str = STATE, assumption: str = "", **said: Any
) -> Training:
    """Return what a side-car or the user says of a training."""
    found = {name: reported(value, STATE) for name, value in said.items()}
    if step is not None:
        found["step"] = reported(step, STATE)
    if losses:
        found["losses"] = replace(reported(losses, source), assumption=assumption)
    return Training(**found)


def placed(a: Training, b: Training, steps: int | None = None) -> Window:
    weights = {"w": np.ones((2, 2))}
    pair = pair_checkpoints(checkpoint_of(weights, training=a), checkpoint_of(weights, training=b))
    if steps is not None:
        pair.steps = reported(steps, "--steps")
    return window(pair)


HISTORY = "--history log.csv"
ENDS_A, ENDS_B = "A is where its log ends", "B is where its log ends"
BEGINS = "A is where the log begins"
ONE_LOG, CONTINUES = "both belong to the run of the one log", "one log continues the other"

NOTHING, OLD, NEW = run(), run(500, log(10, 500)), run(1000, log(10, 1000))
OLD_STEP, NEW_STEP = run(500), run(1000)
GIVEN_LOG = run(None, log(10, 1000), HISTORY)

# what it is: A, B, --steps -> (step of A, step of B, one run?, steps between), what was assumed
SCENARIOS: dict[str, tuple[Training, Training, int | None, tuple[Any, ...], str]] = {
    "nothing is known": (NOTHING, NOTHING, None, (None, None, None, None), ""),
    "only --steps": (NOTHING, NOTHING, 50, (None, None, None, 50), ""),
    # One run: the log of the trainer holds that of the checkpoint before.
    "one run": (OLD, NEW, None, (500, 1000, True, 500), ""),
    "one run, swapped": (NEW, OLD, None, (1000, 500, True, -500), ""),
    "one run, steps not stated": (
        run(None, log(10, 500)), run(None, log(10, 1000)), None, (500, 1000, True, 500), f"{ENDS_B}; {ENDS_A}",
    ),
    "the same step twice": (OLD, OLD, None, (500, 500, True, 0), ""),
    # Resumed: the log goes on, or begins anew behind A.
    "resumed, one log": (OLD, run(1000, (*log(10, 520), *log(510, 1000))), None, (500, 1000, True, 500), ""),
    "resumed, own logs": (OLD, run(1000, log(510, 1000)), None, (500, 1000, True, 500), CONTINUES),
    "resumed much later": (OLD, run(2000, log(1510, 2000)), None, (500, 2000, None, 1500), ""),
    "resumed for longer": (
        run(500, log(10, 500), hyperparameters={"max_steps": 500}),
        run(900, log(10, 900), hyperparameters={"max_steps": 900}), None, (500, 900, True, 400), "",
    ),
    # Different runs.
    "other losses": (OLD, run(1000, log(10, 1000, scale=1.1)), None, (500, 1000, False, 500), ""),
    "other losses from one step on": (
        OLD, run(1000, (*log(10, 490), *log(500, 1000, scale=1.1))), None, (500, 1000, False, 500), "",
    ),
    "only the start is common": (
        run(500, ((0, 9.0), *log(10, 500))), run(1000, ((0, 9.0), *log(10, 1000, scale=2))), None,
        (500, 1000, False, 500), "",
    ),
    "logged at other steps": (OLD, run(1000, log(15, 1005)), None, (500, 1000, False, 500), ""),
    "other settings": (
        run(500, hyperparameters={"max_steps": 500}),
        run(900, log(10, 900), hyperparameters={"max_steps": 900}), None, (500, 900, False, 400), "",
    ),
    "rates differ": (
        run(20, log(10, 20), lr=((10, 0.1), (20, 0.1))), run(40, log(10, 40), lr=((10, 0.1), (20, 0.2))), None,
        (20, 40, False, 20), "",
    ),
    # Only one side has a log.
    "log of B": (OLD_STEP, NEW, None, (500, 1000, True, 500), ONE_LOG),
    "log of B, A before it": (run(100), run(1000, log(510, 1000)), None, (100, 1000, None, 900), ""),
    "log of B, A untrained": (run(0), NEW, None, (0, 1000, True, 1000), ONE_LOG),
    "log of B, A nowhere": (NOTHING, NEW, None, (None, 1000, None, None), ""),
    "log of A, B before its end": (NEW, OLD_STEP, None, (1000, 500, True, -500), ONE_LOG),
    "log of A, B behind it": (OLD, NEW_STEP, None, (500, 1000, None, 500), ""),
    # What the user says.
    "--steps back from B": (NOTHING, NEW, 300, (700, 1000, True, 300), ONE_LOG),
    "--steps back from the end of the log": (
        NOTHING, run(None, log(10, 1000)), 300, (700, 1000, True, 300), f"{ENDS_B}; {ONE_LOG}",
    ),
    "--steps on from A": (OLD_STEP, NOTHING, 300, (500, 800, None, 300), ""),
    "--steps on from A before the end of B's log": (
        OLD_STEP, run(None, log(10, 2000)), 300, (500, 800, True, 300), ONE_LOG,
    ),
    "--steps on from A's log": (run(None, log(10, 500)), NOTHING, 300, (500, 800, None, 300), ENDS_A),
    "--steps beyond the start": (NOTHING, run(100), 300, (None, 100, None, 300), ""),
    "--steps and other steps": (OLD_STEP, NEW_STEP, 300, (500, 1000, None, 300), ""),
    "--steps of swapped ones": (NEW_STEP, OLD_STEP, 300, (1000, 500, None, -300), ""),
    "--history": (NOTHING, GIVEN_LOG, None, (0, 1000, True, 1000), f"{ENDS_B}; {BEGINS}"),
    "--history of a part": (
        NOTHING, run(None, log(510, 1000), HISTORY), None, (500, 1000, True, 500), f"{ENDS_B}; {BEGINS}",
    ),
    "--history from step 0": (
        NOTHING, run(None, ((0, 9.0), *log(1, 9, 1)), HISTORY), None, (0, 9, True, 9), f"{ENDS_B}; {BEGINS}",
    ),
    "--history and steps": (OLD_STEP, run(1000, log(10, 2000), HISTORY), None, (500, 1000, True, 500), ""),
    "--history with --steps": (NOTHING, GIVEN_LOG, 400, (600, 1000, True, 400), ENDS_B),
    "--history of one row": (NOTHING, run(None, ((500, 1.0),), HISTORY), None, (None, 500, None, None), ENDS_B),
    "--history, rounded": (
        OLD, run(1000, tuple((step, float(f"{loss:.4g}")) for step, loss in log(10, 1000)), HISTORY), None,
        (500, 1000, True, 500), "",
    ),
    "--history of another run": (
        OLD, run(1000, log(10, 1000, scale=2), HISTORY), None, (500, 1000, False, 500), "",
    ),
    # Rows are no steps: what side-cars state cannot place the checkpoints among them.
    "rows": (
        OLD_STEP, run(1000, log(1, 30, 1), HISTORY, ROWS), None, (0, 30, True, None), f"{ROWS}; {BEGINS}; {ENDS_B}",
    ),
    "epochs with --steps": (
        NOTHING, run(None, log(4, 9, 1), HISTORY, EPOCHS), 700, (3, 9, True, 700), f"{EPOCHS}; {BEGINS}; {ENDS_B}",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenarios(name):
    a, b, steps, expected, assumption = SCENARIOS[name]
    found = placed(a, b, steps)
    assert (found.step_a, found.step_b, found.is_same_run, found.steps) == expected
    assert found.assumption == assumption


@pytest.mark.parametrize(
    ("a", "b", "is_of_a"),
    [
        (run(500, log(10, 500)), run(1000, log(10, 1000)), False),
        (run(1000, log(10, 1000)), run(500, log(10, 500)), True),
        (run(1000), run(500, log(10, 1000), HISTORY), False),
        (run(1000, log(10, 1000)), run(500, log(10, 1000), HISTORY), False),
        (run(1000, log(10, 1000)), run(500), True),
        (run(), run(), False),
    ],
)
def test_the_log_is_the_one_that_reaches_further(a, b, is_of_a):
    assert placed(a, b).log is (a if is_of_a else b)


def test_the_window_leaves_out_the_earlier_step_and_keeps_the_later_one():
    for steps in ((30, 60), (60, 30)):
        found = placed(run(steps[0]), run(steps[1], log(10, 100)))
        assert [step for step, _ in found.inside(reported(log(10, 100), STATE))] == [40, 50, 60]
    assert placed(run(), run()).inside(reported(log(10, 100), STATE)) == ()
    assert placed(run(30), run(60)).inside(run().losses) == ()


def test_a_log_of_rows_lies_inside_as_a_whole():
    found = placed(run(), run(None, log(1, 30, 1), HISTORY, ROWS))
    assert found.inside(found.log.losses) == log(1, 30, 1)
    assert not found.counts_steps


@pytest.mark.parametrize(
    ("step", "value"),
    [(100, 1.0), (149, 1.0), (150, 1.0), (151, 2.0), (350, 3.0), (351, None), (50, 1.0), (49, None), (250, 2.0)],
)
def test_near_is_at_most_half_an_interval_away_and_the_earlier_of_two(step, value):
    assert near(((100, 1.0), (200, 2.0), (300, 3.0)), step) == value


def test_near_takes_the_later_entry_of_a_step_and_one_alone_only_exactly():
    assert near(((100, 1.0), (200, 2.0), (200, 5.0)), 200) == 5.0
    assert near(((500, 1.0),), 500) == 1.0
    assert near(((500, 1.0),), 501) is None
    assert near((), 3) is None
    assert math.isnan(near(((5, math.nan),), 5) or 0)


def test_logs_that_are_not_finite_at_one_step_agree():
    losses = ((10, 1.0), (20, math.nan), (30, math.inf))
    assert placed(run(20, losses[:2]), run(30, losses)).is_same_run
    assert placed(run(20, losses[:2]), run(30, ((10, 1.0), (20, 0.5), (30, 0.4)))).is_same_run is False


def test_a_schedule_that_two_runs_share_does_not_confirm():
    rates = ((10, 0.1), (20, 0.1))
    a, b = run(25, log(5, 25), lr=rates), run(40, log(10, 40), lr=(*rates, (30, 0.1)))
    assert placed(a, b).is_same_run is False


def test_metrics_alone_place_and_tell_apart():
    a = run(100, metrics={"eval_loss": ((50, 2.0), (100, 1.0))})
    assert placed(a, run(150, metrics={"eval_loss": ((50, 2.0), (100, 1.0), (150, 0.5))})).is_same_run
    assert placed(a, run(150, metrics={"eval_loss": ((50, 2.0), (100, 1.5), (150, 0.5))})).is_same_run is False
    # One value, such as eval_results.json holds it, is no log.
    assert placed(run(100, metrics={"eval_loss": ((100, 2.0),)}), run(150, log(10, 150))).is_same_run


def test_no_tensor_is_read():
    pair = pair_of({"w": np.ones(2)}, {"w": np.ones(2)})
    assert window(pair).step_a is None
    assert pair.memory.keys() == {("diffai_jupyter.facts.training.runs", "window", (), ())}
