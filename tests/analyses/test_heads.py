"""head-importance: heads stand out in their layer only, roles only where weights show them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from builders import checkpoint_of, transformer

from diffai_jupyter.analyses import all_analyses
from diffai_jupyter.contract.blocks import Block, Matrix, Sentence, Table
from diffai_jupyter.contract.result import Result
from diffai_jupyter.evidence import Evidence
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.scan.pairing import pair_checkpoints
from diffai_jupyter.wording import say

HEADS = all_analyses()["head-importance"]
LAYERS, HIDDEN, COUNT = 3, 64, 8
LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_attention_heads": COUNT, "rope_theta": 1e4,
    "max_position_embeddings": 512,
}  # fmt: skip
NAME = "model.layers.{}.self_attn.{}_proj.weight"


def state(seed: int = 0, shared: int = COUNT) -> dict[str, Any]:
    tensors = transformer(seed, layers=LAYERS, hidden=HIDDEN, inner=96)
    for i in range(LAYERS):
        for part in "kv":
            tensors[NAME.format(i, part)] = tensors[NAME.format(i, part)][: HIDDEN // COUNT * shared]
    return tensors


def scaled(tensors: dict[str, Any], block: int, head: int, factor: float) -> dict[str, Any]:
    """Return a state with one head that writes `factor` times as much."""
    name = NAME.format(block, "o")
    output = tensors[name].copy()
    output[:, 8 * head : 8 * head + 8] *= factor
    return {**tensors, name: output}


def even(tensors: dict[str, Any]) -> dict[str, Any]:
    """Return a state in which all heads of a layer write alike."""
    for i in range(LAYERS):
        v, o = (tensors[NAME.format(i, part)].astype("f8") for part in "vo")
        for h in range(COUNT):
            rows = slice(8 * h, 8 * h + 8)
            values = v[rows if len(v) == HIDDEN else slice(8 * (h // (COUNT * 8 // len(v))), None)][:8]
            o[:, rows] /= np.linalg.norm(o[:, rows] @ values)
        tensors[NAME.format(i, "o")] = o.astype("f4")
    return tensors


def pair_of(a: dict[str, Any], b: dict[str, Any], **config: Any) -> Pair:
    return pair_checkpoints(*(checkpoint_of(side, config={**LLAMA, **config}) for side in (a, b)))


def run(pair: Pair, **thresholds: float) -> Result:
    usual = {threshold.key: threshold.default for threshold in HEADS.thresholds}
    result: Result = HEADS.run(pair, usual | thresholds)
    return result


def counts(result: Result) -> tuple[Any, ...]:
    return tuple(value.value for value in result.values.values())


def table(result: Result, title: str) -> Table | None:
    return next((block for block in result.blocks if isinstance(block, Table) and block.title == title), None)


def meaning(result: Result) -> str:
    return say(result.meaning.template, result.meaning.said)


def test_heads_that_were_scaled_stand_out_and_only_they():
    a = even(state())
    b = scaled(scaled(scaled(a, 0, 3, 1.5), 2, 1, 0.5), 2, 6, 1.3)
    result = run(pair_of(a, b))
    assert counts(result)[:2] == (2, 1)
    assert HEADS.line(result) == "head_importance: important_heads=2, prunable_heads=1, specializations=0"
    found = table(result, "Candidates of B, layer by layer")
    assert found is not None
    assert [row[:6] for row in found.rows] == [
        ("block.0", 3, "important", 1.0, 1.5, "yes"),
        ("block.2", 6, "important", 1.0, 1.3, "yes"),
        ("block.2", 1, "prunable", 1.0, 0.5, "yes"),
    ]
    for key in ("important_heads", "prunable_heads"):
        assert (result.values[key].evidence, result.values[key].confidence) == (Evidence.ESTIMATED, 0.6)
    assert "candidates" in meaning(result)
    assert any("inside a layer only" in said for said in result.assumptions)


def test_a_whole_layer_that_writes_more_changes_nothing():
    a = even(state())
    b = a
    for head in range(COUNT):
        b = scaled(b, 1, head, 40.0)
    assert counts(run(pair_of(a, b)))[:2] == (0, 0)


def test_thresholds_move_the_counts():
    a = even(state())
    pair = pair_of(a, scaled(scaled(a, 0, 3, 1.15), 1, 2, 0.85))
    assert counts(run(pair))[:2] == (0, 0)
    assert counts(run(pair, ov_important=1.1, ov_prunable=0.9))[:2] == (1, 1)


def test_only_b_counts():
    a = even(state())
    assert counts(run(pair_of(scaled(a, 0, 3, 9.0), a)))[:2] == (0, 0)


def test_heads_with_common_keys_and_values_cannot_be_pruned_alone():
    a = even(state(shared=2))
    result = run(pair_of(a, scaled(a, 1, 5, 0.3), num_key_value_heads=2))
    found = table(result, "Candidates of B, layer by layer")
    assert found is not None
    assert found.rows[0][:6] == ("block.1", 5, "prunable", 1.0, 0.3, "no: keys and values of 4")
    said = [say(block.template, block.said) for block in result.blocks if isinstance(block, Sentence)]
    assert said == [
        (
            "Groups of 4 heads read the same keys and values, so that none can be pruned alone together with its keys "
            "and values; 1 of the candidates for pruning are such heads."
        )
    ]


def test_nothing_is_put_in_order_across_layers():
    a = even(state())
    b = scaled(scaled(scaled(a, 2, 0, 3.0), 0, 0, 1.5), 1, 0, 2.0)
    result = run(pair_of(a, b))
    for block in result.blocks:
        assert layers_of(block) == sorted(layers_of(block))


def layers_of(block: Block) -> list[str]:
    if isinstance(block, Table):
        return [str(row[0]) for row in block.rows if str(row[0]).startswith("block.")]
    return list(block.rows) if isinstance(block, Matrix) else []


def test_heatmaps_show_strengths_and_their_change():
    a = even(state())
    result = run(pair_of(a, scaled(a, 1, 4, 2.0)))
    strength, change = (block for block in result.blocks if isinstance(block, Matrix))
    assert strength.cells[1] == pytest.approx([1, 1, 1, 1, 2, 1, 1, 1])
    assert change.cells[1] == pytest.approx([0, 0, 0, 0, 1, 0, 0, 0], abs=1e-6)
    assert say(change.takeaway.template, change.takeaway.said).startswith("1 of 24 heads moved by 0.1 or more")
    same = [block.key for block in run(pair_of(a, a)).blocks if isinstance(block, Matrix)]
    assert same == ["head_strength"]


def test_a_head_that_writes_nothing_is_told_and_one_that_is_not_finite_left_out():
    a = even(state())
    result = run(pair_of(a, scaled(scaled(a, 0, 3, 0.0), 1, 2, math.nan)))
    assert counts(result)[:2] == (0, 1)
    assert [say(finding.template, finding.said) for finding in result.findings] == [
        "The output of 1 head of B does not depend on what is read: model.layers.0.self_attn."
    ]
    assert "1 head with NaN or infinite weights" in result.unreached
    everything = {name: values * np.float32(math.nan) for name, values in a.items()}
    assert run(pair_of(a, everything)).values["important_heads"].reason == "ALL_NONFINITE"


def test_copying_alone_is_an_estimate_and_a_bias_of_position_follows():
    b = even(state())
    values = b[NAME.format(2, "v")][8:16]
    b[NAME.format(2, "o")][:, 8:16] = values.T
    b["lm_head.weight"] = b["model.embed_tokens.weight"]
    result = run(pair_of(b, b))
    value = result.values["specializations"]
    assert (value.value, value.evidence, value.confidence) == (1, Evidence.ESTIMATED, 0.5)
    roles = table(result, "Roles that the weights of B show")
    assert roles is not None
    assert [row[:3] for row in roles.rows] == [("copies the token it looks at", 1, "block.2 1")]
    assert run(pair_of(b, b), copying_share=0.0).values["specializations"].value == LAYERS * COUNT
    # An encoder has no next token to copy to, and slopes that are stated.
    slopes = run(pair_of(b, b, is_causal=False, alibi=True, rope_theta=None)).values["specializations"]
    assert slopes.evidence is Evidence.DERIVED
    # Slopes of 1/2 to 1/16: the mean distance of a slope m is 1 / sinh(m), of even attention 160 positions of 512.
    assert slopes.value == 4 * LAYERS


def test_where_no_role_can_be_seen_it_is_unknown_and_no_remedy_is_made_up():
    b = even(state())
    result = run(pair_of(b, b, is_causal=False))
    assert result.values["specializations"].reason == "NEEDS_PROBE"
    assert meaning(result).endswith("Roles of heads show only when the model runs.")
    assert table(result, "Roles that the weights of B show") is None


def test_without_heads_or_attention_everything_is_unknown():
    plain = transformer(layers=1, hidden=48)
    no_config = pair_checkpoints(checkpoint_of(plain), checkpoint_of(plain))
    assert {value.reason for value in run(no_config).values.values()} == {"NEEDS_CONFIG"}
    none = {"fc.weight": plain["lm_head.weight"]}
    result = run(pair_of(none, none))
    assert {value.reason for value in result.values.values()} == {"NO_TARGET"}
    assert meaning(result) == "There is no attention in B, so there are no heads to look at."
