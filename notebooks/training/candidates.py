"""Two candidates for one service: the network of the demo, trained on for a camera that sees digits a pixel aside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from diffai_jupyter.cli.demo.checkpoints import write_checkpoint
from diffai_jupyter.cli.demo.network import evaluate
from diffai_jupyter.cli.demo.training import Digits, Plan, load_digits, train


def train_on(source: str, folder: str, rate: float, keep_old_digits: bool) -> None:
    """Train a checkpoint on for 400 steps, on shifted digits alone or mixed with the old ones, and write it.

    Parameters
    ----------
    source, folder : str
        The checkpoint to begin with, and the folder of the new one.
    rate : float
        Highest learning rate.
    keep_old_digits : bool
        Whether every other digit is one as it was.
    """
    old, shifted = load_digits(), load_digits().shifted()
    mixed = replace(shifted, images=_every_other(shifted, old)) if keep_old_digits else shifted
    plan = Plan(steps=400, warmup=20, peak=rate, seed=3)
    weights = dict(load_file(Path(source) / "model.safetensors"))
    (moment,) = train(weights, mixed, plan, keep=(400,))
    write_checkpoint(Path(folder), moment.parameters, "F32", None)


def score(model: Mapping[str, NDArray[np.float32]]) -> dict[str, float]:
    """Return the accuracy on digits that were held back: as they always were, and a pixel aside."""
    parameters = {name: np.asarray(model[name], np.float32) for name in model}
    old, shifted = load_digits(), load_digits().shifted()
    return {
        "accuracy": evaluate(parameters, old.held_images, old.held_labels)[1],
        "shifted_accuracy": evaluate(parameters, shifted.held_images, shifted.held_labels)[1],
    }


def _every_other(one: Digits, other: Digits) -> NDArray[np.float32]:
    is_even = np.arange(len(one.images)) % 2 == 0
    return np.where(is_even[:, None], one.images, other.images)
