"""Similarity of layers: against closed forms in double precision, and invariances."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from bank import noised
from builders import checkpoint_of, headers_of, pair_of, transformer
from zoo import recurrent, resnet, vgg16

from diffai_jupyter.checkpoint.dtypes import DTYPES
from diffai_jupyter.checkpoint.model import Checkpoint
from diffai_jupyter.checkpoint.quantized import Product
from diffai_jupyter.checkpoint.tensor import ArrayTensor
from diffai_jupyter.evidence import Unknowable
from diffai_jupyter.facts import give
from diffai_jupyter.facts.change.changes import Status, TensorChange, changes
from diffai_jupyter.facts.similarity.graph import clustering_of, jackknife
from diffai_jupyter.facts.similarity.kernels import Inputs, Kernel
from diffai_jupyter.facts.similarity.similarity import Similarity, similarity
from diffai_jupyter.facts.similarity.streams import Joined, Stream, streams
from diffai_jupyter.scan.one_thread import plain_algebra
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.scan.pairing import pair_checkpoints
from diffai_jupyter.scan.readings import settled

Array = np.ndarray
State = Mapping[str, Array]


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Multiply on one thread: small products on many threads wait for each other where cores are busy."""
    with plain_algebra():
        yield


def gaussian(rows: int, cols: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=(rows, cols)) / np.sqrt(cols)


@functools.cache
def orthogonal(size: int, seed: int = 0) -> Array:
    return np.linalg.qr(gaussian(size, size, seed))[0]


def decaying(size: int, power: float, seed: int = 0) -> Array:
    spectrum = np.arange(1, size + 1) ** -power
    return orthogonal(size, 2 * seed) * spectrum @ orthogonal(size, 2 * seed + 1)


def cka(a: Array, b: Array) -> float:
    """Return |A B'|^2 / (|A A'| |B B'|) in double precision."""
    a, b = np.asarray(a, dtype="f8"), np.asarray(b, dtype="f8")
    return float(np.linalg.norm(a @ b.T) ** 2 / np.linalg.norm(a @ a.T) / np.linalg.norm(b @ b.T))


def null(a: Array, b: Array) -> float:
    """Return what `cka` is on average over rotations of the inputs of one."""
    return float(
        np.linalg.norm(a) ** 2 * np.linalg.norm(b) ** 2
        / a.shape[1] / np.linalg.norm(a @ a.T) / np.linalg.norm(b @ b.T)
    )  # fmt: skip


def expected(a: Array, b: Array) -> float:
    return float(np.clip((cka(a, b) - null(a, b)) / (1 - null(a, b)), 0, 1))


def stack(*layers: Array) -> dict[str, Array]:
    return {f"net.{i}.weight": layer.astype("f4") for i, layer in enumerate(layers)}


def found(a: State, b: State) -> Similarity:
    return similarity(pair_of(a, b))


def unread(shapes: Mapping[str, tuple[int, ...]]) -> Pair:
    """Return a pair of headers whose tensors count as changed, and must not be read."""
    pair = pair_checkpoints(headers_of(shapes), headers_of(shapes))
    give(pair, changes, tuple(TensorChange(t, None, Status.CHANGED, None) for t in settled(pair)))  # type: ignore[arg-type]
    return pair


def names(stream: Stream) -> list[str]:
    return [layer.name_a for layer in stream.layers]


# The number itself.


def test_cka_is_that_of_the_outputs_on_white_inputs():
    a, b = decaying(24, 0.5), decaying(24, 0.5) + 0.3 * gaussian(24, 24, 5)
    inputs = np.random.default_rng(1).normal(size=(50_000, 24))
    x, y = inputs @ a.T, inputs @ b.T
    x, y = x - x.mean(0), y - y.mean(0)
    measured = np.linalg.norm(y.T @ x) ** 2 / np.linalg.norm(x.T @ x) / np.linalg.norm(y.T @ y)
    assert cka(a, b) == pytest.approx(measured, abs=0.02)


def test_null_is_the_mean_over_rotations_and_that_of_gaussian_matrices():
    a, b = decaying(20, 0.7), gaussian(50, 20, 3)
    rotated = [cka(a @ orthogonal(20, seed), b) for seed in range(100, 500)]
    assert null(a, b) == pytest.approx(np.mean(rotated), abs=4 * np.std(rotated) / 20)
    for rows, cols in ((400, 400), (1200, 400), (50, 400)):
        one, two = gaussian(rows, cols, 1), gaussian(2 * rows, cols, 2)
        formula = np.sqrt(rows * 2 * rows / ((rows + cols) * (2 * rows + cols)))
        assert null(one, two) == pytest.approx(formula, rel=0.01)
    assert null(gaussian(400, 400, 1), gaussian(400, 400, 2)) == pytest.approx(0.5, abs=0.005)


def test_narrow_layers_are_exact():
    shapes = ((64, 40), (40, 40), (200, 40), (8, 40))
    a = [gaussian(*shape, seed) for seed, shape in enumerate(shapes)] + [decaying(40, 1.0)]
    b = [layer + 0.4 * gaussian(*layer.shape, 50 + i) for i, layer in enumerate(a)]
    result = found(stack(*a), stack(*b))
    assert result.cells == pytest.approx(np.array([[expected(x, y) for y in b] for x in a]), abs=1e-6)
    assert not result.errors.any()
    assert not result.parts.size


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_wide_layers_are_estimated_within_their_errors(power):
    misses, errors = [], []
    for width in range(288, 304):
        one = gaussian(width, width, width) * np.arange(1, width + 1) ** -power
        two = one + 0.7 * np.linalg.norm(one) * gaussian(width, width, 1) / np.sqrt(width)
        cell = found(stack(one), stack(two))
        misses.append(cell.cells[0, 0] - expected(one, two))
        errors.append(cell.errors[0, 0])
    assert np.mean(np.abs(misses) < 1.96 * np.array(errors)) >= 0.8
    assert abs(np.mean(misses)) < 3 * np.mean(errors) / np.sqrt(len(misses))
    # The jackknife is meant to err on the safe side, by less than a half.
    assert 0.7 < np.mean(errors) / np.std(misses) < 2.0


def test_independent_layers_are_unrelated_whatever_their_shapes_and_spectra():
    def layers(seed: int) -> list[Array]:
        return [
            gaussian(320, 320, seed), gaussian(1280, 320, seed + 1), gaussian(40, 320, seed + 2),
            decaying(320, 0.5, seed + 3), decaying(320, 1.0, seed + 4), orthogonal(320, seed + 5),
        ]  # fmt: skip

    cells = found(stack(*layers(10)), stack(*layers(20))).cells
    # Rotations pass on all that they read: two of them differ by a rotation of their outputs.
    assert cells[5, 5] == pytest.approx(1, abs=1e-5)
    cells[5, 5] = 0
    assert cells[:3, :3].max() < 0.025
    assert cells.max() < 0.05
    assert np.median(cells) < 0.01
    square = found(stack(gaussian(512, 512, 30)), stack(gaussian(512, 512, 40)))
    assert square.cells[0, 0] < 0.02


def test_a_fixed_null_would_hide_what_trained_spectra_share():
    one = decaying(200, 0.5)
    two = one + 2 * np.linalg.norm(one) * gaussian(200, 200, 9) / np.sqrt(200)
    fixed = (cka(one, two) - 0.5) / 0.5
    assert fixed < 0.2
    assert found(stack(one), stack(two)).cells[0, 0] > 0.45


# What leaves it as it is, and what does not.


@pytest.mark.parametrize("width", [48, 320])
def test_same_checkpoint_is_alike_and_symmetric(width):
    layers = stack(gaussian(width, width), gaussian(2 * width, width, 1), decaying(width, 1.0), orthogonal(width))
    result = found(layers, dict(layers))
    assert np.diagonal(result.cells) == pytest.approx(1, abs=1e-12)
    assert result.cells == pytest.approx(result.cells.T, abs=1e-12)
    assert [match.cosine for match in result.matches] == [1, 1, 1, 1]


@pytest.mark.parametrize("width", [48, 320])
def test_order_and_rotation_of_outputs_change_nothing_and_inputs_do(width):
    one = gaussian(64, width)
    order = np.random.default_rng(1).permutation(64)
    for same in (one[order], orthogonal(64) @ one, -3 * one):
        match = found(stack(one), stack(same)).matches[0]
        assert match.similarity.value == pytest.approx(1, abs=1e-5)
        cosine = float(np.vdot(one, same) / np.linalg.norm(one) / np.linalg.norm(same))
        assert match.cosine == pytest.approx(cosine, abs=1e-5)
    for other in (one @ orthogonal(width), one[:, np.random.default_rng(2).permutation(width)]):
        assert found(stack(one), stack(other)).cells[0, 0] < 0.1


@pytest.mark.parametrize("width", [48, 320])
@pytest.mark.parametrize(("dtype", "scale"), [("f4", 1e35), ("f4", 1e-36), ("f8", 1e200), ("f8", 1e-200)])
def test_huge_and_tiny_elements(width, dtype, scale):
    one, two = gaussian(32, width), gaussian(32, width) + 0.3 * gaussian(32, width, 1)
    usual = found(stack(one), stack(two)).cells[0, 0]
    scaled = {"net.0.weight": (one * scale).astype(dtype)}
    assert found(scaled, stack(two)).cells[0, 0] == pytest.approx(usual, abs=1e-5)


def test_what_is_not_finite_counts_as_zero_up_to_a_half():
    one, two = gaussian(32, 40), gaussian(32, 40) + 0.3 * gaussian(32, 40, 1)
    holed, zeroed = two.copy(), two.copy()
    holed[:8], zeroed[:8] = np.nan, 0
    holed[9, 9], zeroed[9, 9] = np.inf, 0
    layers = found(stack(one, one), stack(holed, two))
    assert layers.cells[0, 0] == pytest.approx(expected(one, zeroed), abs=1e-6)
    holed[:17] = np.nan
    lost = found(stack(one, one), stack(holed, two))
    assert np.isnan(lost.cells[:, 0]).all()
    assert lost.cells[0, 1] == pytest.approx(expected(one, two), abs=1e-6)
    for empty, reason in ((np.full((32, 40), np.nan), "ALL_NONFINITE"), (np.zeros((32, 40)), "TOO_SMALL")):
        with pytest.raises(Unknowable) as raised:
            found(stack(one), stack(empty))
        assert raised.value.reason == reason


def adapters(seed: int) -> dict[str, Product]:
    draw = np.random.default_rng(seed)

    def leaf(rows: int, cols: int) -> ArrayTensor:
        return ArrayTensor(draw.normal(size=(rows, cols)).astype("f4"), DTYPES["f32"], ("x",))

    return {
        f"model.layers.{i}.self_attn.{name}_proj.lora": Product(leaf(72, 4), leaf(4, width), 0.5)
        for i in range(2) for name in ("q", "v", "o") for width in (60,)
    }  # fmt: skip


def test_adapters_are_compared_by_their_factors():
    one, two = adapters(0), adapters(1)
    pair = pair_checkpoints(Checkpoint("a", "live", one), Checkpoint("b", "live", two))
    result = similarity(pair)
    # What writes to the stream reads something else.
    assert names(result.stream) == [name for name in one if "o_proj" not in name]
    wholes = [[side[name].read_all() for name in names(result.stream)] for side in (one, two)]
    assert result.cells == pytest.approx(np.array([[expected(x, y) for y in wholes[1]] for x in wholes[0]]), abs=1e-9)
    x, y = wholes[0][0], wholes[1][0]
    cosine = float(np.vdot(x, y) / np.linalg.norm(x) / np.linalg.norm(y))
    assert result.matches[0].cosine == pytest.approx(cosine, abs=1e-9)


# Which layers there are.


def fused(state: State) -> dict[str, Array]:
    """Return a transformer with its projections fused, as Phi-3 stores them."""
    result = {}
    for name, values in state.items():
        if ".q_proj" in name:
            parts = [state[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            result[name.replace("q_proj", "qkv_proj")] = np.concatenate(parts)
        elif ".gate_proj" in name:
            up = state[name.replace("gate", "up")]
            result[name.replace("gate_proj", "gate_up_proj")] = np.concatenate([values, up])
        elif not any(f".{part}_proj" in name for part in ("k", "v", "up")):
            result[name] = values
    return result


def conv1d(state: State) -> dict[str, Array]:
    """Return a transformer as GPT-2 stores it: projections fused, inputs by outputs."""
    words = {"self_attn.qkv_proj": "attn.c_attn", "self_attn.o_proj": "attn.c_proj", "mlp.down_proj": "mlp.c_proj"}
    result = {}
    for name, values in fused(state).items():
        for word, turned in words.items():
            if word in name:
                result[name.replace(word, turned)] = values.T.copy()
        if "gate_up" in name:
            result[name.replace("gate_up_proj", "c_fc")] = state[name.replace("gate_up", "up")].T.copy()
    return result


def test_fused_and_split_projections_give_the_same_layers():
    one = transformer(layers=2, hidden=48, inner=64)
    two = noised(one, 0.5)
    whole = found(one, two)
    assert whole.cells.shape == (10, 10)
    for a, b in ((fused(one), two), (one, fused(two)), (fused(one), fused(two))):
        result = found(a, b)
        assert [layer.kind for layer in result.rows] == ["q", "k", "v", "gate", "up"] * 2
        assert result.cells == pytest.approx(whole.cells, abs=1e-12)
        assert result.clustering == whole.clustering
        assert [match.cosine for match in result.matches] == pytest.approx([match.cosine for match in whole.matches])
    assert np.diagonal(found(fused(one), one).cells) == pytest.approx(1, abs=1e-12)


def test_stored_inputs_by_outputs():
    one = transformer(layers=2, hidden=48, inner=64)
    two = noised(one, 0.5)
    usual = found(one, two)
    kept = [at for at, layer in enumerate(usual.rows) if layer.kind != "gate"]
    turned = found(conv1d(one), conv1d(two))
    assert [layer.name_a for layer in turned.rows[:4]] == [
        *(f"model.layers.0.attn.c_attn[{part}]" for part in "qkv"), "model.layers.0.mlp.c_fc",
    ]  # fmt: skip
    assert turned.cells == pytest.approx(usual.cells[np.ix_(kept, kept)], abs=1e-12)
    across = found(conv1d(one), {name: values for name, values in two.items() if "gate" not in name})
    assert across.cells == pytest.approx(turned.cells, abs=1e-12)


def test_projections_that_nobody_knows_to_cut_stay_whole():
    state = {
        f"gpt_neox.layers.{i}.attention.{name}.weight": gaussian(rows, 32, i + rows).astype("f4")
        for i in range(3) for name, rows in (("query_key_value", 96), ("dense", 32))
    }  # fmt: skip
    assert [layer.kind for layer in streams(pair_of(state, state))[0].layers] == ["qkv"] * 3
    config = {"num_attention_heads": 4}
    sides = [replace(checkpoint_of(state), config=config) for _ in range(2)]
    cut = similarity(pair_checkpoints(*sides))
    assert [layer.kind for layer in cut.rows] == ["q", "k", "v"] * 3
    # Heads of 8 rows, interleaved: the first query rows are rows 0 to 7, the first key rows 8 to 15.
    whole = state["gpt_neox.layers.0.attention.query_key_value.weight"].reshape(4, 3, 8, 32)
    q, k = whole[:, 0].reshape(32, 32), whole[:, 1].reshape(32, 32)
    assert cut.cells[0, 1] == pytest.approx(expected(q, k), abs=1e-6)


def test_kernels_of_keras_have_their_outputs_last():
    draw = np.random.default_rng(3)
    kernels = {f"layers/conv{i}/kernel": draw.normal(size=(3, 3, 6, 10)).astype("f4") for i in range(3)}
    result = found(kernels, noised(kernels, 0.5))
    flat = [values.reshape(54, 10).T for values in kernels.values()]
    other = [values.reshape(54, 10).T for values in noised(kernels, 0.5).values()]
    assert result.cells == pytest.approx(np.array([[expected(x, y) for y in other] for x in flat]), abs=1e-6)


def test_experts_are_readers_stacked_or_apart():
    draw = np.random.default_rng(4)
    apart = {
        f"model.layers.{i}.mlp.experts.{e}.{name}_proj.weight": draw.normal(size=(40, 24)).astype("f4")
        for i in range(2) for e in range(3) for name in ("gate", "up")
    }  # fmt: skip
    queries = {f"model.layers.{i}.self_attn.q_proj.weight": draw.normal(size=(24, 24)).astype("f4") for i in range(2)}
    routers = {f"model.layers.{i}.mlp.gate.weight": draw.normal(size=(3, 24)).astype("f4") for i in range(2)}
    stacked = {
        f"model.layers.{i}.mlp.experts.{name}_proj": np.stack(
            [apart[f"model.layers.{i}.mlp.experts.{e}.{name}_proj.weight"] for e in range(3)]
        )
        for i in range(2) for name in ("gate", "up")
    }  # fmt: skip
    one, two = {**apart, **queries, **routers}, {**stacked, **queries, **routers}
    usual = found(one, one)
    assert usual.cells.shape == (16, 16)
    # Some families store the experts of a stack inputs by outputs, and nothing else.
    turned = {**two, **{name: values.swapaxes(1, 2).copy() for name, values in stacked.items()}}
    for a, b in ((one, two), (two, two), (turned, turned)):
        result = found(a, b)
        assert np.diagonal(result.cells) == pytest.approx(1, abs=1e-12)
        assert sorted(result.cells.ravel()) == pytest.approx(sorted(usual.cells.ravel()), abs=1e-12)


def many(blocks: int, experts: int = 0) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(blocks):
        block = f"model.layers.{i}."
        shapes |= {f"{block}self_attn.{name}_proj.weight": (16, 16) for name in "qkvo"}
        if experts:
            shapes[f"{block}mlp.gate.weight"] = (experts, 16)
        inner = [f"experts.{e}." for e in range(experts)] or [""]
        for place in inner:
            shapes |= {f"{block}mlp.{place}{name}_proj.weight": (32, 16) for name in ("gate", "up")}
            shapes[f"{block}mlp.{place}down_proj.weight"] = (16, 32)
    return shapes


@pytest.mark.parametrize(
    ("shapes", "joined", "layers", "left_out"),
    [
        (many(60), Joined.NOTHING, 300, 0),
        (many(61), Joined.SUBLAYERS, 122, 0),
        (many(160), Joined.SUBLAYERS, 300, 20),
        (many(12, experts=16), Joined.EXPERTS, 60, 0),
        (many(70, experts=2), Joined.SUBLAYERS, 210, 0),
    ],
)
def test_never_more_than_300_layers(shapes, joined, layers, left_out):
    stream = streams(unread(shapes))[0]
    assert (stream.joined, len(stream.layers), stream.left_out) == (joined, layers, left_out)


def test_joined_layers_are_those_of_the_fused_matrix():
    state = {name: gaussian(*shape, i).astype("f4") for i, (name, shape) in enumerate(many(61).items())}
    result = found(state, noised(state, 0.8))
    assert names(result.stream)[:2] == ["model.layers.0.self_attn", "model.layers.0.mlp"]
    block = "model.layers.0.self_attn."
    wholes = [
        np.concatenate([side[f"{block}{part}_proj.weight"] for part in "qkv"]) for side in (state, noised(state, 0.8))
    ]
    assert result.cells[0, 0] == pytest.approx(expected(*wholes), abs=1e-6)


def test_layers_come_in_the_order_of_depth():
    order = names(streams(unread(many(11)))[0])
    assert order[:5] == [
        *(f"model.layers.0.self_attn.{name}_proj" for name in "qkv"),
        *(f"model.layers.0.mlp.{name}_proj" for name in ("gate", "up")),
    ]
    assert [int(name.split(".")[2]) for name in order] == sorted(int(name.split(".")[2]) for name in order)


def test_networks_without_attention_by_width():
    # The first matrix of VGG's classifier is the largest by far, and the only one of its width.
    assert [stream.width for stream in streams(unread(vgg16()))][:2] == [4608, 2304]
    assert names(streams(unread(resnet((3, 4, 6, 3), True)))[0]) == [f"layer4.{i}.conv2" for i in range(3)]
    assert len(streams(unread(recurrent(4)))[0].layers) == 4


def test_no_layers_and_no_common_width():
    norms = {"norm.weight": np.ones(8, "f4")}
    for a, b in ((norms, norms), (stack(gaussian(8, 8)), norms), ({}, {})):
        with pytest.raises(Unknowable) as raised:
            streams(pair_of(a, b))
        assert raised.value.reason == "NO_TARGET"
    with pytest.raises(Unknowable) as raised:
        streams(pair_of(transformer(hidden=64), transformer(hidden=32)))
    assert (raised.value.reason, raised.value.detail) == ("SHAPE_MISMATCH", "width_of_a=64, width_of_b=32")


def test_networks_of_other_depth_and_naming():
    one, two = transformer(layers=2, hidden=32), transformer(layers=3, hidden=32)
    result = found(one, two)
    assert result.cells.shape == (10, 15)
    assert result.is_joint
    assert len(result.matches) == 10
    other = {f"encoder.block.{i}.fc.weight": gaussian(20, 32, i).astype("f4") for i in range(4)}
    across = found(one, other)
    assert across.cells.shape == (10, 4)
    assert not across.matches
    assert across.others.all()


def test_a_layer_of_other_height_is_still_its_counterpart():
    one, two = transformer(layers=1, hidden=32, inner=64), transformer(layers=1, hidden=32, inner=96)
    result = found(one, two)
    assert [match.layer.kind for match in result.matches] == ["q", "k", "v", "gate", "up"]
    assert [np.isnan(match.cosine) for match in result.matches] == [False, False, False, True, True]


# The graph.


def by_triples(weights: Array) -> float:
    """Return the mean clustering coefficient as its definition says it, node by node."""
    size, shares = len(weights), []
    for i in range(size):
        triangles = possible = 0.0
        for j in range(size):
            for k in range(size):
                if len({i, j, k}) == 3:
                    triangles += weights[i, j] * weights[j, k] * weights[k, i]
                    possible += weights[i, j] * weights[i, k]
        shares.append(triangles / possible if possible else 0.0)
    return float(np.mean(shares))


@pytest.mark.parametrize("size", [3, 4, 9])
def test_clustering_is_that_of_zhang_and_horvath(size):
    draw = np.random.default_rng(size)
    weights = draw.uniform(size=(size, size)) * (draw.uniform(size=(size, size)) > 0.4)
    weights = (weights + weights.T) / 2
    assert clustering_of(weights) == pytest.approx(by_triples(weights), abs=1e-14)
    assert clustering_of(np.ones((size, size))) == pytest.approx(1)
    assert clustering_of(np.eye(size)) == 0
    assert clustering_of(weights[:2, :2]) is None


def test_graph_of_the_same_layers_and_of_both():
    layers = [gaussian(30, 24, i) + gaussian(30, 24, 99) for i in range(4)]
    changed = [layer + 0.5 * gaussian(30, 24, 50 + i) for i, layer in enumerate(layers)]
    same = found(stack(*layers), stack(*changed))
    cells = np.array([[expected(x, y) for y in changed] for x in layers])
    mean = (cells + cells.T) / 2
    assert same.clustering is not None
    assert same.clustering.value == pytest.approx(by_triples(mean), abs=1e-6)
    fewer = found(stack(*layers[:3]), stack(*changed))
    nodes = [*layers[:3], *changed]
    whole = np.array([[expected(x, y) for y in nodes] for x in nodes])
    assert fewer.is_joint
    assert fewer.clustering is not None
    assert fewer.clustering.value == pytest.approx(by_triples(whole), abs=1e-6)


def test_sparsity_counts_pairs_of_different_layers():
    shared = gaussian(30, 24, 99)
    layers = [gaussian(30, 24, i) + shared * (i < 3) for i in range(5)]
    result = found(stack(*layers), stack(*layers))
    cells = np.array([[expected(x, y) for y in layers] for x in layers])
    off = cells[~np.eye(5, dtype=bool)]
    for edge in (0.05, 0.1, 0.9):
        assert result.sparsity(edge).value == pytest.approx(np.mean(off < edge))
    with pytest.raises(Unknowable):
        found(stack(layers[0]), stack(layers[1])).sparsity(0.1)


def test_jackknife_of_a_mean_is_its_standard_error():
    values = np.random.default_rng(0).normal(size=8)
    left = np.array([np.delete(values, at).mean() for at in range(8)])
    assert jackknife(left) == pytest.approx(values.std(ddof=1) / np.sqrt(8))
    assert jackknife(np.zeros((0, 2, 3))).shape == (2, 3)


def test_the_size_of_what_is_read_at_once_does_not_matter(monkeypatch):
    one = ArrayTensor(gaussian(700, 300).astype("f4"), DTYPES["f32"], ("w",))

    def vector() -> Array:
        kernel = Kernel(Inputs(300))
        assert list(kernel.gathered(one))
        return kernel.vector()

    whole = vector()
    monkeypatch.setattr("diffai_jupyter.facts.similarity.kernels._BLOCK_ELEMENTS", 300 * 64)
    assert vector() == pytest.approx(whole, abs=1e-6)
