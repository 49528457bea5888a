"""A small multilayer perceptron in NumPy: what it computes, and its gradient."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.float32]
Labels = NDArray[np.int64]
Parameters = dict[str, NDArray[np.float32]]


def start(sizes: tuple[int, ...], seed: int) -> Parameters:
    """Return the parameters of an untrained network.

    Weights are drawn from a normal distribution with variance 2 / fan-in, biases are zero.
    Names and the shape (output, input) are those of a PyTorch ``Sequential`` of linear layers.

    References
    ----------
    He et al., Delving Deep into Rectifiers, 2015, section 2.2.
    """
    random = np.random.default_rng(seed)
    parameters: Parameters = {}
    for index, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        weight = random.standard_normal((fan_out, fan_in)) * np.sqrt(2 / fan_in)
        parameters[f"layers.{index}.weight"] = weight.astype(np.float32)
        parameters[f"layers.{index}.bias"] = np.zeros(fan_out, np.float32)
    return parameters


def evaluate(parameters: Parameters, images: Images, labels: Labels) -> tuple[float, float]:
    """Return the mean cross-entropy and the share of images that are named right."""
    logits = _activations(parameters, images)[-1]
    right = float(np.mean(logits.argmax(axis=1) == labels))
    return _cross_entropy(logits, labels), right


def loss_and_gradient(parameters: Parameters, images: Images, labels: Labels) -> tuple[float, Parameters]:
    """Return the mean cross-entropy over a batch and its gradient."""
    activations = _activations(parameters, images)
    logits = activations[-1]
    # The gradient of softmax cross-entropy is the probabilities, less one at the label.
    flow = np.exp(logits - logits.max(axis=1, keepdims=True))
    flow /= flow.sum(axis=1, keepdims=True)
    flow[np.arange(len(labels)), labels] -= 1
    flow /= np.float32(len(labels))
    gradient: Parameters = {}
    for index in reversed(range(len(parameters) // 2)):
        below = activations[index]
        gradient[f"layers.{index}.weight"] = flow.T @ below
        gradient[f"layers.{index}.bias"] = flow.sum(axis=0)
        if index:
            flow = (flow @ parameters[f"layers.{index}.weight"]) * (below > 0)
    return _cross_entropy(logits, labels), gradient


def _activations(parameters: Parameters, images: Images) -> list[NDArray[np.float32]]:
    """Return the input of every layer, then the logits."""
    activations = [images]
    last = len(parameters) // 2 - 1
    for index in range(last + 1):
        weight, bias = parameters[f"layers.{index}.weight"], parameters[f"layers.{index}.bias"]
        out = activations[-1] @ weight.T + bias
        activations.append(out if index == last else np.maximum(out, 0))
    return activations


def _cross_entropy(logits: NDArray[np.float32], labels: Labels) -> float:
    exact = logits.astype(np.float64)
    top = exact.max(axis=1)
    log_total = top + np.log(np.exp(exact - top[:, None]).sum(axis=1))
    return float(np.mean(log_total - exact[np.arange(len(labels)), labels]))
