"""inference-speed-estimate and performance-impact-estimate: lines, evidence, tables."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import zoo
from builders import HeaderOnly, headers_of, pair_of

from diffai_jupyter.analyses import all_analyses
from diffai_jupyter.analyses.shown.timetables import BATCHES
from diffai_jupyter.checkpoint.dtypes import DTYPES
from diffai_jupyter.checkpoint.model import Checkpoint
from diffai_jupyter.checkpoint.quantized import Product
from diffai_jupyter.contract.blocks import Mark, Sentence, Series, Severity, Table
from diffai_jupyter.contract.result import Result
from diffai_jupyter.evidence import Evidence
from diffai_jupyter.hardware import PROFILES, Deployment, hardware_of
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.scan.pairing import pair_checkpoints
from diffai_jupyter.wording import say

SPEED = all_analyses()["inference-speed-estimate"]
IMPACT = all_analyses()["performance-impact-estimate"]
LLAMA = zoo.llama(4, 512, 1376, 128)
DEEPER = zoo.llama(8, 512, 1376, 128)
NAMED = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}


def paired(
    a: zoo.Shapes, b: zoo.Shapes, dtypes: tuple[str, str] = ("bf16", "bf16"), device: str = "generic",
    context: int | None = None, batch: int = 1, **config: Any,
) -> Pair:
    sides = (headers_of(side, dtype, config=config) for side, dtype in zip((a, b), dtypes, strict=True))
    pair = pair_checkpoints(*sides)
    pair.deployment = Deployment(hardware_of(device), context, batch)
    return pair


def run(analysis: Any, pair: Pair, **thresholds: float) -> Result:
    usual = {threshold.key: threshold.default for threshold in analysis.thresholds}
    result: Result = analysis.run(pair, usual | thresholds)
    return result


def tables(result: Result) -> dict[str, Table]:
    return {block.title: block for block in result.blocks if isinstance(block, Table)}


def words(result: Result) -> str:
    sentences = [result.meaning, *(block for block in result.blocks if isinstance(block, Sentence))]
    return " ".join(say(sentence.template, sentence.said) for sentence in sentences)


def test_equal_networks_run_alike_and_that_is_derived():
    pair = paired(LLAMA, LLAMA)
    speed, impact = run(SPEED, pair), run(IMPACT, pair)
    assert SPEED.line(speed).startswith("inference_speed_estimate: speed_ratio=1.00x, flops_ratio=1.00x, bottlenecks=")
    assert IMPACT.line(impact) == (
        "performance_impact_estimate: latency_change=+0.0%, throughput_change=+0.0%, confidence=1.00"
    )
    assert {value.evidence for value in impact.values.values()} == {Evidence.DERIVED}
    assert speed.values["speed_ratio"].evidence is Evidence.DERIVED
    assert speed.values["bottlenecks"].evidence is Evidence.ESTIMATED
    assert not impact.findings


@pytest.mark.parametrize(("dtype", "other"), [("f16", "bf16"), ("f32", "f32")])
def test_names_and_halves_of_equal_width_change_nothing(dtype, other):
    renamed = {name.removeprefix("model."): shape for name, shape in LLAMA.items()}
    values = run(SPEED, paired(LLAMA, renamed, (dtype, other))).values
    assert (values["speed_ratio"].value, values["flops_ratio"].value) == (1.0, 1.0)


def test_twice_the_blocks_take_about_twice_the_time():
    # A head of 32,000 words counts on both sides.
    small = zoo.llama(16, 512, 1376, 128, vocab=100), zoo.llama(32, 512, 1376, 128, vocab=100)
    speed, impact = run(SPEED, paired(*small)), run(IMPACT, paired(*small))
    assert speed.values["flops_ratio"].value == pytest.approx(2.0, rel=0.01)
    assert speed.values["speed_ratio"].value == pytest.approx(0.5, rel=0.02)
    assert impact.values["latency_change"].value == pytest.approx(100.0, rel=0.02)
    assert impact.values["throughput_change"].value == pytest.approx(-50.0, rel=0.02)
    assert speed.values["flops_ratio"].evidence is Evidence.DERIVED
    for value in (speed.values["speed_ratio"], *impact.values.values()):
        assert (value.evidence, value.confidence) == (Evidence.ESTIMATED, 0.65)
    assert impact.values["confidence"].value == 0.65


@pytest.mark.parametrize("batch", [1, 16])
def test_swapping_the_sides_turns_the_ratios_round(batch):
    one, other = (run(SPEED, paired(*sides, batch=batch)).values for sides in ((LLAMA, DEEPER), (DEEPER, LLAMA)))
    for key in ("speed_ratio", "flops_ratio"):
        assert one[key].value * other[key].value == pytest.approx(1.0)


def test_latency_is_the_inverse_of_speed():
    pair = paired(LLAMA, DEEPER, batch=4, device="h100")
    speed, impact = run(SPEED, pair).values["speed_ratio"], run(IMPACT, pair).values["latency_change"]
    assert impact.value == pytest.approx(100 * (1 / speed.value - 1))


def test_a_slower_model_is_a_warning_above_the_limit():
    pair = paired(LLAMA, DEEPER)
    growth = run(IMPACT, pair).values["latency_change"].value / 100
    for limit, found in ((growth * 0.99, 1), (growth * 1.01, 0)):
        findings = run(IMPACT, pair, latency_growth=limit).findings
        assert [finding.severity for finding in findings] == [Severity.WARNING] * found
    assert not run(IMPACT, paired(DEEPER, LLAMA)).findings


def test_words_say_what_is_predicted_and_from_what():
    pair = paired(LLAMA, DEEPER, device="cpu", context=300, **NAMED)
    speed, impact = run(SPEED, pair), run(IMPACT, pair)
    assert "for the next token, 300 tokens in the context (device cpu)" in words(speed)
    assert "max(operations / 1 TFLOPS, bytes / 80 GB/s) + 2 µs" in words(speed)
    assert PROFILES["cpu"].basis in words(speed)
    assert "more time than A" in words(impact)
    assert "fewer tokens a second at batch 32" in words(impact)
    assert "less time than A" in words(run(IMPACT, paired(DEEPER, LLAMA)))
    assert "the next token, 300 tokens in the context" in speed.assumptions
    assert not any("head" in assumption for assumption in speed.assumptions)


def test_what_had_to_be_assumed_is_told():
    tied = {name: shape for name, shape in LLAMA.items() if not name.startswith("lm_head")}
    assert any("embedding is taken to be the head" in said for said in run(SPEED, paired(tied, tied)).assumptions)
    experts = run(SPEED, paired(zoo.mixtral(1), zoo.mixtral(1)))
    assert any("upper bound" in said for said in experts.assumptions)
    shapes = zoo.resnet((2, 2, 2, 2), bottleneck=False)
    assert any("224 x 224 is taken" in said for said in run(IMPACT, paired(shapes, shapes)).assumptions)


def test_totals_of_one_token():
    table = tables(run(SPEED, paired(zoo.gpt2(), zoo.gpt2(), ("f32", "bf16"), device="h100")))["One token, batch 1"]
    matrices = 12 * 12 * 768**2 + 50257 * 768
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["operations"][0] == f"{(2 * matrices + 4 * 512 * 12 * 768) / 1e6:.4g} MFLOP"
    assert rows["weights that are read"] == (f"{4 * matrices / 2**20:.1f} MiB", f"{2 * matrices / 2**20:.1f} MiB")
    assert rows["modules"] == ("61", "61")


def test_time_by_module_is_short_for_a_deep_model_and_adds_up():
    result = run(SPEED, paired(zoo.llama(24, 256, 704), zoo.llama(100, 256, 704)))
    table = tables(result)["Time by module"]
    assert len(table.rows) <= 8
    rows = {row[0]: row for row in table.rows}
    assert rows["feed-forward in"][1] == 24
    assert rows["feed-forward in"][3] == 100
    assert sum(float(row[5] or 0) for row in table.rows) == pytest.approx(100, abs=0.5)
    shares = [row[5] for row in table.rows]
    assert shares == sorted(shares, reverse=True)


def test_blocks_that_differ_are_told_apart():
    shapes = zoo.llama(4, 512, 1376)
    kinds = ["full_attention", *["sliding_attention"] * 3]
    result = run(SPEED, paired(shapes, shapes, context=100_000, sliding_window=1000, layer_types=kinds))
    rows = {row[0]: row[3] for row in tables(result)["Time by module"].rows}
    assert rows["attention scores, from block 0"] == 1
    assert rows["attention scores, from block 1"] == 3


def test_many_kinds_of_kernels_are_told_in_thirds():
    shapes = zoo.resnet((3, 4, 6, 3), bottleneck=True)
    rows = [row[0] for row in tables(run(SPEED, paired(shapes, shapes, image_size=224)))["Time by module"].rows]
    assert set(rows) == {
        "convolution, first third", "convolution, middle third", "convolution, last third", "matrix",
    }  # fmt: skip


def test_bottlenecks_are_named_and_follow_their_threshold():
    shapes = zoo.llama(4, 256, 704)
    pair = paired(shapes, shapes, device="1e12,5e10,0")
    result = run(SPEED, pair)
    assert result.values["bottlenecks"].value == 1
    assert "Bottlenecks of B: lm_head." in words(result)
    none = run(SPEED, pair, bottleneck_means=100.0)
    assert none.values["bottlenecks"].value == 0
    assert "stands out" in words(none)
    even = paired(zoo.perceptron(), zoo.perceptron())
    assert run(SPEED, even).values["bottlenecks"].value == 0
    assert run(SPEED, even, bottleneck_means=1.0).values["bottlenecks"].value >= 1


def test_tables_of_batches_and_devices():
    result = run(SPEED, paired(LLAMA, DEEPER, device="1e12,5e10,0", batch=3))
    by_batch = tables(result)["Tokens a second by batch, on 1e12,5e10,0"]
    assert [row[0] for row in by_batch.rows] == sorted({*BATCHES, 3})
    devices = tables(result)["Time on other devices, batch 3"].rows
    assert [row[0] for row in devices] == ["1e12,5e10,0", *PROFILES]
    ratio = result.values["speed_ratio"].value
    assert devices[0][5] == f"{ratio:.2f}x"


def test_chart_draws_the_share_of_time():
    (chart,) = [block for block in run(SPEED, paired(LLAMA, DEEPER)).blocks if isinstance(block, Series)]
    assert (chart.key, chart.mark) == ("time_by_module", Mark.BAR)
    assert [curve.label for curve in chart.curves] == ["A", "B"]
    for curve in chart.curves:
        assert sum(curve.y) == pytest.approx(100)


def test_throughput_keeps_to_the_batch_of_the_user():
    titles = [
        tables(run(IMPACT, paired(LLAMA, DEEPER, batch=batch)))["Latency and throughput"].rows for batch in (1, 4)
    ]
    assert [rows[0][0] for rows in titles] == ["time of one token, batch 1", "time of one token, batch 4"]
    assert titles[0][1][0] == "tokens a second, batch 32: prompts of 512, answers of 128"
    assert titles[1][1][0] == "tokens a second, batch 4: prompts of 512, answers of 128"


def test_another_dtype_is_faster_with_half_the_confidence():
    values = run(IMPACT, paired(LLAMA, LLAMA, ("f32", "bf16"))).values
    assert values["latency_change"].value < 0 < values["throughput_change"].value
    assert values["confidence"].value == 0.5
    assert "the dtypes differ" in words(run(IMPACT, paired(LLAMA, LLAMA, ("f32", "bf16"))))


def test_two_families_compare_with_little_confidence():
    values = run(IMPACT, paired(LLAMA, zoo.gpt2(4))).values
    assert values["confidence"].value == 0.3


def test_image_networks_without_a_size_are_estimated_at_equal_resolution():
    shapes = zoo.resnet((2, 2, 2, 2), bottleneck=False), zoo.resnet((3, 4, 6, 3), bottleneck=False)
    guessed, known = (run(SPEED, paired(*shapes, **config)).values for config in ({}, {"image_size": 224}))
    assert (guessed["flops_ratio"].evidence, guessed["flops_ratio"].confidence) == (Evidence.ESTIMATED, 0.5)
    assert guessed["speed_ratio"].confidence == guessed["bottlenecks"].confidence == 0.3
    assert known["flops_ratio"].evidence is Evidence.DERIVED
    # ResNet-34 over ResNet-18, as torchvision publishes them.
    assert known["flops_ratio"].value == pytest.approx(3.664 / 1.814, rel=0.01)


def unknown_reasons(analysis: Any, pair: Pair) -> set[str | None]:
    return {value.reason for value in run(analysis, pair).values.values()}


@pytest.mark.parametrize("analysis", [SPEED, IMPACT], ids=lambda analysis: analysis.flag)
def test_what_cannot_be_known_says_why(analysis):
    assert unknown_reasons(analysis, paired({}, {})) == {"NO_TARGET"}
    assert unknown_reasons(analysis, paired(LLAMA, zoo.vit(1))) == {"NO_TARGET"}
    assert "not do the same kind of work" in words(run(analysis, paired(LLAMA, zoo.vit(1))))
    sizeless = {"layer.0.attention.q_proj.weight": (64, 64), "patch_embed.proj.weight": (8, 3, 4, 4)}
    other = {**sizeless, "layer.1.attention.q_proj.weight": (64, 64)}
    assert unknown_reasons(analysis, paired(sizeless, other)) == {"NEEDS_CONFIG"}
    assert "Put a config.json" in words(run(analysis, paired(sizeless, other)))
    packed = pair_of({"fc.weight": np.zeros((4, 4), "f4")}, {"fc.qweight": np.zeros((4, 4), "i4")})
    assert unknown_reasons(analysis, packed) == {"NOT_DEQUANTIZABLE"}


def test_one_build_of_an_unknown_layout_runs_alike():
    sizeless = {"layer.0.attention.q_proj.weight": (64, 64), "patch_embed.proj.weight": (8, 3, 4, 4)}
    pair = paired(sizeless, sizeless)
    assert SPEED.line(run(SPEED, pair)) == (
        "inference_speed_estimate: speed_ratio=1.00x, flops_ratio=1.00x, bottlenecks=unknown"
    )
    assert IMPACT.line(run(IMPACT, pair)).endswith("latency_change=+0.0%, throughput_change=+0.0%, confidence=1.00")
    assert run(SPEED, pair).values["speed_ratio"].assumption == "the same shapes, dtypes and configuration"


def test_adapters_alone_have_operations_and_no_speed():
    def adapter(rank: int) -> Checkpoint:
        up, down = (
            HeaderOnly(shape, DTYPES["f32"], (name,), 4 * math.prod(shape))
            for name, shape in (("up", (64, rank)), ("down", (rank, 48)))
        )
        return Checkpoint("adapter", "headers", {"model.layers.0.self_attn.q_proj.lora": Product(up, down)})

    pair = pair_checkpoints(adapter(4), adapter(8))
    values = run(SPEED, pair).values
    assert values["flops_ratio"].value == 2.0
    assert values["speed_ratio"].reason == values["bottlenecks"].reason == "NEEDS_BASE"
    assert unknown_reasons(IMPACT, pair) == {"NEEDS_BASE"}
    assert "merged, it costs nothing" in words(run(SPEED, pair))
