"""param-efficiency-analysis: what the line says, its tables, and what is unknown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from bank import noised
from builders import headers_of, pair_of, transformer

from diffai_jupyter.analyses import all_analyses
from diffai_jupyter.contract.blocks import Facts, Series, Severity, Table
from diffai_jupyter.contract.result import Result
from diffai_jupyter.evidence import Evidence
from diffai_jupyter.scan.pairing import pair_checkpoints
from diffai_jupyter.wording import say

State = Mapping[str, Any]
ANALYSIS = all_analyses()["param-efficiency-analysis"]


def result_of(a: State, b: State, **levels: float) -> Result:
    defaults = {threshold.key: threshold.default for threshold in ANALYSIS.thresholds}
    return ANALYSIS.run(pair_of(a, b), {**defaults, **levels})


def pruned(state: State, share: float) -> dict[str, np.ndarray]:
    """Zero the smallest share of every matrix but the embedding."""
    found = {}
    for name, values in state.items():
        is_matrix = values.ndim == 2 and "embed" not in name
        found[name] = np.where(np.abs(values) < np.quantile(np.abs(values), share), 0, values) if is_matrix else values
    return {name: values.astype("f4") for name, values in found.items()}


def squares_of(state: State) -> np.ndarray:
    """Return the squares of all elements of matrices that are no embedding, in rising order."""
    matrices = [v for name, v in state.items() if v.ndim == 2 and "embed" not in name]
    return np.sort(np.concatenate([np.square(v, dtype="f8").reshape(-1) for v in matrices]))


def table(result: Result, title: str) -> Table:
    return next(block for block in result.blocks if isinstance(block, Table) and block.title.startswith(title))


def test_equal_pair_needs_as_many_weights():
    state = transformer()
    result = result_of(state, dict(state))
    assert ANALYSIS.line(result).startswith("param_efficiency_analysis: efficiency_ratio=1.0000, utilization=1.00, ")
    assert [value.evidence for value in result.values.values()] == [
        Evidence.DERIVED, Evidence.MEASURED, Evidence.DERIVED,
    ]  # fmt: skip
    assert not result.findings


def test_half_pruned_copy_needs_half_of_the_weights():
    state = transformer()
    result = result_of(state, pruned(state, 0.5))
    values = {key: value.value for key, value in result.values.items()}
    matrices = [v for name, v in pruned(state, 0.5).items() if v.ndim == 2 and "embed" not in name]
    zeros = sum(np.count_nonzero(v == 0) for v in matrices)
    elements = sum(v.size for v in state.values())
    assert values["utilization"] == 1 - zeros / elements
    # What is left begins at the median: 0.5 % of the energy is a few weights more than the half.
    assert 0.50 < values["pruning_potential"] < 0.53
    before = result_of(state, dict(state)).values["pruning_potential"].value
    assert values["efficiency_ratio"] == pytest.approx((1 - values["pruning_potential"]) / (1 - before))
    assert [finding.severity for finding in result.findings] == [Severity.NOTICE]


def test_interval_holds_the_value():
    result = result_of(transformer(), noised(transformer(), 0.5))
    for key in ("efficiency_ratio", "pruning_potential"):
        value = result.values[key]
        assert value.interval is not None
        assert value.interval[0] <= value.value <= value.interval[1]
        assert value.interval[1] - value.interval[0] < 0.01


def test_energy_is_the_setting():
    state = transformer()
    values = squares_of(state)
    for energy in (0.0, 0.01, 0.2):
        potential = result_of(state, dict(state), prune_energy=energy).values["pruning_potential"]
        exact = np.count_nonzero(np.cumsum(values) <= energy * values.sum()) / values.size
        assert potential.value == pytest.approx(exact, abs=0.001)
        assert f"{100 * energy:.3g} % of the sum of squares" in potential.assumption


def test_sentence_says_what_the_number_is_not():
    result = result_of(transformer(), transformer(seed=1))
    said = say(result.meaning.template, result.meaning.said)
    for part in ("lower bound", "one shot, without fine-tuning", "weight energy, not about accuracy", "0.50%"):
        assert part in said


def test_tables_hold_the_parts_the_energy_and_the_matrices():
    a = transformer()
    b = {name: values.copy() for name, values in a.items()}
    b["model.layers.1.mlp.up_proj.weight"][:7] = 0
    b["model.layers.2.mlp.up_proj.weight"][0, 0] = np.nan
    b["model.layers.0.mlp.down_proj.weight"] *= np.float32(0.01)
    b["lm_head.weight"] = b["model.embed_tokens.weight"].copy()
    result = result_of(a, b)
    parts = {row[0]: row[1:] for row in table(result, "Elements that cannot matter").rows}
    assert parts["exact zeros"][2] == parts["… of these in rows or columns of zeros"][2] == 7 * 64
    assert parts["NaN and infinities"][2] == 1
    assert parts["copies of another tensor"][2] == 96 * 64
    assert parts["in all"][::2] == (0, 7 * 64 + 1 + 96 * 64)
    matrices = table(result, "Matrices of B")
    assert matrices.rows[0][0] == "model.layers.0.mlp.down_proj.weight"
    assert matrices.rows[0][3] == 100.0
    assert matrices.total == 21
    energy = {row[0]: row[1:] for row in table(result, "Energy").rows}
    squares = squares_of(a)
    for share, title in ((0.2, "20%"), (0.5, "50%")):
        exact = squares[: round(share * squares.size)].sum() / squares.sum()
        assert energy[title][0] == pytest.approx(100 * exact, rel=0.01)
    (curve,) = [block for block in result.blocks if isinstance(block, Series)]
    assert [part.label for part in curve.curves] == ["A", "B"]
    assert any("several names" in finding.template for finding in result.findings)


def test_two_of_four_is_told_with_how_many_matrices():
    a = transformer()
    fours = a["model.layers.0.mlp.up_proj.weight"].reshape(-1, 4).copy()
    fours[:, :2] = 0
    result = result_of(a, {**a, "model.layers.0.mlp.up_proj.weight": fours.reshape(160, 64)})
    (facts,) = [block for block in result.blocks if isinstance(block, Facts)]
    assert [fact.value.value for fact in facts.facts] == [0, 1]
    assert "of 22 matrices" in facts.facts[1].note


def test_units_that_never_fire_are_left_to_a_run():
    result = result_of(transformer(), transformer())
    assert len(result.unreached) == 1
    assert "runs" in result.unreached[0] or "run of the model" in result.unreached[0]


@pytest.mark.parametrize(
    ("a", "b", "reasons"),
    [
        ({}, {"w": np.ones((9, 9))}, ("NO_TARGET", None, None)),
        ({"w": np.ones((9, 9))}, {}, ("NO_TARGET", "NO_TARGET", "NO_TARGET")),
        ({"w": np.zeros((9, 9))}, {"w": np.ones((9, 9))}, ("ZERO_REFERENCE", None, None)),
        ({"w": np.ones((9, 9))}, {"fc.qweight": np.zeros((4, 4), "i4")}, ("NOT_DEQUANTIZABLE",) * 3),
        ({"b": np.ones(9)}, {"b": np.ones(9)}, ("NO_TARGET", None, "NO_TARGET")),
    ],
)
def test_what_cannot_be_known_says_why(a, b, reasons):
    result = result_of(a, b)
    assert tuple(value.reason for value in result.values.values()) == reasons
    assert say(result.meaning.template, result.meaning.said)


def test_quantized_copy_is_named_as_such():
    a = transformer()
    b = {}
    for name, values in a.items():
        step = np.abs(values).max() / 7
        b[name] = (np.round(values / step) * step).astype("f4") if values.ndim == 2 else values
    assert any("quantized copy" in assumption for assumption in result_of(a, b).assumptions)


def test_reads_values():
    shapes = {"w": (8, 8)}
    pair = pair_checkpoints(headers_of(shapes), headers_of(shapes))
    with pytest.raises(AssertionError, match="was read"):
        ANALYSIS.run(pair, {"prune_energy": 0.005, "useless_share": 0.05})
