"""Training: stochastic gradient descent with momentum, and a log of what really happened."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from diffai_jupyter.cli.demo.network import Images, Labels, Parameters, evaluate, loss_and_gradient

TRAINING_DIGITS = 1200
BATCH = 32
MOMENTUM = 0.9
STEPS_PER_EPOCH = TRAINING_DIGITS // BATCH
LOG_EVERY = 10

LogEntry = dict[str, float | int]


@dataclass(frozen=True, slots=True)
class Digits:
    """Handwritten digits, split into those that are learned from and those that are held back."""

    images: Images
    labels: Labels
    held_images: Images
    held_labels: Labels

    def shifted(self) -> Digits:
        """Return the same digits, each moved one pixel to the right."""
        return replace(self, images=_shift(self.images), held_images=_shift(self.held_images))


@dataclass(frozen=True, slots=True)
class Plan:
    """How to train.

    Parameters
    ----------
    steps : int
        Minibatches in all.
    warmup : int
        Steps over which the learning rate rises to its peak; a half cosine then brings it to zero.
    peak : float
        Highest learning rate.
    seed : int
        Seed of the order of the digits.
    trained : tuple of str
        Beginnings of the names of the tensors that move; the others are frozen.
    evaluate_every : int
        Steps from one evaluation on the digits held back to the next.
    """

    steps: int
    warmup: int
    peak: float
    seed: int
    trained: tuple[str, ...] = ("layers.",)
    evaluate_every: int = 50

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 1."""
        if step <= self.warmup:
            return self.peak * step / self.warmup
        progress = (step - self.warmup) / (self.steps - self.warmup)
        return self.peak * (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True, slots=True)
class Moment:
    """The network at one step, with the log up to there."""

    step: int
    parameters: Parameters
    log: tuple[LogEntry, ...]
    plan: Plan


def load_digits() -> Digits:
    """Return the 8-by-8 digits that come with scikit-learn, with pixels in [0, 1]."""
    from sklearn import datasets

    bundled = datasets.load_digits()
    order = np.random.default_rng(0).permutation(len(bundled.target))
    images = (bundled.data[order] / 16).astype(np.float32)
    labels = bundled.target[order].astype(np.int64)
    cut = TRAINING_DIGITS
    return Digits(images[:cut], labels[:cut], images[cut:], labels[cut:])


def train(first: Parameters, digits: Digits, plan: Plan, keep: tuple[int, ...]) -> Iterator[Moment]:
    """Train, and yield the network at the steps to keep.

    The log holds what the Hugging Face trainer would write: every few steps the mean loss since the
    last entry, the learning rate and the global gradient norm of that step, and now and then the loss
    and the accuracy on the digits held back.
    """
    parameters = {name: value.copy() for name, value in first.items()}
    moving = [name for name in parameters if name.startswith(plan.trained)]
    velocity = {name: np.zeros_like(parameters[name]) for name in moving}
    log: list[LogEntry] = []
    losses: list[float] = []
    for step, batch in enumerate(_batches(plan), start=1):
        loss, gradient = loss_and_gradient(parameters, digits.images[batch], digits.labels[batch])
        losses.append(loss)
        for name in moving:
            velocity[name] = np.float32(MOMENTUM) * velocity[name] + gradient[name]
            parameters[name] -= np.float32(plan.rate(step)) * velocity[name]
        seen = {"step": step, "epoch": epoch(step)}
        if step % LOG_EVERY == 0:
            norm = math.sqrt(sum(float(np.square(gradient[name], dtype=np.float64).sum()) for name in moving))
            mean = math.fsum(losses) / len(losses)
            log.append({**seen, "loss": mean, "learning_rate": plan.rate(step), "grad_norm": norm})
            losses.clear()
        if step % plan.evaluate_every == 0:
            held_loss, accuracy = evaluate(parameters, digits.held_images, digits.held_labels)
            log.append({**seen, "eval_loss": held_loss, "eval_accuracy": accuracy})
        if step in keep:
            yield Moment(step, {name: value.copy() for name, value in parameters.items()}, tuple(log), plan)


def epoch(step: int) -> float:
    """Return how often every digit has been seen after a step."""
    return step / STEPS_PER_EPOCH


def _batches(plan: Plan) -> Iterator[NDArray[np.int64]]:
    """Yield the indices of each minibatch; an incomplete one at the end of an epoch is dropped."""
    random = np.random.default_rng(plan.seed)
    for step in range(plan.steps):
        place = step % STEPS_PER_EPOCH
        if place == 0:
            order = random.permutation(TRAINING_DIGITS)
        yield order[place * BATCH : (place + 1) * BATCH]


def _shift(images: Images) -> Images:
    square = images.reshape(-1, 8, 8)
    moved = np.zeros_like(square)
    moved[:, :, 1:] = square[:, :, :-1]
    return moved.reshape(images.shape)
