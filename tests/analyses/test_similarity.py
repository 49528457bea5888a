"""similarity-matrix: what the line says, its heatmap and tables, and what is unknown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from bank import noised
from builders import pair_of, transformer

from diffai_jupyter.analyses import all_analyses
from diffai_jupyter.contract.blocks import Facts, Matrix, Severity, Table
from diffai_jupyter.contract.result import Result
from diffai_jupyter.evidence import Evidence
from diffai_jupyter.wording import say

State = Mapping[str, Any]
ANALYSIS = all_analyses()["similarity-matrix"]


def result_of(a: State, b: State, edge: float = 0.1) -> Result:
    return ANALYSIS.run(pair_of(a, b), {"cka_edge": edge})


def meaning(result: Result) -> str:
    return say(result.meaning.template, result.meaning.said)


def table(result: Result, title: str) -> Table:
    return next(block for block in result.blocks if isinstance(block, Table) and block.title == title)


def heatmap(result: Result) -> Matrix:
    return next(block for block in result.blocks if isinstance(block, Matrix))


def permuted(state: State, seed: int = 3) -> dict[str, np.ndarray]:
    """Put the hidden units of every feed-forward part in another order, which changes no output."""
    found = dict(state)
    for name in state:
        if "up_proj" in name:
            order = np.random.default_rng(seed).permutation(len(state[name]))
            gate, down = name.replace("up_proj", "gate_proj"), name.replace("up_proj", "down_proj")
            found |= {name: state[name][order], gate: state[gate][order], down: state[down][:, order]}
    return found


def swapped(state: State, one: int, other: int) -> dict[str, np.ndarray]:
    """Exchange two blocks."""
    found = dict(state)
    for name, values in state.items():
        for here, there in ((one, other), (other, one)):
            if f".layers.{here}." in name:
                found[name.replace(f".layers.{here}.", f".layers.{there}.")] = values
    return found


def test_equal_pair_is_alike():
    state = transformer()
    result = result_of(state, dict(state))
    assert ANALYSIS.line(result).startswith("similarity_matrix: matrix_dims=15x15, clustering_coeff=")
    assert [value.evidence for value in result.values.values()] == [
        Evidence.MEASURED, Evidence.DERIVED, Evidence.DERIVED,
    ]  # fmt: skip
    assert all("white input" in result.values[key].assumption for key in ("clustering_coeff", "sparsity"))
    assert meaning(result) == "All 15 layers that both have read their input alike."
    assert not result.findings
    cells = heatmap(result).cells
    assert [cells[at][at] for at in range(15)] == [1.0] * 15
    assert cells == tuple(zip(*cells, strict=True))
    assert [block.title for block in result.blocks if isinstance(block, Table)] == []


def test_the_layer_that_changed_most_is_named_and_stands_first():
    state = transformer()
    name = "model.layers.1.self_attn.v_proj.weight"
    changed = {**noised(state, 0.05), name: noised(state, 1.0)[name]}
    result = result_of(state, changed)
    assert "model.layers.1.self_attn.v_proj changed most" in meaning(result)
    rows = table(result, "Layers that changed most").rows
    assert rows[0][0] == "model.layers.1.self_attn.v_proj"
    assert rows[0][1] < 0.6 < 0.99 < rows[1][1]
    assert len(rows) == 15


def test_low_cosine_beside_high_similarity_tells_permuted_units():
    state = transformer()
    result = result_of(state, permuted(state))
    rows = table(result, "Layers that changed most").rows
    assert sorted(row[0].rpartition(".")[2] for row in rows) == ["gate_proj"] * 3 + ["up_proj"] * 3
    for _, similarity, cosine in rows:
        assert similarity == pytest.approx(1, abs=1e-9)
        assert abs(cosine) < 0.1


def test_independent_networks_are_told_as_such():
    result = result_of(transformer(seed=0, hidden=128), transformer(seed=1, hidden=128))
    assert meaning(result).startswith("Layers of B are hardly more like their counterparts in A than unrelated ones")
    assert result.values["sparsity"].value == 1.0
    assert result.values["clustering_coeff"].value < 0.02
    assert not result.findings


def test_exchanged_blocks_are_found():
    state = transformer()
    result = result_of(state, swapped(state, 0, 2))
    assert [finding.severity for finding in result.findings] == [Severity.NOTICE]
    said = say(result.findings[0].template, result.findings[0].said)
    assert said.startswith("10 of 15 layers are more like another layer of B than like their own: model.layers.")
    assert not result_of(state, swapped(state, 0, 2), edge=1.0).findings


def test_an_estimate_comes_with_its_interval():
    state = transformer(layers=2, hidden=288, inner=64)
    shared = np.random.default_rng(5).normal(size=(64, 288)) / 17
    alike = [name for name in state if "gate" in name or "up" in name]
    mixed = {**state, **{name: state[name] + shared.astype("f4") for name in alike}}
    result = result_of(mixed, noised(mixed, 0.3))
    clustering = result.values["clustering_coeff"]
    assert clustering.interval is not None
    low, high = clustering.interval
    assert low < clustering.value < high < low + 0.15
    assert "256 Gaussian inputs" in clustering.source
    assert any("standard error" in said for said in result.assumptions)
    columns = [column.title for column in table(result, "Layers that changed most").columns]
    assert columns == ["layer", "similarity", "standard error", "cosine of elements"]
    assert result_of(transformer(), transformer()).values["clustering_coeff"].interval is None


def test_other_depth_takes_the_graph_of_both():
    result = result_of(transformer(layers=2), transformer(layers=3))
    assert result.values["matrix_dims"].value == "10x15"
    assert any("all layers of both, as they have not the same ones" in said for said in result.assumptions)
    chart = heatmap(result)
    assert (len(chart.rows), len(chart.columns)) == (10, 15)
    assert chart.columns[:6] == ("0 q", "0 k", "0 v", "0 gate", "0 up", "1 q")


def test_other_widths_stand_in_a_table():
    layers = {
        f"stage{width}.{i}.weight": np.random.default_rng(width + i).normal(size=(20, width)).astype("f4")
        for width in (12, 30) for i in range(3)
    }  # fmt: skip
    result = result_of(layers, noised(layers, 0.2))
    assert result.values["matrix_dims"].value == "3x3"
    assert [row[:3] for row in table(result, "Layers that read other widths").rows] == [(12, 3, 3)]


def test_means_are_facts():
    result = result_of(transformer(), noised(transformer(), 0.3))
    means = next(block for block in result.blocks if isinstance(block, Facts))
    assert [fact.label for fact in means.facts] == ["counterparts, mean", "different layers, mean"]
    assert means.facts[0].value.value > 0.8 > 0.1 > means.facts[1].value.value


def test_networks_without_common_names_show_what_is_most_alike():
    one = {f"a.{i}.weight": np.random.default_rng(i).normal(size=(20, 16)).astype("f4") for i in range(3)}
    two = {f"net{i}_b": one[f"a.{i}.weight"][::-1].copy() for i in range(3)}
    result = result_of(one, {**two, "net9_b": np.ones((5, 16), "f4")})
    assert result.values["matrix_dims"].value == "3x4"
    assert "No layer of A has a counterpart" in meaning(result)
    assert "at 1.000" in meaning(result)


@pytest.mark.parametrize(
    ("a", "b", "reason", "words"),
    [
        (transformer(hidden=64), transformer(hidden=32), "SHAPE_MISMATCH", "read 64 numbers, layers of B 32"),
        ({"norm.weight": np.ones(4, "f4")}, transformer(), "NO_TARGET", "no layer that could be compared"),
        ({}, {}, "NO_TARGET", "no layer that could be compared"),
    ],
)
def test_what_cannot_be_compared_is_unknown(a, b, reason, words):
    result = result_of(a, b)
    assert [value.reason for value in result.values.values()] == [reason] * 3
    assert words in meaning(result)


def test_two_layers_make_no_graph():
    one = {"a.weight": np.random.default_rng(0).normal(size=(20, 16)).astype("f4")}
    result = result_of(one, noised(one, 0.2))
    assert result.values["matrix_dims"].value == "1x1"
    assert [result.values[key].reason for key in ("clustering_coeff", "sparsity")] == ["TOO_SMALL"] * 2
