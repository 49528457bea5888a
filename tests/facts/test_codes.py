"""Each reason code: a pair that it applies to, one that it just does not, and what it says."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from bank import noised
from builders import transformer, write_safetensors
from code_pairs import (
    CASES,
    CONFIG,
    EMBEDDING,
    HEAD,
    HIDDEN,
    UP,
    VOCAB,
    case,
    configured,
    evaluated,
    metrics,
    network,
    packed,
    pair,
    tokenizers,
    tuned,
    with_gradients,
    with_subnormals,
)

from diffai_jupyter.analyses.limits import LIMITS, limits_of
from diffai_jupyter.comparison import compare
from diffai_jupyter.evidence import Evidence
from diffai_jupyter.facts.policy.codes import hits
from diffai_jupyter.facts.policy.table import CODES, Hit
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.wording import say

DEFAULTS = {threshold.key: threshold.default for threshold in LIMITS}


def codes(pair: Pair, **limits: float) -> dict[str, Hit]:
    return {hit.code: hit for hit in hits(pair, limits_of({**DEFAULTS, **limits}))}


def text(hit: Hit) -> str:
    return say(hit.template, hit.said)


def test_every_code_has_its_pair_of_pairs():
    assert set(CASES) == set(CODES)


@pytest.mark.parametrize("code", CASES)
def test_code_applies_to_the_one_and_not_to_the_other(code):
    hit, quiet = codes(case(code)), codes(case(code, applies=False))
    assert code in hit
    assert code not in quiet
    assert hit[code].value.is_known
    assert "{" not in text(hit[code])


def test_bare_fine_tune_lacks_nothing_but_a_metric():
    assert list(codes(case("METRIC_UNKNOWN"))) == ["METRIC_UNKNOWN"]


def test_equal_values_need_no_metric():
    a = network()
    assert codes(pair(a, dict(a))) == {}
    renamed = {name.replace("model.layers", "transformer.h"): values for name, values in a.items()}
    assert codes(pair(a, renamed)) == {}


def test_exact_upcast_is_a_change_of_dtype_only():
    a = {name: values.astype("f2") for name, values in network().items()}
    assert list(codes(pair(a, {name: values.astype("f4") for name, values in a.items()}))) == ["DTYPE"]


def test_equal_values_with_another_setting_are_another_function():
    a = network()
    found = codes(pair(a, dict(a), {"config": CONFIG}, {"config": {**CONFIG, "hidden_act": "gelu"}}))
    assert list(found) == ["METRIC_UNKNOWN", "CONFIG"]
    assert found["METRIC_UNKNOWN"].share == 1
    assert "hidden_act: silu → gelu" in text(found["CONFIG"])


def test_lossy_cast_to_16_bits_counts_a_fifth():
    a = network()
    found = codes(pair(a, {name: values.astype("f2") for name, values in a.items()}))
    assert list(found) == ["METRIC_UNKNOWN", "DTYPE"]
    assert found["METRIC_UNKNOWN"].share * CODES["METRIC_UNKNOWN"].penalty == pytest.approx(0.05)


@pytest.mark.parametrize(("levels", "bits", "share", "others"), [
    (127, 8, 0.2, []), (7, 4, 1.0, []), (4, 4, 1.0, ["QUANT_FAIR"]), (2, 3, 1.0, ["QUANT_POOR"]),
])  # fmt: skip
def test_quantized_copy_by_its_error(levels, bits, share, others):
    found = codes(pair(network(), packed(network(), levels, bits)))
    assert found["METRIC_UNKNOWN"].share == share
    assert set(found) == {"METRIC_UNKNOWN", "DTYPE", *others}


def test_quantized_copy_that_was_also_trained_is_no_faithful_copy():
    a = network()
    b = {**packed(a, 127, 8), "model.norm.weight": a["model.norm.weight"] * 2}
    assert codes(pair(a, b))["METRIC_UNKNOWN"].share == 1


def test_going_back_to_full_precision_is_no_quantization_error():
    assert "QUANT_POOR" not in codes(pair(packed(network(), 2, 3), network()))


def test_permuted_hidden_units_are_not_another_run():
    a = network()
    order = np.random.default_rng(5).permutation(a[UP].shape[0])
    b = dict(a)
    for name in ("gate_proj", "up_proj"):
        key = f"model.layers.0.mlp.{name}.weight"
        b[key] = a[key][order]
    key = "model.layers.0.mlp.down_proj.weight"
    b[key] = np.ascontiguousarray(a[key][:, order])
    assert "INDEPENDENT" not in codes(pair(a, b))


# Metrics.


@pytest.mark.parametrize(("a", "b", "code", "step"), [
    (0.80, 0.77, None, 0), (0.80, 0.76, "METRIC_WARN", 0), (0.80, 0.721, "METRIC_WARN", 0),
    (0.80, 0.72, "METRIC_CRIT", 0), (0.80, 0.64, "METRIC_CRIT", 1), (0.80, 0.90, None, 0),
    (0.80, math.nan, "METRIC_CRIT", 1), (0.0, 0.1, None, 0), (0.80, 0.80, None, 0),
])  # fmt: skip
def test_limits_of_a_metric_where_higher_is_better(a, b, code, step):
    found = {name: hit for name, hit in codes(metrics({"f1": a}, {"f1": b})).items() if name.startswith("METRIC")}
    assert list(found) == ([code] if code else [])
    if code:
        assert found[code].step == step
        assert found[code].value.evidence is Evidence.REPORTED


def test_metric_that_was_not_finite_in_a_is_unknown():
    found = codes(metrics({"loss": math.nan}, {"loss": 1.0}))
    assert "ALL_NONFINITE" in text(found["METRIC_UNKNOWN"])


def test_primary_metric_decides_and_a_further_one_warns_at_most():
    found = codes(metrics({"accuracy": 0.9, "eval_loss": 1.0}, {"accuracy": 0.5, "eval_loss": 0.9}))
    assert found.keys() == {"METRIC_WARN"}
    assert found["METRIC_WARN"].said["name"] == "accuracy"
    assert found["METRIC_WARN"].step == 0
    both = codes(metrics({"accuracy": 0.9, "eval_loss": 1.0}, {"accuracy": 0.5, "eval_loss": 1.06}))
    assert both["METRIC_WARN"].said["name"] == "eval_loss"


def test_unknown_name_of_a_metric_is_never_guessed():
    assert "METRIC_UNKNOWN" in codes(metrics({"goodness": 1.0}, {"goodness": 0.0}))


def test_evaluated_metric_is_measured():
    found = codes(evaluated({"accuracy": 0.9}, {"accuracy": 0.7}))
    assert found["METRIC_CRIT"].value.evidence is Evidence.MEASURED


def test_failing_function_leaves_the_metric_unknown_and_says_why():
    failing = tuned()

    def broken(model: object) -> object:
        msg = "no data"
        raise RuntimeError(msg)

    failing.evaluate = broken
    found = codes(failing)["METRIC_UNKNOWN"]
    assert "EVALUATE_FAILED" in text(found)
    assert "no data" in text(found)
    assert "dict of numbers" in found.mitigation


# Loading.


@pytest.mark.parametrize(("config", "says"), [
    ({"vocab_size": 81}, "states 81 as vocab_size, and its tensors have 80"),
    ({"hidden_size": 60}, "states 60 as hidden_size, and its tensors have 64"),
    ({"num_hidden_layers": 2}, "states 2 as num_hidden_layers, and its tensors have 1"),
    ({"vocab_size": 80}, ""),
    ({"hidden_size": 60, "embedding_size": 64}, ""),
    ({"vocab_size": 81, "text_config": {}}, ""),
])  # fmt: skip
def test_shapes_that_contradict_the_configuration(config, says):
    a = network()
    found = codes(pair(a, noised(a, 0.005), {}, {"config": {**CONFIG, **config}}))
    assert ("UNLOADABLE" in found) == bool(says)
    if says:
        assert says in text(found["UNLOADABLE"])


def test_more_blocks_than_stated_are_no_contradiction():
    a = network(layers=2)
    assert "UNLOADABLE" not in codes(pair(a, noised(a, 0.005), {}, {"config": CONFIG}))


def test_family_that_counts_otherwise_in_a_too_contradicts_nothing():
    config = {"config": {**CONFIG, "vocab_size": 100}}
    assert "UNLOADABLE" not in codes(tuned(config, config))


def test_what_missing_shards_hold_did_not_go():
    a = network()
    kept = {name: values for name, values in a.items() if name != HEAD and "mlp" not in name}
    lost = tuple(sorted(set(a) - set(kept)))
    found = codes(pair(a, kept, {}, {"missing": lost}))
    assert list(found) == ["UNLOADABLE", "METRIC_UNKNOWN"]
    assert f"{len(lost)} tensors that the index of B promises" in text(found["UNLOADABLE"])


def test_shards_that_no_index_names_are_missing_too(tmp_path):
    a = network()
    whole = write_safetensors(tmp_path / "a" / "model.safetensors", {name: ("F32", v) for name, v in a.items()})
    names = sorted(a)[:5]
    part = tmp_path / "b" / "model-00001-of-00002.safetensors"
    write_safetensors(part, {name: ("F32", a[name]) for name in names})
    found = codes(compare(whole.parent, part.parent, change_summary=True).pair)
    assert "1 of 2 shards of model are missing" in text(found["UNLOADABLE"])
    assert "ARCH" not in found


def test_empty_b_cannot_be_loaded():
    assert "UNLOADABLE" in codes(pair(network(), {}))


# Interface and architecture.


def points(found: dict[str, Hit], code: str) -> str:
    return text(found[code]) if code in found else ""


def perceptron(*widths: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(sum(widths))
    state = {}
    for i, (cols, rows) in enumerate(itertools.pairwise(widths)):
        state |= {f"net.{i}.weight": draw.normal(size=(rows, cols)).astype("f4"), f"net.{i}.bias": np.zeros(rows, "f4")}
    return state


@pytest.mark.parametrize(("widths", "interface", "architecture"), [
    ((8, 16, 16, 4), "", ""),
    ((8, 16, 16, 5), "output size 4 → 5", ""),
    ((9, 16, 16, 4), "input size 8 → 9", ""),
    ((8, 20, 20, 4), "", "width 16 → 20"),
    ((8, 16, 20, 4), "", "width 16 → 20"),
    ((8, 16, 16, 16, 4), "", "depth 3 → 4"),
])  # fmt: skip
def test_ends_of_a_perceptron(widths, interface, architecture):
    found = codes(pair(perceptron(8, 16, 16, 4), perceptron(*widths)))
    assert interface in points(found, "INTERFACE")
    assert ("INTERFACE" in found) == bool(interface)
    assert architecture in points(found, "ARCH")
    assert ("ARCH" in found) == bool(architecture)


def convolutions(channels: int, inner: int, classes: int) -> dict[str, np.ndarray]:
    shapes = {"conv1.weight": (inner, channels, 3, 3), "conv2.weight": (2 * inner, inner, 3, 3)}
    shapes |= {"fc.weight": (classes, 2 * inner * 49), "fc.bias": (classes,)}
    draw = np.random.default_rng(channels + inner + classes)
    return {name: draw.normal(size=shape).astype("f4") for name, shape in shapes.items()}


@pytest.mark.parametrize(("sizes", "interface", "is_wider"), [
    ((3, 8, 10), "", False), ((1, 8, 10), "input size 3 → 1 (conv1.weight)", False),
    ((3, 8, 12), "output size 10 → 12 (fc.weight)", False), ((3, 12, 10), "", True),
])  # fmt: skip
def test_channels_and_classes_of_a_convolutional_network(sizes, interface, is_wider):
    found = codes(pair(convolutions(3, 8, 10), convolutions(*sizes)))
    assert interface in points(found, "INTERFACE")
    assert ("INTERFACE" in found) == bool(interface)
    assert ("ARCH" in found) == is_wider


def test_grown_vocabulary_is_interface_only_and_counted_once():
    found = codes(pair(network(), network(vocab=VOCAB + 8)))
    assert points(found, "INTERFACE") == "What goes in or comes out changed: vocabulary 80 → 88."
    assert "ARCH" not in found


def test_wider_model_is_architecture_only():
    found = codes(pair(network(), network(hidden=HIDDEN + 32)))
    assert "hidden size 64 → 96" in points(found, "ARCH")
    assert "INTERFACE" not in found


def test_number_of_labels_in_the_configuration():
    labels = {str(i): f"LABEL_{i}" for i in range(3)}
    found = codes(configured({"id2label": labels}, {"id2label": {"0": "x", "1": "y"}}))
    assert "labels 3 → 2" in points(found, "INTERFACE")


def test_new_and_lost_tensors_inside_are_architecture():
    a = network()
    less = {name: values for name, values in noised(a, 0.005).items() if name != UP}
    assert "trained tensors only in A: 1" in points(codes(pair(a, less)), "ARCH")
    assert "trained tensors only in B: 1" in points(codes(pair(less, a)), "ARCH")


def test_networks_of_different_kinds_share_neither_interface_nor_architecture():
    found = codes(pair(network(), convolutions(3, 8, 10)))
    assert {"INTERFACE", "ARCH", "METRIC_UNKNOWN"} <= set(found)
    assert "type transformer → cnn" in points(found, "ARCH")


# Ties.


def test_tie_by_configuration():
    tied = {"config": {**CONFIG, "tie_word_embeddings": True}}
    a = {name: values for name, values in network().items() if name != HEAD}
    b = noised(network(), 0.005)
    assert "TIE_BROKEN" in codes(pair(a, b, tied, tied))
    assert "TIE_BROKEN" in codes(pair(a, b, tied, {}))
    assert "TIE_BROKEN" not in codes(pair(a, {**b, HEAD: b[EMBEDDING]}, tied, tied))
    assert "TIE_BROKEN" not in codes(pair(a, {n: v for n, v in b.items() if n != HEAD}, tied, tied))
    assert "TIE_BROKEN" not in codes(tuned({"config": CONFIG}, {"config": CONFIG}))


# Gradients.


@pytest.mark.parametrize(("sizes", "says"), [
    ((200, 1, 1, 1, 1, 1), "exploded: the gradients of one matrix stand out, by a factor of 200"),
    ((1e-3, 1e-3, 1, 1, 1, 1), "vanish: those of the first layers are 0.001 of those of the last"),
    ((1, 1, 1, 1, 1, 1), ""), ((0.05, 0.05, 1, 1, 1, 1), ""), ((1, 1), ""),
])  # fmt: skip
def test_what_the_optimizer_kept_of_gradients(sizes, says):
    found = codes(with_gradients(*sizes))
    assert ("GRAD" in found) == bool(says)
    assert says in points(found, "GRAD")
    if says:
        assert found["GRAD"].value.evidence is Evidence.ESTIMATED


def test_logged_gradient_norm_is_reported():
    assert codes(case("GRAD"))["GRAD"].value.evidence is Evidence.REPORTED


# The rest.


def test_the_few_subnormal_numbers_of_small_f16_matrices_are_no_shift():
    a = {name: values.astype("f2") for name, values in network().items()}
    for seed in range(3):
        b = {name: values.astype("f2") for name, values in noised(network(), 0.02, seed).items()}
        assert list(codes(pair(a, b))) == ["METRIC_UNKNOWN"]
    assert "SHIFT_FEW" in codes(with_subnormals())


@pytest.mark.parametrize(("a", "b", "is_file", "says"), [
    ("one", "", True, "B has none"), ("", "one", True, None), ("one", "", False, None), ("", "", True, None),
])  # fmt: skip
def test_missing_tokenizer(a, b, is_file, says):
    found = codes(tokenizers(a, b, is_file))
    assert ("TOKENIZER" in found) == (says is not None)
    assert (says or "") in points(found, "TOKENIZER")


def test_values_beyond_f16_in_a_wider_dtype():
    a = network()
    b = noised(a, 0.005)
    b[UP].flat[0] = 7e4
    found = codes(pair(a, b))
    assert "7e+04, beyond the range of f16" in points(found, "SATURATION")
    assert "SATURATION" not in codes(pair(b, b | {HEAD: 2 * b[HEAD]}))


@pytest.mark.parametrize("limit", [0.0, 1.0])
def test_memory_limit_is_off_until_it_is_set(limit):
    big = {"w": np.ones((600, 600), "f4")}
    found = codes(pair(big, {"w": 2 * big["w"]}), memory_limit_mb=limit)
    # 600 x 600 x 4 bytes are 1.37 MiB, and 1.2 times that is 1.65 MiB.
    assert ("MEMORY" in found) == bool(limit)
    if limit:
        assert "1.6 MiB in use" in points(found, "MEMORY")
        assert found["MEMORY"].value.evidence is Evidence.ESTIMATED


def test_masks_of_a_buffer_are_no_damage():
    a = {name: values.astype("f4") for name, values in transformer(layers=1, hidden=8, inner=12, vocab=10).items()}
    mask = np.full((4, 4), -np.inf, "f4")
    b = {**noised(a, 0.005), "model.layers.0.self_attn.masked_bias": mask}
    assert "NONFINITE" not in codes(pair(a, b))
    running = {**a, "bn.running_var": np.ones(4, "f4")}
    assert "NONFINITE" in codes(pair(running, {**running, "bn.running_var": np.full(4, np.nan, "f4")}))
