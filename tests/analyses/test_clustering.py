"""Clusters of embeddings, from tables to lines, tables and the diagram."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from builders import pair_of, transformer
from embeddings import NAME, embedded, tokenizer

from diffai_jupyter.analyses import all_analyses
from diffai_jupyter.analyses.shown.cluster_tables import blocks_of, not_looked_at
from diffai_jupyter.comparison import Comparison
from diffai_jupyter.contract.blocks import Flow, Table
from diffai_jupyter.contract.result import Result
from diffai_jupyter.evidence import Evidence
from diffai_jupyter.facts import give
from diffai_jupyter.facts.embedding import partition as module
from diffai_jupyter.facts.embedding.clusters import compared, partitions
from diffai_jupyter.facts.embedding.entities import Entities, entities
from diffai_jupyter.facts.embedding.partition import Partition
from diffai_jupyter.render.phrases import sentence
from diffai_jupyter.report.request import request_of
from diffai_jupyter.scan.pair import Pair

FLAG = "clustering-change"
HOSTILE = ["<script>", "a|b", "$x$", "\n", "\x1b[31m", "", "`c`*d*_e_", "\u202eevil", "{0}{key}", " a"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Repeat less, for speed."""
    for name, few in (("STARTS", 3), ("CLOUDS", 5), ("RESAMPLES", 3)):
        monkeypatch.setattr(module, name, few)


def result_of(pair: Pair, **changed: float) -> Result:
    declared = all_analyses()[FLAG]
    thresholds = {threshold.key: threshold.default for threshold in declared.thresholds}
    found: Result = declared.run(pair, {**thresholds, **changed})
    return found


def line_of(result: Result) -> str:
    return all_analyses()[FLAG].line(result)


def table_of(result: Result, title: str) -> Table:
    (found,) = [block for block in result.blocks if isinstance(block, Table) and block.title == title]
    return found


def grouped(groups: Any, width: int = 48) -> np.ndarray:
    centers = np.linalg.qr(np.random.default_rng(0).normal(size=(width, 12)))[0].T
    return centers[groups] + np.random.default_rng(1).normal(size=(len(groups), width)) / np.sqrt(width)


def pair_of_partitions(a: list[int], b: list[int], stability: tuple[float, ...] = ()) -> Pair:
    """Return a pair whose rows have these clusters."""
    pair = embedded(np.eye(20), 2 * np.eye(20) + 0.01)
    parts = []
    for labels in (a, b):
        found, count = np.array(labels), max(labels) + 1
        central = tuple(tuple(np.flatnonzero(found == i)[:5].tolist()) for i in range(count))
        weights = stability if len(stability) == count else (1.0,) * count
        parts.append(Partition(found, count - 1, 0.8, 0.2, weights, found, central))
    rows = np.arange(len(a), dtype=np.int64)
    table = pair.a.tensors[NAME]
    give(pair, entities, Entities(NAME, table, table, rows, rows, 25, 2, "index"))
    give(pair, partitions, (parts[0], parts[1]))
    return pair


THREE = [0] * 8 + [1] * 6 + [2] * 6
SPLIT = [0] * 5 + [3] * 3 + [1] * 6 + [2] * 6


def test_line_of_planted_groups() -> None:
    groups = np.arange(160) % 4
    other = groups.copy()
    other[:12] = (other[:12] + 1) % 4
    result = result_of(embedded(grouped(groups), grouped(other)))
    assert line_of(result).startswith("clustering_change: clusters=4→4, stability=0.8")
    assert line_of(result).endswith("migrated=12, new=0")
    assert all(value.evidence is Evidence.ESTIMATED for value in result.values.values())
    assert "12 of them changed theirs" in sentence(result.meaning)


def test_a_split_gives_one_new_cluster() -> None:
    result = result_of(pair_of_partitions(THREE, SPLIT))
    assert (result.values["clusters"].value, result.values["new"].value) == ((3, 4), 1)
    assert result.values["migrated"].value == 3
    text = sentence(result.meaning)
    assert "3 clusters in A and 4 in B" in text
    assert "New clusters: 1; dissolved: 0." in text
    back = result_of(pair_of_partitions(SPLIT, THREE))
    assert back.values["new"].value == 0
    assert "New clusters: 0; dissolved: 1." in sentence(back.meaning)


def test_the_limit_of_likeness_moves_the_count_and_nothing_else() -> None:
    strict = result_of(pair_of_partitions(THREE, SPLIT), cluster_jaccard=0.7)
    usual = result_of(pair_of_partitions(THREE, SPLIT))
    assert (usual.values["new"].value, strict.values["new"].value) == (1, 2)
    assert strict.values["stability"] == usual.values["stability"]


def test_tables_say_who_became_whom() -> None:
    result = result_of(pair_of_partitions(THREE, SPLIT))
    a, b, crossed = (table_of(result, title) for title in ("Clusters of A", "Clusters of B", "From cluster to cluster"))
    assert [row[:5] for row in a.rows] == [
        ("A1", 8, 1.0, "B1", 5 / 8), ("A2", 6, 1.0, "B2", 1.0), ("A3", 6, 1.0, "B3", 1.0),
    ]  # fmt: skip
    assert [row[4] for row in b.rows] == ["", "", "", "new"]
    assert a.rows[0][-1] == "0, 1, 2, 3, 4"
    assert [row[:3] for row in crossed.rows] == [("A2", "B2", 6), ("A3", "B3", 6), ("A1", "B1", 5), ("A1", "B4", 3)]
    assert [row[-1] for row in crossed.rows] == ["stayed", "stayed", "stayed", "moved"]
    assert result.unreached == (
        "5 of the 25 tokens in common, as a sample was taken", "2 rows that are zero, repeated or not finite",
    )  # fmt: skip


def test_the_diagram_holds_what_the_table_says() -> None:
    result = result_of(pair_of_partitions(THREE, SPLIT))
    (flow,) = [block for block in result.blocks if isinstance(block, Flow)]
    assert (flow.left, flow.right) == (("A1", "A2", "A3"), ("B1", "B4", "B2", "B3"))
    assert {(link.left, link.right, link.count, link.is_kept) for link in flow.links} == {
        (0, 0, 5, True), (0, 1, 3, False), (1, 2, 6, True), (2, 3, 6, True),
    }  # fmt: skip
    assert flow.points == 4
    assert sentence(flow.takeaway).startswith("17 of 20 tokens stayed")


def test_clusters_that_do_not_come_back_are_called_what_they_are() -> None:
    result = result_of(pair_of_partitions(THREE, THREE, (0.9, 0.59, 0.3)))
    assert [finding.said["n"] for finding in result.findings] == [2, 2]
    assert "not a cluster: A2, A3" in table_of(result, "Clusters of A").note


def test_no_structure_is_said_plainly() -> None:
    noise = [np.random.default_rng(seed).normal(size=(200, 48)) for seed in (0, 1)]
    result = result_of(embedded(*noise))
    assert line_of(result) == "clustering_change: clusters=1→1, stability=1.0000, migrated=0, new=0"
    assert sentence(result.meaning).startswith("No cluster structure above noise: the 200 tokens of")
    assert [type(block) for block in result.blocks] == [Table]
    assert all(value.evidence is Evidence.ESTIMATED for value in result.values.values())


def test_equal_tables_are_said_to_be_equal() -> None:
    result = result_of(pair_of_partitions(THREE, THREE))
    assert line_of(result).endswith("stability=1.0000, migrated=0, new=0")
    assert "and the same ones in B" in sentence(result.meaning)


@pytest.mark.parametrize(
    ("a", "b", "reason"),
    [
        ({NAME: np.ones((4, 4))}, {NAME: np.eye(4)}, "TOO_SMALL"),
        ({"norm.weight": np.ones(9)}, {"norm.weight": np.ones(9)}, "NO_TARGET"),
        ({NAME: np.eye(30)}, {"fc.weight": np.eye(30)}, "NO_COMMON"),
        ({NAME: np.full((30, 30), np.nan)}, {NAME: np.eye(30)}, "ALL_NONFINITE"),
    ],
)
def test_what_cannot_be_known_is_unknown(a: dict[str, Any], b: dict[str, Any], reason: str) -> None:
    result = result_of(pair_of(a, b))
    assert {value.reason for value in result.values.values()} == {reason}
    assert line_of(result) == "clustering_change: clusters=unknown, stability=unknown, migrated=unknown, new=unknown"
    assert sentence(result.meaning)


def test_hidden_units_rest_on_their_order() -> None:
    state = {"fc1.weight": grouped(np.arange(160) % 4), "fc2.weight": np.random.default_rng(2).normal(size=(30, 160))}
    result = result_of(pair_of(state, state))
    assert result.assumptions == ("the order of hidden units is kept",)
    assert "hidden units of" in sentence(result.meaning)
    other = {name: np.random.default_rng(3).normal(size=values.shape) for name, values in state.items()}
    unrelated = result_of(pair_of(state, other))
    assert {value.reason for value in unrelated.values.values()} == {"INDEPENDENT"}


def test_names_of_tokens_come_out_escaped() -> None:
    words = tokenizer([HOSTILE[i] if i < len(HOSTILE) else f"w{i}" for i in range(120)])
    rows = grouped(np.arange(120) % 3)
    others = transformer(layers=1, vocab=4)
    pair = embedded({**others, NAME: rows}, {**others, NAME: 1.1 * rows + 0.01}, words, words)
    comparison = Comparison(pair, request_of((FLAG,), {"include_charts": True}))
    flow = next(block for block in comparison.document().charts() if isinstance(block, Flow))
    assert flow.left[0].startswith("A1  ")
    for written in (comparison.to_html(), comparison.to_markdown(), comparison.to_text()):
        assert "\x1b" not in written
        assert "\u202e" not in written
        assert "<script>" not in written or "`" in written


def test_the_diagram_counts_as_points_and_has_no_listed_type() -> None:
    comparison = Comparison(pair_of_partitions(THREE, SPLIT), request_of((FLAG,), {"include_charts": True}))
    drawn = comparison.document().charts()
    result = comparison["include-charts"]
    assert any(isinstance(chart, Flow) for chart in drawn)
    assert result.values["data_points"].value == sum(chart.points for chart in drawn)
    assert set(result.values["types"].value) <= {"histogram", "scatter", "line", "heatmap", "bar"}
    assert "1 of them a flow diagram" in sentence(result.meaning)
    assert not any(isinstance(block, Flow) for block in Comparison(
        pair_of_partitions(THREE, SPLIT), request_of((FLAG,), {})
    ).document().charts())  # fmt: skip


def test_many_clusters_fill_no_more_than_twenty_lines() -> None:
    labels = np.arange(110) % 22
    side = Partition(labels, 22, 0.8, 0.2, (1.0,) * 22, labels, tuple((i,) for i in range(22)))
    other = Partition(np.roll(labels, 1), 22, 0.8, 0.2, (1.0,) * 22, labels, tuple((i,) for i in range(22)))
    table = embedded(np.eye(20), np.eye(20)).a.tensors[NAME]
    rows = Entities(NAME, table, table, np.arange(110), np.arange(110), 110, 0, "index")
    for block in blocks_of(rows, compared(side, other), 0.5):
        assert not isinstance(block, Table) or len(block.rows) <= 20
        assert not isinstance(block, Table) or not block.total or block.total > 20
    assert not_looked_at(rows) == ()
