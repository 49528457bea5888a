"""architecture-comparison, sort-by-change-magnitude and change-summary: known answers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import zoo
from bank import noised
from builders import headers_of, pair_of, transformer

from diffai_jupyter.analyses import all_analyses
from diffai_jupyter.analyses.patterns import patterns
from diffai_jupyter.contract.blocks import Notice, Sentence, Series, Table
from diffai_jupyter.evidence import Evidence
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.scan.pairing import pair_checkpoints

State = dict[str, np.ndarray]
UP = "model.layers.1.mlp.up_proj.weight"


def base() -> State:
    return transformer(layers=6, hidden=32, inner=96, vocab=40)


def tables(blocks: tuple[object, ...]) -> dict[str, Table]:
    return {block.title: block for block in blocks if isinstance(block, Table)}


class TestArchitectureComparison:
    analysis = all_analyses()["architecture-comparison"]

    def test_line_of_two_families(self):
        a, b = headers_of(zoo.resnet((3, 4, 6, 3), bottleneck=True)), headers_of(zoo.gpt2(24))
        result = self.analysis.run(pair_checkpoints(a, b), {})
        assert self.analysis.line(result).startswith(
            "architecture_comparison: type1=cnn, type2=transformer, depth=50→24, differences="
        )
        assert result.findings[0].said == {"a": "cnn", "b": "transformer"}

    def test_unknown_type_is_unknown_with_its_reason(self):
        result = self.analysis.run(pair_of({"x": np.ones(3)}, {"x": np.ones(3)}), {})
        assert (result.values["type1"].evidence, result.values["type1"].reason) == (
            Evidence.UNKNOWN,
            "NO_TARGET",
        )

    def test_tables_hold_attributes_and_shares(self):
        result = self.analysis.run(pair_checkpoints(headers_of(zoo.gpt2()), headers_of(zoo.gpt2(6))), {})
        found = tables(result.blocks)
        rows = {row[0]: row[1:] for row in found["Attributes"].rows}
        assert rows["hidden size"] == ("768", "768", "measured")
        assert rows["attention heads"] == ("NEEDS_CONFIG", "NEEDS_CONFIG", "unknown")
        shares = {row[0]: row[1:] for row in found["Elements by role"].rows}
        assert shares["embedding"][0] == 50257 * 768
        assert sum(row[0] for row in shares.values()) == 124_439_808
        assert sum(row[1] for row in shares.values()) == pytest.approx(100, abs=0.5)
        assert found["Structural differences"].rows == (("depth", "depth", "12", "6"),)


    def test_stacks_positions_and_configuration_are_told(self):
        config = {"dense_act_fn": "relu", "relative_attention_num_buckets": 32, "num_heads": 8, "d_kv": 64}
        a, b = (headers_of(zoo.t5(), config={**config, **more}) for more in ({}, {"tie_word_embeddings": False}))
        found = tables(self.analysis.run(pair_checkpoints(a, b), {}).blocks)
        rows = {row[0]: row[1:] for row in found["Attributes"].rows}
        assert rows["kind"][0] == "encoder and decoder, text"
        assert rows["blocks: encoder"] == rows["blocks: decoder"] == ("6", "6", "derived")
        assert rows["positions"] == ("relative bias", "relative bias", "derived")
        assert rows["attention heads"] == ("8", "8", "reported")
        tied = headers_of(zoo.t5(), config={"tie_word_embeddings": True})
        result = self.analysis.run(pair_checkpoints(tied, b), {})
        assert result.values["differences"].value == 1
        (row,) = tables(result.blocks)["Structural differences"].rows
        assert row == ("tie_word_embeddings", "config", "True", "False")


class TestSortByChangeMagnitude:
    analysis = all_analyses()["sort-by-change-magnitude"]

    def test_top_is_the_largest_relative_change(self):
        a = base()
        b = noised(a, 0.01)
        b[UP] = (a[UP] * 1.5).astype("f4")
        result = self.analysis.run(pair_of(a, b), {})
        assert self.analysis.line(result) == (
            f"sort_by_change_magnitude: sorted={len(a)}, top={UP}, top_change=0.5000"
        )

    def test_structural_differences_do_not_hide_the_top(self):
        a = base()
        result = self.analysis.run(pair_of(a, {**noised(a, 0.01), "new.weight": np.ones((99, 99), "f4")}), {})
        assert result.values["top"].value in a

    def test_change_from_zero_is_infinite_and_prints_unknown(self):
        result = self.analysis.run(pair_of({"w": np.zeros((3, 3))}, {"w": np.ones((3, 3))}), {})
        assert math.isinf(result.values["top_change"].value)
        assert self.analysis.line(result).endswith("top=w, top_change=unknown")

    @pytest.mark.parametrize(
        ("a", "b", "reason"),
        [({}, {}, "NO_TARGET"), ({"w": np.ones(3)}, {"v": np.zeros((2, 2))}, "NO_COMMON"),
         ({"w": np.full(3, np.nan)}, {"w": np.ones(3)}, "ALL_NONFINITE")],
    )  # fmt: skip
    def test_what_cannot_be_known_says_why(self, a, b, reason):
        assert self.analysis.run(pair_of(a, b), {}).values["top_change"].reason == reason


    def test_three_that_changed_most_for_their_role_are_named(self):
        a = transformer(layers=8, hidden=16, inner=24, vocab=20)
        draw = np.random.default_rng(0)
        size = {name: (1.0 if "norm" in name else 0.001) * draw.uniform(0.9, 1.1) for name in a}
        outlier = "model.layers.3.self_attn.q_proj.weight"
        size[outlier] = 0.02
        b = {name: (v + size[name] * draw.normal(size=v.shape)).astype("f4") for name, v in a.items()}
        result = self.analysis.run(pair_of(a, b), {})
        rows = tables(result.blocks)["Changed most for their role"].rows
        assert len(rows) == 3
        assert rows[0][:2] == (outlier, "q")
        assert rows[0][3] > 10
        assert [row[3] for row in rows] == sorted((row[3] for row in rows), reverse=True)
        assert "norm" in result.values["top"].value

    def test_without_enough_of_a_role_nobody_stands_out(self):
        assert self.analysis.run(pair_of({"w": np.ones((3, 3))}, {"w": np.zeros((3, 3))}), {}).blocks == ()


SETTINGS = {"dominant_share": 0.6, "alpha_low": 2.0, "alpha_high": 6.0}


class TestChangeSummary:
    analysis = all_analyses()["change-summary"]

    def values(self, a: State, b: State) -> dict[str, object]:
        result = self.analysis.run(pair_of(a, b), SETTINGS)
        return {key: value.value for key, value in result.values.items()}

    def test_most_changed_is_the_fewest_layers_with_half_of_the_energy(self):
        a = {f"l{i}.weight": np.full((4, 4), 10.0) for i in range(6)}
        b = {name: values.copy() for name, values in a.items()}
        for i, energy in enumerate((4, 3, 2, 1, 1)):
            b[f"l{i}.weight"][0, 0] += math.sqrt(energy)
        found = self.values(a, b)
        # 4 of 11 is less than half, 4 + 3 is more.
        assert found["most_changed"] == 2
        assert found["layers_changed"] == 5
        assert found["magnitude"] == pytest.approx(math.sqrt(11 / (6 * 16 * 100)))

    def test_magnitude_ends_at_one_and_equal_pairs_are_zero(self):
        a = base()
        assert self.values(a, noised(a, 30.0))["magnitude"] == 1.0
        assert self.values(a, dict(a)) == {
            "layers_changed": 0,
            "magnitude": 0.0,
            "patterns": 0,
            "most_changed": 0,
        }

    def test_table_holds_the_shares_of_the_layers(self):
        a = base()
        result = self.analysis.run(pair_of(a, noised(a, 0.1)), SETTINGS)
        table = tables(result.blocks)["Layers by their share of the change"]
        shares = [row[3] for row in table.rows]
        assert shares == sorted(shares, reverse=True)
        assert table.total == len(a)
        assert len(table.rows) == 20


    def test_no_trained_tensor_in_common(self):
        result = self.analysis.run(pair_of({"w": np.ones((3, 3))}, {"v": np.ones((2, 2))}), SETTINGS)
        assert [value.reason for value in result.values.values() if not value.is_known] == ["NO_COMMON"] * 3
        assert set(tables(result.blocks)) == {"Dtypes", "Shapes that differ"}

    def test_dtypes_and_shapes_are_counted(self):
        a = {"w": np.ones((3, 4), "f4"), "gone": np.ones(5), "same.bias": np.ones(7, "f4")}
        b = {"w": np.ones((3, 2), "f2"), "new": np.ones((2, 2), "f2"), "same.bias": np.ones(7, "f4")}
        found = tables(self.analysis.run(pair_of(a, b), SETTINGS).blocks)
        assert set(found["Dtypes"].rows) == {
            ("f16", 0, 2, 0, 10, 0, 20), ("f32", 2, 1, 19, 7, 76, 28), ("f64", 1, 0, 5, 0, 40, 0),
        }  # fmt: skip
        assert set(found["Shapes that differ"].rows) == {
            ("w", "same name, other shape", "[3, 4]", "[3, 2]"), ("gone", "only in A", "[5]", ""),
            ("new", "only in B", "", "[2, 2]"),
        }  # fmt: skip

    def test_resized_vocabulary_is_told_by_the_whole_shapes(self):
        a = base()
        b = {**a, "lm_head.weight": np.concatenate([a["lm_head.weight"], np.ones((3, 32), "f4")])}
        (row,) = tables(self.analysis.run(pair_of(a, b), SETTINGS).blocks)["Shapes that differ"].rows
        assert row == ("lm_head.weight", "rows that only B has", "[40, 32]", "[43, 32]")

    def test_curve_over_layers_is_the_cumulative_energy(self):
        a = {f"l{i}.weight": np.full((4, 4), 10.0) for i in range(5)}
        b = {name: values.copy() for name, values in a.items()}
        for i, energy in enumerate((4, 3, 2, 1)):
            b[f"l{i}.weight"][0, 0] += math.sqrt(energy)
        chart = charts(self.analysis.run(pair_of(a, b), SETTINGS).blocks)["energy_over_layers"]
        (curve,) = chart.curves
        assert curve.x == (1, 2, 3, 4)
        assert curve.y == pytest.approx((0.4, 0.7, 0.9, 1.0))
        assert chart.takeaway.said == {"half": 2, "most": 3, "all": 4}

    def test_independent_networks_are_only_apart(self):
        a = {name: np.random.default_rng(0).normal(size=(90, 80)) for name in ("l.0.weight", "l.1.weight")}
        b = {name: np.random.default_rng(1).normal(size=(90, 80)) for name in a}
        result = self.analysis.run(pair_of(a, b), SETTINGS)
        assert result.values["magnitude"].value == 1.0
        (notice,) = (block for block in result.blocks if isinstance(block, Notice))
        assert notice.said["cosine"] == pytest.approx(0, abs=0.05)
        assert not any(isinstance(block, Sentence) for block in result.blocks)


def charts(blocks: tuple[object, ...]) -> dict[str, Series]:
    return {block.key: block for block in blocks if isinstance(block, Series)}


def names_of(a: State, b: State, dominant: float = 0.6) -> set[str]:
    pair: Pair = pair_of(a, b)
    return {pattern.name for pattern in patterns(pair, dominant)}


def moved(state: State, *parts: str, share: float = 0.05) -> State:
    """Move the tensors whose name holds one of `parts`."""
    other = noised(state, share)
    return {
        name: other[name] if any(part in name for part in parts) else values for name, values in state.items()
    }


class TestPatterns:
    @pytest.mark.parametrize(
        ("parts", "expected"),
        [
            (("layers.5", "layers.4"), {"frozen prefix", "late-layer-dominant"}),
            (("layers.0", "layers.1"), {"early-layer-dominant"}),
            (("lm_head",), {"head only"}),
            (("embed_tokens",), {"embedding only"}),
            (("norm",), {"norm and bias only"}),
            (("self_attn",), {"attention-dominant"}),
            (("mlp",), {"feed-forward-dominant"}),
        ],
    )
    def test_pattern_of_where_it_changed(self, parts, expected):
        assert names_of(base(), moved(base(), *parts)) == expected

    def test_everything_moved(self):
        assert "full" in names_of(base(), noised(base(), 0.05))

    def test_kinds_of_change(self):
        a, draw = base(), np.random.default_rng(0)
        low = {**a, UP: (a[UP] + draw.normal(size=(96, 2)) @ draw.normal(size=(2, 32))).astype("f4")}
        assert "low-rank" in names_of(a, low)
        assert "pruned" in names_of(a, {**a, UP: np.where(np.abs(a[UP]) < 0.05, 0, a[UP]).astype("f4")})
        assert "scaled" in names_of(a, {**a, UP: a[UP] * np.float32(1.25)})
        assert "permuted" in names_of(a, {**a, UP: a[UP][::-1].copy()})
        assert names_of(a, {name: values.astype("f2") for name, values in a.items()}) == {"cast"}
        assert "vocabulary resized" in names_of(
            a, {**a, "lm_head.weight": np.concatenate([a["lm_head.weight"], np.ones((3, 32), "f4")])}
        )
        assert "non-finite" in names_of(a, {**a, UP: np.full_like(a[UP], np.nan)})
        assert "layers inserted" in names_of(transformer(layers=2, hidden=32, inner=96, vocab=40), a)
        assert "quantized" in names_of(
            a,
            {n: v for n, v in a.items() if n != UP}
            | {UP.replace("weight", "qweight"): np.zeros((4, 48), "i4")},
        )

    def test_equal_states_show_no_pattern(self):
        assert names_of(base(), base()) == set()

    def test_dominant_share_is_a_limit(self):
        # Of an even update the MLPs hold 2 * 96 + 32 parts, attention holds 4 * 32: 224 / 352 = 0.636.
        assert "feed-forward-dominant" in names_of(base(), moved(base(), "proj"), 0.62)
        assert "feed-forward-dominant" not in names_of(base(), moved(base(), "proj"), 0.65)

    def test_because_holds_the_numbers(self):
        (pattern,) = patterns(pair_of(base(), moved(base(), "mlp")), 0.6)
        assert pattern.because == "100.0% of the squared change"
