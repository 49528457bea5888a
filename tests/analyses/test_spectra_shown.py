"""What change-summary says of spectra: the rank of the update, its directions, and power laws."""

from __future__ import annotations

import numpy as np
import pytest
from bank import noised
from builders import pair_of, transformer

from diffai_jupyter.analyses import all_analyses, summary_of_change
from diffai_jupyter.analyses.patterns import patterns
from diffai_jupyter.contract.blocks import Facts, Sentence, Series, Table
from diffai_jupyter.contract.result import Result
from diffai_jupyter.evidence import Evidence, Unknowable
from diffai_jupyter.facts.change import update_spectra
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.wording import say

State = dict[str, np.ndarray]
UP = "model.layers.1.mlp.up_proj.weight"
SETTINGS = {"dominant_share": 0.6, "alpha_low": 2.0, "alpha_high": 6.0}


def base() -> State:
    return transformer(layers=6, hidden=32, inner=96, vocab=40)


def tables(blocks: tuple[object, ...]) -> dict[str, Table]:
    return {block.title: block for block in blocks if isinstance(block, Table)}


def charts(blocks: tuple[object, ...]) -> dict[str, Series]:
    return {block.key: block for block in blocks if isinstance(block, Series)}


def said_of_rank(blocks: tuple[object, ...]) -> str:
    """Return the sentence about the rank of the update, filled in."""
    sentences = [say(block.template, block.said) for block in blocks if isinstance(block, Sentence)]
    return " ".join(sentence for sentence in sentences if "rank" in sentence)


def adapted(state: State, rank: int, *parts: str) -> State:
    """Add an update of this rank to the matrices whose name holds one of `parts`."""
    draw, new = np.random.default_rng(4), dict(state)
    for name, values in state.items():
        if any(part in name for part in parts):
            update = draw.normal(size=(len(values), rank)) @ draw.normal(size=(rank, values.shape[1]))
            new[name] = (values + 0.1 * update).astype(values.dtype)
    return new


class TestSpectra:
    analysis = all_analyses()["change-summary"]

    def blocks(self, a: State, b: State, is_spectral: bool = False) -> tuple[object, ...]:
        pair = pair_of(a, b)
        pair.is_spectral = is_spectral
        return self.analysis.run(pair, SETTINGS).blocks

    def test_merged_adapter_is_told_with_its_rank(self):
        blocks = self.blocks(base(), adapted(base(), 3, "q_proj", "v_proj"))
        assert said_of_rank(blocks) == (
            "The update looks low-rank: rank 3 in 12 of 12 matrices, as a merged adapter (LoRA) leaves it."
        )
        table = tables(blocks)["Spectra of the update"]
        assert {(row[1], row[5]) for row in table.rows} == {("32x32", 3)}
        chart = charts(blocks)["update_energy"]
        assert len(chart.curves) == 4
        assert all(curve.y[2] == pytest.approx(1) for curve in chart.curves)
        takeaway = say(chart.takeaway.template, chart.takeaway.said)
        assert takeaway.endswith("hold half of the squared change, 3 hold 90 %.")

    def test_ranks_that_differ_are_no_typical_adapter(self):
        b = adapted(adapted(base(), 2, "q_proj"), 5, "v_proj")
        assert "rank 2 to 5 in 12 of 12 matrices; a merged adapter (LoRA) mostly has one rank" in said_of_rank(
            self.blocks(base(), b)
        )

    def test_matrices_that_were_trained_whole_are_not_counted(self):
        b = adapted(base(), 2, "q_proj", "v_proj")
        b[UP] = (b[UP] + 0.1 * np.random.default_rng(8).normal(size=b[UP].shape)).astype("f4")
        assert "rank 2 in 12 of 13 matrices" in said_of_rank(self.blocks(base(), b))
        (because,) = (p.because for p in patterns(pair_of(base(), b), 0.6) if p.name == "low-rank")
        assert because == "rank 2 in 12 of 13 changed matrices that were looked at"

    def test_fine_tune_is_not_low_rank(self):
        assert said_of_rank(self.blocks(base(), noised(base(), 0.05))).startswith(
            "The update is not low-rank: in none of 32 matrices"
        )

    def test_update_that_rounding_hides_is_told(self):
        half = {name: values.astype("f2") for name, values in base().items()}
        moved_a_little = {name: (values.astype("f4") * (1 + 1e-4)).astype("f2") for name, values in half.items()}
        draw = np.random.default_rng(0)
        for name, values in moved_a_little.items():
            keep = draw.random(values.shape) < 0.8
            moved_a_little[name] = np.where(keep, half[name], np.nextafter(half[name], np.float16(9)) * 2)
        blocks = self.blocks(half, moved_a_little)
        assert said_of_rank(blocks).startswith("Whether the update is low-rank cannot be told")
        table = tables(blocks)["Spectra of the update"]
        assert {row[5] for row in table.rows} == {"TOO_SMALL"}
        assert "TOO_SMALL" in table.note

    def test_sub_block_is_named_as_the_source(self):
        draw = np.random.default_rng(0)
        a = {"w": draw.standard_normal((600, 520))}
        b = {"w": a["w"] + draw.standard_normal((600, 3)) @ draw.standard_normal((3, 520))}
        assert said_of_rank(self.blocks(a, b)).endswith("Estimated from random sub-blocks of 512 x 512.")

    @pytest.mark.parametrize("how", ["pruned", "permuted", "scaled"])
    def test_of_other_kinds_of_change_no_rank_is_told(self, how):
        a = base()
        b = {
            "pruned": {**a, UP: np.where(np.abs(a[UP]) < 0.05, 0, a[UP]).astype("f4")},
            "permuted": {**a, UP: a[UP][::-1].copy()},
            "scaled": {**a, UP: a[UP] * np.float32(1.25)},
        }[how]
        assert not said_of_rank(self.blocks(a, b))

    def test_what_is_left_out_is_told(self, monkeypatch):
        monkeypatch.setattr(update_spectra, "MOST_ELEMENTS", 32 * 32 * 5)
        result = self.analysis.run(pair_of(base(), adapted(base(), 2, "q_proj")), SETTINGS)
        assert result.unreached == (
            "spectra of 1 matrix (more than 2^29 elements all together, or squares that overflow)",
        )

    def test_time_that_ends_leaves_the_summary(self, monkeypatch):
        def late(pair: Pair) -> None:
            raise Unknowable("TIME_BUDGET", stage="spectra", left=3)

        monkeypatch.setattr(summary_of_change, "update_spectra", late)
        result = self.analysis.run(pair_of(base(), noised(base(), 0.1)), SETTINGS)
        assert result.unreached == ("spectra of the update (The time budget ended first)",)
        assert result.values["layers_changed"].value == len(base())

    def test_sketched_spectra_say_what_they_do_not_know(self, monkeypatch):
        monkeypatch.setattr(update_spectra, "WHOLE_SIDE", 0)
        draw = np.random.default_rng(0)
        a = {"w": draw.standard_normal((600, 90))}
        table = tables(self.blocks(a, {"w": a["w"] + draw.standard_normal((600, 90))}))["Spectra of the update"]
        ((_, sides, _, _, effective, rank, directions),) = table.rows
        assert (sides, rank, directions) == ("600x90", "at least 64", "more than 64")
        assert effective.startswith("at least ")
        assert "randomized sketch" in table.note


class TestPowerLaws:
    analysis = all_analyses()["change-summary"]

    def run(self, a: State, b: State, **settings: float) -> Result:
        pair = pair_of(a, b)
        pair.is_spectral = True
        return self.analysis.run(pair, {**SETTINGS, **settings})

    def test_they_are_fitted_only_when_asked_for(self):
        a = {"w": np.random.default_rng(0).standard_normal((90, 80))}
        b = {"w": a["w"] * 1.5}
        assert "Power laws of the spectra" not in tables(self.analysis.run(pair_of(a, b), SETTINGS).blocks)
        assert "Power laws of the spectra" in tables(self.run(a, b).blocks)

    def test_thresholds_move_words_and_no_number_or_verdict(self):
        draw = np.random.default_rng(0)
        a = {f"l{i}.weight": draw.standard_normal((120, 100)) for i in range(3)}
        b = noised(a, 0.1)
        plain, moved_words = self.run(a, b), self.run(a, b, alpha_low=50.0, alpha_high=60.0)
        first, second = (tables(result.blocks)["Power laws of the spectra"].rows for result in (plain, moved_words))
        assert [row[:4] for row in first] == [row[:4] for row in second]
        assert {row[4] for row in second} == {"over-correlated"}
        assert plain.values == moved_words.values
        assert plain.findings == moved_words.findings == ()
        assert self.run(a, b, alpha_low=1.0, alpha_high=1.0).values == plain.values

    def test_exponent_is_estimated_with_a_confidence(self):
        draw = np.random.default_rng(0)
        a = {f"l{i}.weight": draw.standard_normal((120, 100)) for i in range(3)}
        *_, facts = (block for block in self.run(a, noised(a, 0.1)).blocks if isinstance(block, Facts))
        value = facts.facts[0].value
        assert value.evidence is Evidence.ESTIMATED
        assert 0 < value.confidence < 1
        assert value.assumption

    def test_matrices_without_a_fit_say_why(self):
        a = {"w": np.random.default_rng(0).standard_normal((30, 40))}
        (row,) = tables(self.run(a, {"w": a["w"] * 2}).blocks)["Power laws of the spectra"].rows
        assert row[1:3] == ("TOO_SMALL", "TOO_SMALL")

    def test_equal_pair_has_no_matrix_to_fit(self):
        assert self.run(base(), base()).unreached == ("power laws of the spectra (no matrix changed)",)
