"""The network of the demo, trained with a learning rate of your choice; checkpoints lie in folders of their own."""

from __future__ import annotations

from pathlib import Path

from diffai_jupyter.cli.demo.checkpoints import SIZES, write_checkpoint
from diffai_jupyter.cli.demo.network import start
from diffai_jupyter.cli.demo.training import Plan, load_digits, train


def train_digits(folder: str, rate: float, steps: int = 900, keep: tuple[int, ...] = (150, 900)) -> None:
    """Train a network of 13,098 parameters on handwritten digits and keep some of its checkpoints.

    Parameters
    ----------
    folder : str
        Where ``checkpoint-150`` and so on are written, each with the log of the run up to there.
    rate : float
        Highest learning rate: reached after 50 steps, then brought back to zero along a half cosine.
    steps : int
        Steps of 32 digits each.
    keep : tuple of int
        Steps after which a checkpoint is written.
    """
    plan = Plan(steps=steps, warmup=50, peak=rate, seed=1, evaluate_every=20)
    for moment in train(start(SIZES, seed=0), load_digits(), plan, keep):
        write_checkpoint(Path(folder) / f"checkpoint-{moment.step}", moment.parameters, "F32", moment)
