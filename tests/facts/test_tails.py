"""Which checkpoint was trained first, by the tails of its weights."""

from __future__ import annotations

import numpy as np
import pytest
from builders import pair_of
from scipy import stats
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

from diffai_jupyter.comparison import compare
from diffai_jupyter.contract.blocks import Facts
from diffai_jupyter.evidence import Evidence, Unknowable
from diffai_jupyter.facts.change.tails import tails

State = dict[str, np.ndarray]


def digits(seed: int) -> tuple[State, State]:
    """Train a perceptron, and return its weights after one and after eight epochs."""
    x, y = load_digits(return_X_y=True)
    net = MLPClassifier((96, 64), solver="adam", batch_size=64, random_state=seed)
    taken = []
    for _ in range(8):
        net.partial_fit(x / 16, y, classes=np.arange(10))
        taken.append({f"layers.{i}.weight": w.T.astype("f4") for i, w in enumerate(net.coefs_)})
    return taken[0], taken[-1]


def said(a: State, b: State):
    """Return the value of the line about the order, or None."""
    blocks = compare(a, b, change_summary=True)["change_summary"].blocks
    return next((block.facts[0].value for block in blocks if isinstance(block, Facts)), None)


@pytest.mark.parametrize("seed", range(3))
def test_the_earlier_checkpoint_of_a_training_is_named(seed):
    early, late = digits(seed)
    assert (said(early, late).value, said(late, early).value) == ("A", "B")
    assert said(early, late).evidence is Evidence.ESTIMATED


def test_kurtosis_is_that_of_scipy():
    early, late = digits(0)
    found = tails(pair_of(early, late))
    for side, state in ((found.a, early), (found.b, late)):
        about_zero = [stats.moment(w, order=4, axis=None, center=0) / np.mean(w**2.0) ** 2 for w in state.values()]
        assert side == pytest.approx(np.mean(about_zero), rel=5e-3)


def test_no_order_without_training():
    early, late = digits(0)
    for other in (dict(early), {n: w.astype("f2") for n, w in early.items()}, {n: 2 * w for n, w in early.items()}):
        assert said(early, other) is None
    with pytest.raises(Unknowable, match="INDEPENDENT"):
        tails(pair_of(late, {n: np.random.default_rng(3).permuted(w) for n, w in late.items()}))
