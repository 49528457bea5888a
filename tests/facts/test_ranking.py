"""The order of tensors, against NumPy and SciPy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from builders import pair_of, transformer
from scipy.stats import median_abs_deviation

from diffai_jupyter.errors import SettingError
from diffai_jupyter.facts.change.changes import Status
from diffai_jupyter.facts.change.ranking import ranked, role_scores

State = dict[str, np.ndarray]


def moved(seed: int = 0) -> tuple[State, State]:
    """Return two states in which every tensor moved by another amount."""
    draw = np.random.default_rng(seed)
    a = transformer(layers=8, hidden=16, inner=24, vocab=20)
    b = {}
    for name, values in a.items():
        mask = draw.random(values.shape) < draw.uniform(0.2, 1)
        mask.flat[0] = True
        b[name] = (values + mask * draw.lognormal(-3, 1.5) * draw.normal(size=values.shape)).astype("f4")
    return a, b


MEASURES = {
    "rel": lambda a, d: np.linalg.norm(d) / np.linalg.norm(a),
    "abs": lambda a, d: np.linalg.norm(d),
    "energy": lambda a, d: (d * d).sum(),
    "max": lambda a, d: np.abs(d).max(),
    "frac": lambda a, d: np.count_nonzero(d) / d.size,
}


@pytest.mark.parametrize("key", MEASURES)
def test_order_is_that_of_numpy(key):
    a, b = moved()
    score = {name: MEASURES[key](a[name].astype("f8"), b[name].astype("f8") - a[name]) for name in a}
    order = [change.tensor.name for change in ranked(pair_of(a, b), key)]
    assert sorted(order) == sorted(a)
    scores = [score[name] for name in order]
    assert all(x >= y * (1 - 1e-12) for x, y in itertools.pairwise(scores))


def test_role_scores_are_those_of_scipy():
    a, b = moved()
    x = {n: np.log(np.linalg.norm(b[n].astype("f8") - a[n]) / np.linalg.norm(a[n].astype("f8"))) for n in a}
    scores = role_scores(pair_of(a, b))
    names = [f"model.layers.{i}.self_attn.q_proj.weight" for i in range(8)]
    values = np.array([x[name] for name in names])
    exact = (values - np.median(values)) / median_abs_deviation(values, scale="normal")
    assert [scores[name] for name in names] == pytest.approx(exact, rel=1e-4)
    # Roles with fewer than four changed tensors have no score.
    assert "lm_head.weight" not in scores
    assert "model.embed_tokens.weight" not in scores


def test_role_z_puts_the_outlier_of_a_role_first():
    draw = np.random.default_rng(0)
    a = transformer(layers=8, hidden=16, inner=24, vocab=20)
    size = {name: (1.0 if "mlp" in name else 0.001) * draw.uniform(0.9, 1.1) for name in a}
    outlier = "model.layers.3.self_attn.q_proj.weight"
    size[outlier] = 0.01
    b = {name: (v + size[name] * draw.normal(size=v.shape)).astype("f4") for name, v in a.items()}
    assert ranked(pair_of(a, b), "role_z")[0].tensor.name == outlier
    assert "mlp" in ranked(pair_of(a, b), "rel")[0].tensor.name


def test_structure_comes_first_and_equal_tensors_last():
    draw = np.random.default_rng(0)
    a = {name: draw.normal(size=(8, 8)).astype("f4") for name in ("equal", "cast", "changed", "rounded")}
    b = {
        "equal": a["equal"], "cast": a["cast"].astype("f8"), "changed": a["changed"] + 1,
        "rounded": np.nextafter(a["rounded"], np.float32(9)),
    }  # fmt: skip
    a |= {"small": np.ones((2, 2), "f4"), "shape": np.ones((9, 9), "f4")}
    b |= {"large": np.ones((20, 20), "f4"), "shape": np.ones((9, 8), "f4")}
    order = ranked(pair_of(a, b), "rel")
    names = ["large", "shape", "small", "changed", "rounded", "cast", "equal"]
    assert [change.tensor.shown_name for change in order] == names
    assert [change.status for change in order[3:]] == [
        Status.CHANGED,
        Status.ROUNDING,
        Status.CAST,
        Status.EQUAL,
    ]


@pytest.mark.parametrize("key", [*MEASURES, "role_z"])
def test_ties_go_by_name(key):
    a = {name: np.ones((4, 4), "f4") for name in ("c", "a", "b")}
    order = ranked(pair_of(a, {name: values * 2 for name, values in a.items()}), key)
    assert [change.tensor.name for change in order] == ["a", "b", "c"]


def test_change_from_zero_ranks_first_and_nan_does_not():
    a = {"zero": np.zeros((4, 4)), "one": np.ones((4, 4)), "nan": np.full((4, 4), np.nan)}
    b = {"zero": np.ones((4, 4)), "one": np.full((4, 4), 9.0), "nan": np.ones((4, 4))}
    assert [change.tensor.name for change in ranked(pair_of(a, b), "rel")] == ["zero", "one", "nan"]


def test_unknown_key_is_refused_with_the_known_ones():
    with pytest.raises(
        SettingError, match=r"'size' is no sort key. Choose one of rel, abs, energy, max, frac, role_z\."
    ):
        ranked(pair_of({}, {}), "size")
