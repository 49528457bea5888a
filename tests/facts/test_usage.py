"""Useless elements, planted and counted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from builders import checkpoint_of, pair_of

from diffai_jupyter.checkpoint.dtypes import DTYPES
from diffai_jupyter.checkpoint.model import Checkpoint
from diffai_jupyter.checkpoint.quantized import Product
from diffai_jupyter.checkpoint.tensor import ArrayTensor
from diffai_jupyter.evidence import Unknowable
from diffai_jupyter.facts.weights.stored import A, B
from diffai_jupyter.facts.weights.usage import Pattern, Usage, two_of_four, usage
from diffai_jupyter.scan.pairing import pair_checkpoints

State = Mapping[str, Any]


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype("f4")


def used(state: State) -> Usage:
    return usage(pair_of({}, state), B)


def test_dense_weights_are_all_of_use():
    found = used({"w": drawn(30, 40), "b": drawn(30)})
    assert (found.elements, found.useless, found.utilization) == (1230, 0, 1.0)


def test_zeros_and_what_is_not_finite():
    values = drawn(30, 40)
    values[3], values[:, 7] = 0, 0
    values[5, 5] = 0
    other = drawn(30, 40, seed=1)
    other[0, :3] = np.nan, np.inf, -np.inf
    found = used({"w": values, "v": other, "steps": np.zeros(9, "i8"), "bn.running_mean": np.zeros(5, "f4")})
    # A row of 40 and a column of 30 meet in one element.
    assert (found.zeros, found.in_lines, found.nonfinite) == (70, 69, 3)
    assert found.elements == 2400
    assert found.utilization == 1 - 73 / 2400


def test_a_tensor_of_zeros_counts_once():
    found = used({"w": np.zeros((20, 30), "f4")})
    assert (found.zeros, found.in_lines, found.utilization) == (600, 600, 0.0)


def test_copies_count_but_for_one():
    values = drawn(20, 30)
    values[2] = 0
    state = {"one": values, "three": values.copy(), "two": values.copy(), "other": drawn(20, 30, seed=2)}
    found = used(state)
    assert found.copies == ("three", "two")
    assert found.copied == 2 * 570
    assert found.zeros == 3 * 30
    assert used({"one": values, "tied": values}).copies == ()
    assert used({"one": values, "tied": values}).elements == 600


def test_equal_sums_alone_are_no_copy():
    values = drawn(20, 30)
    turned = np.ascontiguousarray(values[::-1])
    assert used({"one": values, "two": turned}).copied == 0


def test_constants_vectors_and_small_tensors_are_no_copies():
    state = {f"layers.{i}.norm.weight": np.repeat(np.array([0, 1], "f4"), 32) for i in range(4)}
    state |= {f"layers.{i}.ones": np.ones((8, 8), "f4") for i in range(2)}
    assert used({**state, "a": drawn(3, 4), "b": drawn(3, 4)}).copied == 0


def test_head_that_is_stored_again_is_the_copy_of_the_embedding():
    table = drawn(50, 8)
    found = used({"embed_tokens.weight": table, "lm_head.weight": table.copy()})
    assert found.copies == ("lm_head.weight",)
    assert found.copied == 400


def test_rows_of_padding_count_but_for_one():
    table = drawn(100, 16)
    table[90:] = table[90]
    table[5], table[6] = 0, 0
    table[91, 3] = -0.0
    table[90:, 3] = 0.0
    found = used({"embed_tokens.weight": table})
    assert found.repeated == 9 * 15
    assert found.zeros == 2 * 16 + 10
    # Only tables of words have padding; rows of one norm that differ are no repetition.
    assert used({"mlp.weight": table}).repeated == 0
    turned = drawn(40, 16)
    turned[7] = turned[3][::-1]
    assert used({"embed_tokens.weight": turned}).repeated == 0


def test_rows_of_a_copy_are_not_counted_twice():
    table = drawn(60, 16)
    table[50:] = table[50]
    found = used({"embed_tokens.weight": table, "lm_head.weight": table.copy()})
    assert found.repeated == 9 * 16
    assert found.copied == 60 * 16
    assert found.useless == 69 * 16


def normalized(prefix: str, width: int, gains: np.ndarray | None = None) -> dict[str, np.ndarray]:
    gain = np.ones(width, "f4") if gains is None else gains
    return {
        f"{prefix}.weight": gain, f"{prefix}.bias": drawn(width, seed=9), f"{prefix}.running_mean": drawn(width),
        f"{prefix}.running_var": np.ones(width, "f4"),
    }  # fmt: skip


def gains(width: int, *zero: int) -> np.ndarray:
    found = np.linspace(0.5, 1.5, width).astype("f4")
    found[list(zero)] = 1e-9
    return found


@pytest.mark.parametrize(
    ("convolution", "norm"),
    [
        ("layer1.0.conv2", "layer1.0.bn2"), ("features.0", "features.1"), ("downsample.0", "downsample.1"),
        ("encoder.convolution", "encoder.normalization"), ("head.fc1", "head.bn1"), ("conv", "norm"),
    ],
)  # fmt: skip
def test_rows_before_a_gain_of_zero(convolution, norm):
    kernel = drawn(8, 4, 3, 3)
    kernel[2, 0] = 0
    found = used({f"{convolution}.weight": kernel, **normalized(norm, 8, gains(8, 2, 5))})
    # Nine elements of the row were zero already.
    assert (found.shut, found.zeros, found.channels, found.unnamed_channels) == (2 * 36 - 9, 9, 2, 0)


def test_normalization_before_its_convolution_tells_nothing():
    state = {}
    for i, (inputs, outputs) in enumerate(((8, 8), (8, 16))):
        state |= {f"block.{i}.conv1.weight": drawn(outputs, inputs, 3, 3, seed=i)}
        state |= normalized(f"block.{i}.bn1", inputs, gains(inputs, 1))
    found = used(state)
    assert (found.shut, found.channels, found.unnamed_channels) == (0, 2, 2)


@pytest.mark.torch
def test_rows_that_are_shut_off_do_not_matter_to_torch():
    torch = pytest.importorskip("torch")

    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.bn1 = torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)
            self.downsample = torch.nn.Sequential(torch.nn.Conv2d(8, 16, 1, bias=False), torch.nn.BatchNorm2d(16))

        def forward(self, images):
            return self.downsample(torch.relu(self.bn1(self.conv1(images))))

    torch.manual_seed(0)
    net, images = Block().eval(), torch.randn(2, 3, 9, 9)
    rows = {"conv1": (net.conv1, net.bn1, [1, 5]), "downsample.0": (*net.downsample, [0, 7, 9])}
    with torch.no_grad():
        for _, norm, zero in rows.values():
            norm.weight[zero] = 0
        before = net(images)
        found = used({name: tensor.numpy() for name, tensor in net.state_dict().items()})
        for weights, _, zero in rows.values():
            weights.weight[zero] = 1e3 * torch.randn_like(weights.weight[zero])
        assert torch.equal(net(images), before)
    assert found.shut == 2 * 3 * 9 + 3 * 8
    assert found.channels == 5


def test_gains_that_are_alike_tell_their_rows_all_the_same():
    state = {}
    for i in range(3):
        state |= {f"layer.{i}.convolution.weight": drawn(8, 4, 3, 3, seed=i)}
        state |= normalized(f"layer.{i}.normalization", 8, np.repeat(np.array([0, 1], "f4"), 4))
    found = used(state)
    assert (found.shut, found.copied, found.channels, found.unnamed_channels) == (3 * 4 * 36, 0, 12, 0)


def test_small_gains_of_other_norms_shut_nothing_off():
    found = used({"conv.weight": drawn(8, 4, 3, 3), "norm.weight": gains(8, 1), "norm.bias": drawn(8)})
    assert (found.shut, found.channels) == (0, 0)


def test_both_sides_have_their_own_counts():
    a, b = drawn(30, 40), drawn(30, 40)
    b[:10] = 0
    pair = pair_of({"w": a, "grown": drawn(9, 9)}, {"w": b, "grown": drawn(9, 12)})
    assert [usage(pair, side).zeros for side in (A, B)] == [0, 400]
    assert [usage(pair, side).elements for side in (A, B)] == [1281, 1308]


def test_parts_of_a_fused_matrix_are_counted_once():
    fused = drawn(96, 32)
    fused[40] = 0
    parts = {
        f"layers.0.self_attn.{part}_proj.weight": fused[32 * i : 32 * i + 32].copy() for i, part in enumerate("qkv")
    }
    pair = pair_of({"layers.0.self_attn.qkv_proj.weight": fused}, parts)
    assert usage(pair, A) == usage(pair, B)
    assert (usage(pair, A).elements, usage(pair, A).zeros) == (96 * 32, 32)


def adapter(up: np.ndarray, down: np.ndarray) -> Checkpoint:
    factors = [ArrayTensor(values, DTYPES["f32"], (name,)) for name, values in (("u", up), ("d", down))]
    return Checkpoint("memory", "live", {"q.lora": Product(*factors)})


@pytest.mark.parametrize("rows", [40, 9000])
def test_of_an_adapter_the_stored_factors_are_counted(rows):
    # As before the first step: B is zero. A large product is not multiplied out.
    zero, down = adapter(np.zeros((rows, 4), "f4"), drawn(4, 600)), adapter(drawn(rows, 4), drawn(4, 600))
    pair = pair_checkpoints(zero, down)
    assert usage(pair, A).elements == 4 * rows + 2400
    assert usage(pair, A).zeros == 4 * rows
    assert usage(pair, B).useless == 0


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ({}, "NO_TARGET"),
        ({"n": np.ones(3, "i8")}, "NO_TARGET"),
        ({"fc.qweight": np.zeros((4, 4), "i4")}, "NOT_DEQUANTIZABLE"),
    ],
)
def test_what_cannot_be_counted_says_why(state, reason):
    with pytest.raises(Unknowable) as miss:
        used(state)
    assert miss.value.reason == reason


def patterned(rows: int, cols: int, keep: int = 2) -> np.ndarray:
    """Keep the largest few of every four neighbours, as tools that prune for sparse tensor cores do."""
    fours = drawn(rows, cols // 4, 4)
    order = np.argsort(-np.abs(fours), axis=2)
    np.put_along_axis(fours, order[:, :, keep:], 0, axis=2)
    return fours.reshape(rows, cols)


def test_two_of_four():
    random = drawn(32, 64, seed=4)
    random[np.abs(random) < np.quantile(np.abs(random), 0.6)] = 0
    broken = patterned(32, 64)
    broken[7, 8:12] = 1, 1, 1, 0
    state = {
        "sparse": patterned(32, 64), "sparser": patterned(32, 64, keep=1), "dense": drawn(32, 64), "random": random,
        "broken": broken, "zero": np.zeros((32, 64), "f4"), "odd": drawn(32, 63), "kernel": drawn(8, 4, 4, 4),
    }  # fmt: skip
    assert two_of_four(pair_of({}, state), B) == Pattern(6, ("sparse", "sparser"), 2 * 32 * 64)
    assert two_of_four(pair_of({}, {}), B) == Pattern(0, (), 0)


def test_dense_matrices_are_not_read_again():
    class Counted(ArrayTensor):
        reads = 0

        def codes(self, rows, cols):
            Counted.reads += 1
            return super().codes(rows, cols)

    checkpoint = Checkpoint("m", "live", {"w": Counted(drawn(64, 64), DTYPES["f32"], ("w",))})
    pair = pair_checkpoints(checkpoint_of({}), checkpoint)
    usage(pair, B)
    first = Counted.reads
    assert two_of_four(pair, B).matrices == 1
    assert Counted.reads == first == 1
