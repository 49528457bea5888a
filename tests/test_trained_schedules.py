"""Schedules of torch and transformers, logged as trainers log them: the current rate exact, the schedule named."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from diffai_jupyter.facts.training.schedules import fit_schedule  # noqa: E402

pytestmark = pytest.mark.torch

END = 500


def built(name, optimizer):
    schedulers = torch.optim.lr_scheduler
    return {
        "constant": lambda: schedulers.LambdaLR(optimizer, lambda step: 1.0),
        "linear": lambda: schedulers.LinearLR(optimizer, 1.0, 0.1, total_iters=END),
        "cosine": lambda: schedulers.CosineAnnealingLR(optimizer, T_max=END, eta_min=1e-6),
        "exponential": lambda: schedulers.ExponentialLR(optimizer, 0.99),
        "step": lambda: schedulers.StepLR(optimizer, 100, 0.3),
        "polynomial": lambda: schedulers.PolynomialLR(optimizer, total_iters=END, power=2.0),
        "warmup_linear": lambda: schedulers.LambdaLR(
            optimizer, lambda step: step / 50 if step < 50 else (END - step) / (END - 50)
        ),
        "warmup_cosine": lambda: schedulers.SequentialLR(
            optimizer,
            [
                schedulers.LinearLR(optimizer, 0.01, 1.0, total_iters=50),
                schedulers.CosineAnnealingLR(optimizer, END - 50),
            ],
            milestones=[50],
        ),
    }[name]()


NAMES = (
    "constant", "linear", "cosine", "exponential", "step", "polynomial", "warmup_linear", "warmup_cosine",
)  # fmt: skip


@pytest.mark.parametrize("every", [1, 7, 10])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore")
def test_the_schedule_of_torch_is_named(name, every):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3e-3)
    scheduler = built(name, optimizer)
    log = []
    for step in range(1, END):
        optimizer.step()
        if step % every == 0:
            log.append((step, optimizer.param_groups[0]["lr"]))
        scheduler.step()
    assert fit_schedule(tuple(log)).name == name
