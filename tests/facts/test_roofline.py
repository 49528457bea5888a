"""Predicted times, against the roofline evaluated by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import zoo
from builders import headers_of
from hypothesis import given
from hypothesis import strategies as st

from diffai_jupyter.evidence import Unknowable
from diffai_jupyter.facts.network.operations import Operation
from diffai_jupyter.facts.network.passage import Unit
from diffai_jupyter.facts.network.roofline import (
    Bound,
    Run,
    context_of,
    flops_of_unit,
    forecast,
    is_one_family,
    is_same_build,
    serving,
    timings,
)
from diffai_jupyter.hardware import PROFILES, Deployment, Hardware, hardware_of
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.scan.pairing import pair_checkpoints

GENERIC = PROFILES["generic"]
SLOW_ARITHMETIC = Hardware("slow arithmetic", 1e6, 1e15, 0.0, "test")
SLOW_MEMORY = Hardware("slow memory", 1e15, 1e6, 0.0, "test", width=0)
SLOW_START = Hardware("slow start", 1e18, 1e18, 1.0, "test")
LLAMA = zoo.llama(4, 512, 1376, 128)
LARGER = zoo.llama(4, 1024, 2752, 256)


def paired(
    a: zoo.Shapes, b: zoo.Shapes, dtypes: tuple[str, str] = ("bf16", "bf16"), deployment: Deployment | None = None,
    configs: tuple[dict[str, Any], dict[str, Any]] = ({}, {}),
) -> Pair:
    pair = pair_checkpoints(headers_of(a, dtypes[0], config=configs[0]), headers_of(b, dtypes[1], config=configs[1]))
    pair.deployment = deployment or Deployment()
    return pair


@given(
    flops=st.floats(0, 1e15), weights=st.floats(0, 1e12), numbers=st.floats(0, 1e12),
    peak=st.floats(1e9, 1e15), bandwidth=st.floats(1e9, 1e13), overhead=st.floats(0, 1e-3),
    width=st.sampled_from([2, 4]),
)  # fmt: skip
def test_a_module_waits_for_the_slower_roof(flops, weights, numbers, peak, bandwidth, overhead, width):
    device = Hardware("any", peak, bandwidth, overhead, "test", width)
    (timing,) = timings([Operation("m", "matrix", None, flops, weights, numbers)], device)
    compute, memory = flops / peak, (weights + width * numbers) / bandwidth
    assert timing.seconds == pytest.approx(overhead + max(compute, memory))
    if overhead > max(compute, memory):
        assert timing.bound is Bound.START
    else:
        assert timing.bound is (Bound.COMPUTE if compute >= memory else Bound.MEMORY)


def test_bottlenecks_stand_out_of_the_share_and_of_the_mean():
    def slow(first: float, count: int, means: float = 3.0) -> list[str]:
        done = [Operation(f"m{i}", "matrix", i, first if i == 0 else 1.0, 0, 0) for i in range(count)]
        run = Run(timings(done, Hardware("one", 1.0, 1.0, 0.0, "test")))
        return [timing.operation.name for timing in run.bottlenecks(means)]

    # One of 100 takes 3/102 of the time: three times the mean, but less than 5 %.
    assert slow(3.0, 100) == []
    assert slow(6.0, 100) == ["m0"]
    # One of ten takes a fourth: more than 5 %, but less than three times the mean of a tenth.
    assert slow(3.0, 10) == []
    assert slow(4.0, 10) == ["m0"]
    assert slow(4.0, 10, means=4.0) == []
    assert slow(1.0, 4, means=1.0) == ["m0", "m1", "m2", "m3"]


def test_the_next_token_of_a_large_model_takes_as_long_as_reading_it():
    pair = paired(zoo.llama(32, 4096, 11008), zoo.llama(32, 4096, 11008))
    found = forecast(pair, Hardware("no start", 312e12, 2e12, 0.0, "test"))
    read = 2 * (6_738_415_616 - 32000 * 4096 - 65 * 4096)
    cache = 2 * 512 * 2 * 32 * 4096
    assert found.unit is Unit.TOKEN
    # Activations add little to weights and cache.
    assert found.a.seconds == pytest.approx((read + cache) / 2e12, rel=1e-3)
    assert found.a.bound is Bound.MEMORY


def test_ratios_are_those_of_the_roof_that_binds():
    pair = paired(LLAMA, LARGER)
    a, b = flops_of_unit(pair)
    assert forecast(pair, SLOW_ARITHMETIC).speed_ratio == pytest.approx(a / b)
    read = [2 * (sum(map(math.prod, shapes.values()))) for shapes in (LLAMA, LARGER)]
    tables = [2 * (32000 * width + 9 * width) for width in (512, 1024)]
    assert forecast(pair, SLOW_MEMORY).speed_ratio == pytest.approx(
        (read[0] - tables[0]) / (read[1] - tables[1])
    )
    # As many modules take as many starts.
    assert forecast(pair, SLOW_START).speed_ratio == pytest.approx(1.0)


def test_half_the_bytes_take_half_the_time_where_memory_binds():
    pair = paired(LLAMA, LLAMA, ("f32", "bf16"))
    assert forecast(pair, SLOW_MEMORY).speed_ratio == pytest.approx(2.0)
    assert forecast(pair, SLOW_ARITHMETIC).speed_ratio == 1.0
    assert forecast(pair, GENERIC).confidence == 0.5
    assert not forecast(pair, GENERIC).is_same


@pytest.mark.parametrize("device", PROFILES.values(), ids=str)
@pytest.mark.parametrize("shapes", [LLAMA, zoo.bert(2), zoo.vit(2), zoo.recurrent(4), zoo.mamba(2), zoo.perceptron()])
def test_equal_networks_take_equal_time(shapes, device):
    pair = paired(shapes, shapes)
    found = forecast(pair, device, 3)
    assert found.is_same
    assert found.speed_ratio == 1.0
    served = serving(pair, device, 32)
    assert served.is_same
    assert served.seconds_a == served.seconds_b
    assert is_same_build(pair)


@pytest.mark.parametrize("device", PROFILES.values(), ids=str)
def test_a_larger_batch_serves_more_and_takes_longer(device):
    pair = paired(LLAMA, LARGER)
    seconds = [forecast(pair, device, batch).a.seconds for batch in (1, 2, 8, 64)]
    assert seconds == sorted(seconds)
    rates = [batch / time for batch, time in zip((1, 2, 8, 64), seconds, strict=True)]
    assert rates == sorted(rates)


def test_throughput_is_not_the_inverse_of_latency():
    # Shared keys and values make B read less of the cache, which counts at a large batch only.
    pair = paired(zoo.llama(32, 4096, 11008), zoo.llama(32, 4096, 14336, 1024))
    one, many = forecast(pair, GENERIC), serving(pair, GENERIC, 32)
    assert one.speed_ratio < 1 < many.seconds_a / many.seconds_b


def test_a_request_is_a_prompt_and_its_answer():
    pair = paired(LLAMA, LLAMA)
    found = serving(pair, GENERIC, 32)
    assert (found.prompt, found.made, found.count) == (512, 128, 32 * 128)
    # One answer token costs about what the next token costs at the mean context.
    pair.deployment = Deployment(context=576)
    step = forecast(pair, GENERIC, 32).a.seconds
    assert found.seconds_a > 128 * step
    assert found.seconds_a < 128 * step * 1.5


@pytest.mark.parametrize(
    ("longest", "asked", "context", "request_"),
    [
        (None, None, 512, (512, 128)), (4096, None, 512, (512, 128)), (100, None, 100, (80, 20)),
        (None, 2000, 2000, (1600, 400)), (100, 2000, 2000, (1600, 400)),
    ],
)  # fmt: skip
def test_the_context_is_that_of_the_user_or_what_both_take(longest, asked, context, request_):
    config = {} if longest is None else {"max_position_embeddings": longest}
    pair = paired(LLAMA, LLAMA, deployment=Deployment(context=asked), configs=({}, config))
    assert context_of(pair) == context
    found = serving(pair, GENERIC, 32)
    assert (found.prompt, found.made) == request_


@pytest.mark.parametrize(
    ("a", "b", "dtypes", "device", "confidence"),
    [
        pytest.param(zoo.bert(2), zoo.bert(4), ("bf16", "f16"), SLOW_ARITHMETIC, 0.95, id="arithmetic binds"),
        pytest.param(LLAMA, LARGER, ("bf16", "bf16"), GENERIC, 0.65, id="memory or starting binds"),
        pytest.param(LLAMA, LARGER, ("bf16", "f8_e4m3"), SLOW_ARITHMETIC, 0.5, id="another dtype"),
        pytest.param(LLAMA, zoo.gpt2(2), ("bf16", "bf16"), SLOW_ARITHMETIC, 0.3, id="another family"),
        pytest.param(
            zoo.resnet((2, 2, 2, 2), False), zoo.resnet((1, 1, 1, 1), False), ("f32", "f32"), SLOW_ARITHMETIC, 0.3,
            id="image size unknown",
        ),
    ],
)  # fmt: skip
def test_confidence_is_that_of_the_weakest_condition(a, b, dtypes, device, confidence):
    assert forecast(paired(a, b, dtypes), device).confidence == confidence


def test_a_configuration_can_say_that_both_are_one_family():
    configs = ({"model_type": "x"}, {"model_type": "x"})
    assert not is_one_family(paired(LLAMA, zoo.gpt2(2)))
    assert is_one_family(paired(LLAMA, zoo.gpt2(2), configs=configs))
    assert is_one_family(paired(LLAMA, LARGER, configs=({"model_type": "llama"}, {"model_type": "mistral"})))
    assert not is_one_family(paired(LLAMA, zoo.recurrent(4), configs=configs))


def test_different_work_does_not_compare():
    with pytest.raises(Unknowable) as miss:
        forecast(paired(LLAMA, zoo.vit(1)), GENERIC)
    assert (miss.value.reason, miss.value.said) == ("NO_TARGET", {"unit_a": "token", "unit_b": "image"})


def test_one_build_is_told_whatever_it_computes():
    shapes = {"a.weight": (4, 4), "b.tensor": (3, 3, 3)}
    assert is_same_build(paired(shapes, shapes))
    assert not is_same_build(paired(shapes, shapes, ("f32", "bf16")))
    assert not is_same_build(paired(shapes, {**shapes, "a.weight": (4, 5)}))
    assert not is_same_build(paired(LLAMA, LLAMA, configs=({"hidden_act": "silu"}, {"hidden_act": "gelu"})))
    assert not is_same_build(paired({"a.bias": (4,)}, {"a.bias": (4,)}))


def test_a_device_in_numbers_is_taken():
    device = hardware_of("1e12,5e10,1e-5")
    assert (device.flops, device.bandwidth, device.overhead, device.width) == (1e12, 5e10, 1e-5, 2)
    assert PROFILES["cpu"].width == 4
