"""attention-pattern-diff: what decides how far attention reaches, and what does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from builders import checkpoint_of, transformer

from diffai_jupyter.analyses import all_analyses
from diffai_jupyter.contract.blocks import Mark, Series, Table
from diffai_jupyter.contract.result import Result
from diffai_jupyter.evidence import Evidence
from diffai_jupyter.facts import give
from diffai_jupyter.facts.attention.circuits import LayerCircuits, circuits
from diffai_jupyter.facts.attention.distances import Reach, window_span
from diffai_jupyter.facts.attention.spans import Case, LayerReach, Reaches, reaches
from diffai_jupyter.facts.change.lineage import Lineage, lineage
from diffai_jupyter.facts.weights.stored import A, B
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.scan.pairing import pair_checkpoints
from diffai_jupyter.wording import say

PATTERN = all_analyses()["attention-pattern-diff"]
HEADS, HIDDEN = 8, 64
CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_attention_heads": HEADS, "rope_theta": 1e4,
    "max_position_embeddings": 1024,
}  # fmt: skip
ALIBI = {"model_type": "bloom", "rope_theta": None}


def pair_of(of_a: dict[str, Any], of_b: dict[str, Any], seeds: tuple[int, int] = (0, 0)) -> Pair:
    sides = (
        checkpoint_of(transformer(seed, layers=3, hidden=HIDDEN, inner=96), config={**CONFIG, **config})
        for seed, config in zip(seeds, (of_a, of_b), strict=True)
    )
    return pair_checkpoints(*sides)


def run(pair: Pair, **thresholds: float) -> Result:
    usual = {threshold.key: threshold.default for threshold in PATTERN.thresholds}
    result: Result = PATTERN.run(pair, usual | thresholds)
    return result


def meaning(result: Result) -> str:
    return say(result.meaning.template, result.meaning.said)


def found_with(case: Case, *spans: float, confidence: float = 1.0) -> Reaches:
    layer = LayerReach(("x",), ("block.0",), tuple(Reach(span, 0.1, 0.1) for span in spans))
    return Reaches(case, 64, (layer,), confidence)


def told(a: Reaches, b: Reaches) -> Result:
    pair = pair_of({}, {})
    give(pair, reaches, a, A)
    give(pair, reaches, b, B)
    return run(pair)


def test_rotary_positions_are_unknown_and_no_remedy_is_made_up():
    result = run(pair_of({}, {}))
    assert PATTERN.line(result) == "attention_pattern_diff: pattern=unknown, similarity=1.0000, span_change=unknown"
    assert result.values["pattern"].reason == result.values["span_change"].reason == "NEEDS_PROBE"
    assert meaning(result) == (
        "This model uses rotary positions; how far attention reaches depends on the text that runs through it, and "
        "cannot be read off the weights. The scores of queries for keys are alike with a cosine of 1.0000."
    )
    assert "probe" not in meaning(result).lower()


@pytest.mark.parametrize(("width", "word"), [(200, "local"), (256, "local"), (258, None), (600, None)])
def test_a_narrow_window_in_every_layer_is_local(width, word):
    result = run(pair_of({"sliding_window": width}, {"sliding_window": width}))
    value = result.values["pattern"]
    assert value.value == (None if word is None else (word, word))
    assert value.evidence is (Evidence.DERIVED if word else Evidence.UNKNOWN)
    assert result.values["span_change"].reason == "NEEDS_PROBE"


def test_windows_in_some_layers_decide_nothing_and_are_shown():
    kinds = ["sliding_attention", "sliding_attention", "full_attention"]
    result = run(pair_of({}, {"sliding_window": 64, "layer_types": kinds}))
    assert result.values["pattern"].reason == "NEEDS_PROBE"
    assert "2 of 3 layers of B see a window of 64 positions at most." in meaning(result)
    decided, layers = (block for block in result.blocks if isinstance(block, Table))
    assert [row[2] for row in decided.rows] == ["none stated", "2 of 3 layers: 64 of 1024"]
    assert [row[-1] for row in layers.rows] == [64, 64, None]


def test_one_side_that_is_known_stands_beside_one_that_is_not():
    result = run(pair_of({"sliding_window": 100}, {}))
    assert PATTERN.line(result).startswith("attention_pattern_diff: pattern=local→unknown, ")
    value = result.values["pattern"]
    assert (value.evidence, value.detail) == (Evidence.DERIVED, "B: NEEDS_PROBE")
    assert meaning(result).startswith("The median head of A is local; how far attention of B reaches is unknown.")


def test_slopes_decide_the_pattern_and_are_compared_on_one_length():
    assert run(pair_of(ALIBI, ALIBI)).values["pattern"].value == ("local", "local")
    result = run(pair_of(ALIBI, {**ALIBI, "max_position_embeddings": 128}))
    pattern, change = result.values["pattern"], result.values["span_change"]
    assert (pattern.value, pattern.evidence) == (("mixed", "mixed"), Evidence.DERIVED)
    assert (change.value, change.evidence) == (0.0, Evidence.DERIVED)
    assert "128 positions" in pattern.assumption
    bars = next(block for block in result.blocks if isinstance(block, Series) and block.key == "head_spans")
    assert (bars.mark, [curve.label for curve in bars.curves]) == (Mark.BAR, ["A", "B"])
    assert list(bars.curves[0].y) == sorted(bars.curves[0].y)


def test_the_median_head_decides():
    result = told(found_with(Case.BIAS, 0.1, 0.39, 1.3), found_with(Case.BIAS, 0.1, 0.81, 1.3))
    assert PATTERN.line(result).startswith("attention_pattern_diff: pattern=local→global, ")
    assert result.values["span_change"].value == pytest.approx(0.42)
    assert meaning(result).startswith("The median head goes from local to global, its span changes by +0.42.")
    mixed = told(found_with(Case.BIAS, 0.4), found_with(Case.BIAS, 0.8))
    assert mixed.values["pattern"].value == ("mixed", "mixed")


def test_thresholds_move_the_words_and_no_number():
    pair = pair_of(ALIBI, ALIBI)
    for said, word in (({"span_local": 0.0}, "mixed"), ({"span_local": 0.0, "span_global": 0.0}, "global")):
        assert run(pair, **said).values["pattern"].value == (word, word)
    assert window_span(256, 1024) < 0.4
    windowed = pair_of({"sliding_window": 100}, {"sliding_window": 100})
    assert run(windowed, span_local=0.1).values["pattern"].reason == "NEEDS_PROBE"


def test_a_table_of_positions_tells_of_the_first_layer_and_is_an_estimate():
    result = told(found_with(Case.TABLE, 0.2), found_with(Case.TABLE, 0.3, confidence=0.7))
    pattern = result.values["pattern"]
    assert (pattern.evidence, pattern.confidence) == (Evidence.ESTIMATED, pytest.approx(0.75 * 0.7))
    assert "That is the first layer only" in meaning(result)
    assert told(found_with(Case.SLOPES, 0.2), found_with(Case.TABLE, 0.3)).values["span_change"].confidence == 0.75


def test_many_heads_are_drawn_as_a_histogram():
    spans = tuple(np.linspace(0.01, 1.42, 60))
    charts = {block.key: block for block in told(found_with(Case.BIAS, *spans), found_with(Case.BIAS, 0.5)).blocks
              if isinstance(block, Series)}  # fmt: skip
    drawn = charts["span_histogram"]
    assert drawn.mark is Mark.HISTOGRAM
    assert [sum(curve.y) for curve in drawn.curves] == [60, 1]
    assert all(len(curve.x) == len(curve.y) + 1 for curve in drawn.curves)
    assert drawn.curves[0].x[-1] > 1.42


def layer(*cosines: float, is_cross: bool = False, **said: Any) -> LayerCircuits:
    return LayerCircuits("block.0", "x", 0, is_cross, qk=cosines, **said)


def test_similarity_is_the_mean_of_the_positive_cosines_without_cross_attention():
    pair = pair_of({}, {})
    give(pair, circuits, (layer(0.9, -0.4), layer(0.5, float("nan")), layer(0.0, is_cross=True)))
    result = run(pair)
    assert result.values["similarity"].value == pytest.approx((0.9 + 0.0 + 0.5) / 3)
    assert result.values["similarity"].evidence is Evidence.DERIVED
    assert result.unreached == ("1 head without a cosine: not finite, or zero on one side",)
    other = pair_of({}, {})
    give(other, circuits, (layer(0.1, is_cross=True), layer(reason="SHAPE_MISMATCH")))
    assert run(other).values["similarity"].reason == "SHAPE_MISMATCH"


def test_similarity_of_independent_networks_is_told_with_what_it_is_worth():
    pair = pair_of({}, {}, seeds=(0, 1))
    give(pair, lineage, Lineage(0.01, 10**6))
    result = run(pair)
    assert 0 <= result.values["similarity"].value < 0.3
    assert meaning(result).endswith(
        "A and B do not come from the same training run, so that their likeness says little."
    )


def test_rotary_energy_is_shown_and_concludes_nothing():
    result = run(pair_of({}, {}))
    chart = next(block for block in result.blocks if isinstance(block, Series) and block.key == "rotary_energy")
    for curve in chart.curves:
        assert np.mean(curve.y) == pytest.approx(100.0)
    assert say(chart.takeaway.template, chart.takeaway.said).endswith("how far heads look does not follow.")
    assert not any(isinstance(b, Series) and b.key == "rotary_energy" for b in run(pair_of(ALIBI, ALIBI)).blocks)


def test_without_attention_there_is_nothing_to_compare():
    side = checkpoint_of({"fc.weight": np.ones((4, 4), "f4")})
    result = run(pair_checkpoints(side, side))
    assert {value.reason for value in result.values.values()} == {"NO_TARGET"}
    assert (meaning(result), result.blocks) == ("There is no attention to compare.", ())
