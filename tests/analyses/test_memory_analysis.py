"""memory-analysis: payload, memory in use and parameters per byte."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import zoo
from builders import headers_of, pair_of

from diffai_jupyter.analyses import all_analyses
from diffai_jupyter.contract.blocks import Sentence, Severity, Table
from diffai_jupyter.contract.result import Result
from diffai_jupyter.evidence import Evidence
from diffai_jupyter.hardware import Deployment
from diffai_jupyter.scan.pairing import pair_checkpoints
from diffai_jupyter.wording import write_bytes

MIB = 1 << 20
ANALYSIS = all_analyses()["memory-analysis"]


def result_of(
    a: zoo.Shapes, b: zoo.Shapes, dtypes: tuple[str, str] = ("f32", "f32"), limit: float = 0.0,
    deployment: Deployment | None = None, **config: Any,
) -> Result:
    pair = pair_checkpoints(headers_of(a, dtypes[0], config=config), headers_of(b, dtypes[1], config=config))
    pair.deployment = deployment or Deployment()
    return ANALYSIS.run(pair, {"memory_limit_mb": limit})


def table(result: Result, title: str) -> Table:
    return next(
        block for block in result.blocks if isinstance(block, Table) and block.title.startswith(title)
    )


def test_halving_the_dtype_halves_the_payload_and_doubles_the_density():
    result = result_of(zoo.gpt2(), zoo.gpt2(), ("f32", "bf16"))
    assert result.values["delta"].value == pytest.approx(-2 * 124_439_808 / MIB)
    assert result.values["efficiency"].value == 0.5
    assert result.values["delta"].evidence is Evidence.MEASURED
    assert ANALYSIS.line(result).startswith("memory_analysis: delta=-237.4MB, gpu_est=")


def test_memory_of_gpt2_in_use_is_weights_cache_and_activations():
    result = result_of(zoo.gpt2(), zoo.gpt2())
    # 1,024 tokens of context; four vectors of 768 and two of 3,072 a token; 50,257 logits in f32.
    weights = 4 * 124_439_808
    cache = 1024 * 12 * 2 * 768 * 2
    activations = 1024 * 2 * (4 * 768 + 2 * 3072) + 4 * 50257
    use = result.values["gpu_est"]
    assert use.value == pytest.approx((weights + cache + activations) / MIB)
    assert use.evidence is Evidence.DERIVED
    assert "1024 tokens" in use.assumption


def test_memory_of_other_networks_is_estimated_from_the_weights():
    shapes = zoo.resnet((2, 2, 2, 2), bottleneck=False)
    result = result_of(shapes, shapes)
    use = result.values["gpu_est"]
    payload = sum(tensor.nbytes for tensor in headers_of(shapes).tensors.values())
    assert use.value == pytest.approx(1.2 * payload / MIB)
    assert (use.evidence, use.confidence) == (Evidence.ESTIMATED, 0.6)


def test_packed_codes_hide_how_many_parameters_there_are():
    result = ANALYSIS.run(pair_of({}, {"fc.qweight": np.zeros((4, 4), "i4")}), {"memory_limit_mb": 0})
    assert result.values["efficiency"].reason == "NOT_DEQUANTIZABLE"


@pytest.mark.parametrize(("limit", "alarms"), [(0, 0), (1, 1), (400, 1), (100_000, 0)])
def test_limit_is_off_at_zero_and_warns_above(limit, alarms):
    result = result_of(zoo.gpt2(), zoo.gpt2(), limit=limit)
    assert [finding.severity for finding in result.findings] == [Severity.WARNING] * alarms


def test_context_and_batch_of_the_user_enter_the_estimate():
    usual = result_of(zoo.gpt2(), zoo.gpt2()).values["gpu_est"].value
    deployed = result_of(zoo.gpt2(), zoo.gpt2(), deployment=Deployment(context=512, batch=16))
    use = deployed.values["gpu_est"]
    # Half of the tokens, sixteen sequences: eight times the cache and the layer, sixteen times the logits.
    cache, layer, logits = 36 * MIB, 1024 * 2 * (4 * 768 + 2 * 3072), 4 * 50257
    assert (use.value - usual) * MIB == pytest.approx(7 * (cache + layer) + 15 * logits)
    assert "512 tokens, batch 16" in use.assumption
    assert not deployed.findings
    beyond = result_of(zoo.gpt2(), zoo.gpt2(), deployment=Deployment(context=4096))
    assert [finding.severity for finding in beyond.findings] == [Severity.NOTICE]


def test_tables_hold_the_cache_by_context_and_other_dtypes():
    result = result_of(zoo.gpt2(), zoo.llama(2, 4096, 14336, 1024), sliding_window=4096)
    cache = {row[0]: row[1:] for row in table(result, "Key/value cache").rows}
    assert list(cache) == [1024, 2048, 8192, 32768]
    # A: 36 KiB a token. B: 8 KiB a token, and nothing more after the window of 4,096.
    assert cache[8192][1] == cache[32768][1] == "32.0 MiB"
    # The last two columns hold the same for eight sequences.
    assert cache[8192][3] == "256.0 MiB"
    parameters = sum(np.prod(shape) for shape in zoo.llama(2, 4096, 14336, 1024).values())
    dtypes = dict(table(result, "Weights of B").rows)
    assert dtypes["4 bit"] == f"{parameters / 2 / MIB:.1f} MiB"
    assert "key/value" not in " ".join(
        block.title.lower() for block in result_of(zoo.bert(), zoo.bert()).blocks if isinstance(block, Table)
    )


def test_estimate_shows_its_formula():
    shapes = zoo.llama(4, 4096, 14336, 1024)
    kinds = ["sliding_attention", "full_attention"] * 2
    load = Deployment(context=8192, batch=2)
    result = result_of(shapes, shapes, deployment=load, sliding_window=4096, layer_types=kinds)
    found = table(result, "Memory in use, 8192 tokens, batch 2")
    of_b = {row[0]: row[2] for row in found.rows}
    kept = "2 × 2 bytes × (2 layers × 2048 × min(8192, 4096) + 2 layers × 2048 × 8192)"
    assert f"keys, values and states {kept};" in found.note
    assert of_b["keys, values and states"] == write_bytes(2 * 2 * (2 * 2048 * min(8192, 4096) + 2 * 2048 * 8192))
    assert "activations 2 × 8192 × 2 bytes × (4 × 4096 + 2 × 14336) + 2 × 4 bytes × 32000:" in found.note
    assert of_b["activations"] == write_bytes(2 * 8192 * 2 * (4 * 4096 + 2 * 14336) + 2 * 4 * 32000)
    assert of_b["in use"] == write_bytes(result.values["gpu_est"].value * MIB)
    assert any("sliding window" in assumption for assumption in result.assumptions)


def test_shared_heads_and_training_are_told():
    result = result_of(zoo.gpt2(), zoo.llama(2, 4096, 14336, 1024), num_attention_heads=32)
    told = [block for block in result.blocks if isinstance(block, Sentence) and "for every head" in block.template]
    assert [block.said["times"] for block in told] == [4.0]
    training = {row[0]: row[1:] for row in table(result, "Memory in training").rows}
    parameters = sum(np.prod(shape) for shape in zoo.llama(2, 4096, 14336, 1024).values())
    assert training["weights, gradients and Adam"][2] == write_bytes(16 * parameters)
    kept = 2048 * 4096 * 2 * (34 + 5 * 32 * 2048 / 4096)
    assert training["activations of all layers"][2] == write_bytes(kept)
    unsaid = table(result_of(zoo.gpt2(), zoo.gpt2()), "Memory in training")
    assert {row[0]: row[3] for row in unsaid.rows}["activations of all layers"] == "unknown"


def test_state_that_nothing_tells_is_unknown_in_the_table_and_left_to_the_rule_of_thumb():
    mixer = {"A_log": (8,), "conv1d.weight": (256, 1, 4), "in_proj.weight": (392, 64), "out_proj.weight": (64, 128)}
    keys = {"layers.1.self_attn.k_proj.weight": (64, 64), "layers.1.self_attn.v_proj.weight": (64, 64)}
    shapes = {f"layers.0.mixer.{name}": shape for name, shape in mixer.items()} | keys
    shapes |= {"layers.1.self_attn.q_proj.weight": (64, 64)}
    unsaid = result_of(shapes, shapes)
    assert unsaid.values["gpu_est"].evidence is Evidence.ESTIMATED
    assert table(unsaid, "Key/value cache").rows[0][2] == "unknown"
    assert any("recurrent state" in assumption for assumption in unsaid.assumptions)
    said = result_of(shapes, shapes, state_size=32)
    assert said.values["gpu_est"].evidence is Evidence.DERIVED
    assert "5120 of state" in table(said, "Memory in use").note


def test_stored_head_that_the_configuration_ties_could_be_saved():
    result = result_of(zoo.llama(1, 64, 96), zoo.llama(1, 64, 96), tie_word_embeddings=True)
    sentences = [block for block in result.blocks if isinstance(block, Sentence)]
    saved = [block.said["size"] for block in sentences if "could be saved" in block.template]
    assert saved == [f"{32000 * 64 * 4 / MIB:.1f} MiB"]
