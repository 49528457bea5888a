"""What quantization costs and gains, on copies whose error, bytes and worst tensor are known."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rtn
from bank import noised
from builders import checkpoint_of, headers_of, write_safetensors
from code_pairs import EMBEDDING, HEAD, UP, Packed, network, opened, packed, pair, rounded

from diffai_jupyter.analyses import all_analyses
from diffai_jupyter.analyses.quantization import CLASSES, class_of
from diffai_jupyter.comparison import Comparison, compare
from diffai_jupyter.contract.blocks import Facts, Sentence, Series, Table
from diffai_jupyter.contract.result import Result
from diffai_jupyter.evidence import Evidence
from diffai_jupyter.facts.change.quantization import rounding_error
from diffai_jupyter.hardware import Deployment, Hardware
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.scan.pairing import pair_checkpoints
from diffai_jupyter.wording import say

ANALYSIS = all_analyses()["quantization-analysis"]
DEFAULTS = {threshold.key: threshold.default for threshold in ANALYSIS.thresholds}


def judged(made: Pair, **levels: float) -> Result:
    return ANALYSIS.run(made, DEFAULTS | levels)


def line(result: Result) -> str:
    return ANALYSIS.line(result)


def sentences(result: Result) -> str:
    blocks = [block for block in result.blocks if isinstance(block, Sentence)]
    return "\n".join(say(one.template, one.said) for one in (result.meaning, *blocks, *result.findings))


def table(result: Result, title: str) -> Table:
    return next(block for block in result.blocks if isinstance(block, Table) and block.title.startswith(title))


def of(result: Result, key: str) -> Any:
    return result.values[key].value


def mixed(a: dict[str, np.ndarray], levels: dict[str, int], usual: int = 127) -> dict[str, Any]:
    """Return a copy in 8 bits; some matrices on fewer levels."""
    return {
        name: Packed(rounded(values, levels.get(name, usual)), 8, (name,)) if values.ndim == 2 else values
        for name, values in a.items()
    }


@pytest.mark.parametrize(
    ("levels", "bits", "word", "low", "high"),
    [(127, 8, "excellent", 43, 47), (7, 4, "good", 18, 22), (3, 3, "fair", 12, 14), (2, 3, "poor", 8, 11)],
)
def test_rounding_in_groups_of_32(levels, bits, word, low, high):
    a = network()
    result = judged(pair(a, packed(a, levels, bits)))
    assert of(result, "suitability") == word
    sqnr = -20 * math.log10(of(result, "precision_loss") / 100)
    assert low <= sqnr <= high
    matrices = [values for values in a.values() if values.ndim == 2]
    elements, every = sum(v.size for v in matrices), sum(v.size for v in a.values())
    expected = 100 * (1 - (elements * bits / 8 + 4 * (every - elements)) / (4 * every))
    assert of(result, "compression") == pytest.approx(expected)
    assert result.values["compression"].evidence is Evidence.MEASURED
    assert f"SQNR {sqnr:.1f} dB): {word}" in sentences(result)


def test_line_has_the_form_that_was_promised():
    a = network()
    said = line(judged(pair(a, packed(a, 7, 4))))
    values = r"compression=\d\d\.\d%, speedup=1\.\dx, precision_loss=(?:9|10)\.\d%, suitability=good"
    assert re.fullmatch(f"quantization_analysis: {values}", said)
    assert "precision_loss=0.5%" in line(judged(pair(a, packed(a, 127, 8))))
    cast = line(judged(pair(a, {name: values.astype("f2") for name, values in a.items()})))
    assert re.search(r"compression=50\.0%.*precision_loss=0\.02\d+%, suitability=excellent", cast)


@pytest.mark.parametrize(
    ("sqnr", "worst", "words"),
    [
        (40.0, 6.0, ("excellent", "excellent")), (39.99, 6.0, ("good", "good")), (18.0, 6.0, ("good", "good")),
        (17.99, 12.0, ("fair", "fair")), (12.0, 6.0, ("fair", "fair")), (11.99, 6.0, ("poor", "poor")),
        (40.0, 5.99, ("excellent", "good")), (18.0, 5.99, ("good", "fair")), (12.0, 5.99, ("fair", "poor")),
        (3.0, 1.0, ("poor", "poor")), (math.inf, math.inf, ("excellent", "excellent")),
        (-math.inf, -math.inf, ("poor", "poor")),
    ],
)  # fmt: skip
def test_classes_and_their_edges(sqnr, worst, words):
    assert class_of(sqnr, worst, DEFAULTS) == words


def test_one_destroyed_tensor_costs_a_class_and_is_named():
    a = network()
    a[UP] *= np.float32(0.05)
    # The signs alone are left of one matrix that is small beside the others.
    result = judged(pair(a, mixed(a, {UP: 1}, usual=31)))
    found = rounding_error(pair(a, mixed(a, {UP: 1}, usual=31)))
    assert (found.worst.name, found.worst.sqnr < 6, 18 < found.sqnr < 40) == (UP, True, True)
    assert of(result, "suitability") == "fair"
    said = sentences(result)
    assert f"1 tensor is below 6 dB, which costs a class: {UP}." in said
    assert f"Worst is {UP} with" in said
    assert of(judged(pair(a, mixed(a, {UP: 1}, usual=31)), sqnr_worst=3.0), "suitability") == "good"
    assert f"To be good, keep as in A the worst of {len(found.tensors)} rounded tensors" in said


def test_equal_files_lose_nothing():
    a = network()
    result = judged(pair(a, dict(a)))
    assert [of(result, field.key) for field in ANALYSIS.fields] == [0.0, 1.0, 0.0, "excellent"]
    assert not result.findings
    assert say(result.meaning.template, result.meaning.said) == (
        "Nothing is lost: every value of B is that of A. Both take as many bytes."
    )


def test_a_wider_dtype_loses_nothing_and_takes_more():
    a = {name: values.astype("f2") for name, values in network().items()}
    result = judged(pair(a, {name: values.astype("f4") for name, values in a.items()}))
    assert (of(result, "compression"), of(result, "precision_loss")) == (-100.0, 0.0)
    assert "100.0 % more" in sentences(result)


def test_training_is_not_rounding():
    a = network()
    result = judged(pair(a, noised(a, 0.01)))
    for key in ("precision_loss", "suitability"):
        assert result.values[key].reason == "NO_TARGET"
        assert result.values[key].detail == "no quantization detected: the difference is training, not rounding"
    assert (of(result, "compression"), of(result, "speedup")) == (0.0, 1.0)
    assert sentences(result).startswith("No quantization detected: the difference is training, not rounding.")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: {**a, "extra": np.ones((4, 4), "f4")}, "structure only"),
        (lambda a: {name: values * np.float32(1.5) for name, values in a.items()}, "scaled"),
    ],
)
def test_what_is_neither_is_called_what_it_is(change, words):
    a = network()
    value = judged(pair(a, change(a))).values["precision_loss"]
    assert (value.reason, value.detail) == ("NO_TARGET", f"no quantization detected: {words}")


def test_another_model_in_few_bits_is_confounded():
    result = judged(pair(network(), packed(network(seed=1), 7, 4)))
    assert result.values["precision_loss"].reason == "CONFOUNDED"
    assert of(result, "compression") > 50
    assert "quantized and trained, or another model" in sentences(result)


def test_nothing_in_common():
    other = {"fc.weight": np.ones((3, 5), "f4")}
    result = judged(pair(network(), other))
    assert result.values["precision_loss"].reason == "NO_COMMON"
    assert of(result, "compression") > 99


def test_going_back_is_larger_and_no_alarm():
    a = network()
    result = judged(pair(packed(a, 3, 3), a))
    assert of(result, "compression") < -100
    there = judged(pair(a, packed(a, 3, 3)))
    norm = rounding_error(pair(packed(a, 3, 3), a))
    assert of(result, "precision_loss") == pytest.approx(100 * norm.error)
    assert of(result, "suitability") in CLASSES
    assert there.findings
    assert not result.findings
    assert "A is the coarser of the two" in sentences(result)
    assert "keep as in A" not in sentences(result)


def test_rounded_numbers_in_a_plain_dtype():
    a = network()
    b = {name: rounded(values, 7) if values.ndim == 2 else values for name, values in a.items()}
    result = judged(pair(a, b))
    loss = result.values["precision_loss"]
    assert loss.evidence is Evidence.DERIVED
    assert loss.assumption
    assert of(result, "compression") == 0.0
    assert "saves nothing" in sentences(result)
    packed_loss = of(judged(pair(a, packed(a, 7, 4))), "precision_loss")
    assert loss.value == pytest.approx(packed_loss, rel=1e-6)


def test_two_bits_of_signs_are_a_copy_too():
    """Three levels leave 63 % of error, more than half of the norm, and B still is a copy of A."""
    a = network()
    result = judged(pair(a, packed(a, 1, 2)))
    assert 55 < of(result, "precision_loss") < 70
    assert of(result, "suitability") == "poor"


def test_numbers_that_are_none_are_left_out():
    a = network()
    a[UP][3, 5] = np.nan
    b = packed(network(), 7, 4)
    finite = {name: np.isfinite(a[name]) for name, value in b.items() if isinstance(value, Packed)}
    errors = sum(float(np.square(b[n].values.astype("f8") - a[n])[keep].sum()) for n, keep in finite.items())
    signal = sum(float(np.square(a[n].astype("f8"))[keep].sum()) for n, keep in finite.items())
    result = judged(pair(a, b))
    assert of(result, "precision_loss") == pytest.approx(100 * math.sqrt(errors / signal), rel=1e-9)


def test_a_tensor_without_numbers_is_left_out_and_said():
    a, b = network(), packed(network(), 7, 4)
    a[UP][:] = np.nan
    result = judged(pair(a, b))
    assert all(tensor.name != UP for tensor in rounding_error(pair(a, b)).tensors)
    assert result.unreached == (f"1 tensor with hardly a finite number: {UP}",)
    for name, value in b.items():
        if isinstance(value, Packed):
            a[name] = np.full_like(a[name], np.nan)
    assert judged(pair(a, b)).values["precision_loss"].reason == "ALL_NONFINITE"


def test_nothing_but_zeros_to_relate_to():
    a = {"w": np.zeros((8, 32), "f4"), "norm.weight": np.ones(8, "f4")}
    made = pair(a, {**a, "w": Packed(np.full((8, 32), 0.5, "f4"), 4, ("w",))})
    assert judged(made).values["precision_loss"].reason == "ZERO_REFERENCE"


def test_tied_weights_count_once():
    a = network()
    a[HEAD] = a[EMBEDDING]
    b = {name: values.astype("f2") for name, values in a.items()}
    b[HEAD] = b[EMBEDDING]
    names = [tensor.name for tensor in rounding_error(pair(a, b)).tensors]
    assert (EMBEDDING in names) != (HEAD in names)


def test_an_outlier_column_is_named_as_the_reason():
    a = network()
    a[UP][:, 11] *= np.float32(30)
    result = judged(pair(a, packed(a, 7, 4)))
    rows = {str(row[0]): row for row in table(result, "Tensors by error").rows}
    assert str(rows[UP][-1]).startswith("11: ")
    assert float(str(rows[UP][-1])[4:-1]) > 20
    assert max(rows.values(), key=lambda row: float(row[5] or 0))[0] == UP
    assert f"largest is column 11 of {UP}" in sentences(result)
    assert "outlier column in A" not in sentences(judged(pair(a, packed(a, 7, 4)), outlier_column=1000.0))


def test_what_else_changed_and_what_else_is_quantized_is_said():
    a = network()
    moved = {**packed(a, 127, 8), "model.norm.weight": a["model.norm.weight"] * 2}
    assert "Besides, 1 trained tensor changed that was not rounded." in sentences(judged(pair(a, moved)))
    assert "A is quantized as well" in sentences(judged(pair(packed(a, 127, 8), packed(a, 7, 4))))
    trained = packed(noised(a, 0.1), 127, 8)
    assert "off by more than rounding to as many bits usually is" in sentences(judged(pair(a, trained)))
    assert "usually is" not in sentences(judged(pair(a, packed(a, 127, 8))))


def test_tables_and_chart():
    a = network(layers=2)
    result = judged(pair(a, packed(a, 7, 4)))
    found = rounding_error(pair(a, packed(a, 7, 4)))
    worst = table(result, "Tensors by error")
    assert [str(row[0]) for row in worst.rows] == [tensor.name for tensor in found.tensors[:20]]
    for row, tensor in zip(worst.rows, found.tensors, strict=False):
        x, y = a[tensor.name].astype("f8").ravel(), tensor.b.values.astype("f8").ravel()
        assert row[1] == "32→4"
        assert row[2] == pytest.approx(20 * math.log10(np.linalg.norm(x) / np.linalg.norm(y - x)), abs=0.051)
        assert row[3] == pytest.approx(np.abs(y - x).max())
        assert row[4] == pytest.approx(x @ y / np.linalg.norm(x) / np.linalg.norm(y), abs=1e-5)
    chart = next(block for block in result.blocks if isinstance(block, Series))
    heights = chart.curves[0].y
    assert heights == tuple(sorted(heights))
    assert len(heights) == min(24, len(found.tensors))
    parts = {row[0]: row for row in table(result, "Error by part").rows}
    assert set(parts) == {"attention", "feed-forward", "embedding", "head"}
    assert sum(row[-1] for row in parts.values()) == pytest.approx(100, abs=0.3)
    assert sum(row[1] for row in parts.values()) == len(found.tensors)
    attention = [tensor for tensor in found.tensors if "self_attn" in tensor.name]
    errors, signal = sum(t.d_squares for t in attention), sum(t.a_squares for t in attention)
    assert parts["attention"][3] == pytest.approx(10 * math.log10(signal / errors), abs=0.051)


def test_a_long_chart_is_cut_and_says_so():
    a = network(layers=4)
    result = judged(pair(a, packed(a, 7, 4)))
    chart = next(block for block in result.blocks if isinstance(block, Series))
    count = sum(values.ndim == 2 for values in a.values())
    assert (len(chart.curves[0].y), chart.x_label) == (24, f"tensor (the 24 worst of {count})")
    assert table(result, "Tensors by error").total == count


def test_layouts_bits_and_what_stays_plain():
    a = network()
    b = packed(a, 7, 4) | {HEAD: a[HEAD]}
    result = judged(pair(a, b))
    stored = {(str(row[0]), row[1]): row for row in table(result, "How numbers are stored").rows}
    assert set(stored) == {("f32", "A"), ("f32", "B"), ("test", "B")}
    assert stored["test", "B"][4] == "4.00"
    said = sentences(result)
    assert f"Not quantized in B: 1 matrix ({HEAD}) and" in said
    assert "key/value cache stays as it is" in said
    facts = next(block for block in result.blocks if isinstance(block, Facts))
    bits = {fact.label: fact.value.value for fact in facts.facts}
    every = sum(values.size for values in a.values())
    few = sum(value.size for value in b.values() if isinstance(value, Packed))
    assert bits["Bits a weight, whole checkpoint"] == pytest.approx((32, (4 * few + 32 * (every - few)) / every))
    assert bits["Bits a weight, rounded tensors"] == (32, 4)


def test_quality_is_not_promised():
    a = network()
    said = sentences(judged(pair_checkpoints(opened(a, config=rtn.CONFIG), opened(packed(a, 7, 4), config=rtn.CONFIG))))
    assert "1.8 % at 20.3 dB" in said or "0.5 % at 26.9 dB and 1.8 % at 20.3 dB" in said
    assert "was not measured" in said


def test_no_quality_is_told_of_what_speaks_no_language():
    draw = np.random.default_rng(0)
    a = {f"layers.{i}.weight": draw.normal(size=(64, 64)).astype("f4") for i in range(3)}
    assert "perplexity" not in sentences(judged(pair(a, packed(a, 7, 4))))


# On files.


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rtn.write_plain(tmp_path_factory.mktemp("plain"), rtn.network())


def analysed(a: Path, b: Path, **more: Any) -> Comparison:
    return compare(a, b, quantization_analysis=True, **more)


def uneven(folder: Path, bits: dict[str, int], kept: tuple[str, ...] = ()) -> Path:
    """Write a copy in 4 bits by compressed-tensors, some matrices in others, some as they were."""
    stored: rtn.Stored = {}
    for name, values in rtn.network().items():
        if rtn.is_linear(name) and name not in kept:
            stored.update(rtn.compressed(name.removesuffix(".weight"), values, bits.get(name, 4))[0])
        else:
            stored[name] = ("F32", values)
    write_safetensors(folder / "model.safetensors", stored)
    (folder / "config.json").write_text(json.dumps(rtn.CONFIG))
    return folder


def test_keeping_what_is_suggested_reaches_what_is_promised(plain: Path, tmp_path: Path) -> None:
    coarse = {f"{rtn.BLOCK}self_attn.q_proj.weight": 2, f"{rtn.BLOCK}mlp.up_proj.weight": 3}
    copy = uneven(tmp_path / "b", coarse)
    result = analysed(plain, copy)["quantization_analysis"]
    before = of(result, "precision_loss")
    assert of(result, "suitability") == "poor"
    advice = next(b for b in result.blocks if isinstance(b, Sentence) and b.template.startswith("To be {word}"))
    assert advice.said["word"] == "fair"
    kept = tuple(str(row[0]) for row in table(result, "What to keep").rows)
    assert kept == (f"{rtn.BLOCK}self_attn.q_proj.weight",)
    restored = uneven(tmp_path / "c", coarse, kept)
    after = analysed(plain, restored)["quantization_analysis"]
    # The loss is told over rounded tensors alone: those that were kept count with no error in what was promised.
    error = rounding_error(analysed(plain, restored).pair)
    signal = sum(float(np.square(v, dtype="f8").sum()) for n, v in rtn.network().items() if rtn.is_linear(n))
    promised = 10 * math.log10(signal / sum(tensor.d_squares for tensor in error.tensors))
    assert float(str(advice.said["to"])) == pytest.approx(promised, abs=1e-6)
    assert promised >= 12
    assert of(after, "precision_loss") < before
    assert of(after, "suitability") == "fair"
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (copy, restored)]
    headers = [int.from_bytes((f / "model.safetensors").read_bytes()[:8], "little") for f in (copy, restored)]
    grown = sizes[1] - headers[1] - sizes[0] + headers[0]
    assert table(result, "What to keep").rows[0][2] == advice.said["extra"] == f"{grown / 1024:.1f} KiB"


def test_an_opaque_layout(plain: Path, tmp_path: Path) -> None:
    """The codes of bitsandbytes in the order of a GPU kernel are not decoded."""
    copy, _ = rtn.write(tmp_path / "b", "bitsandbytes", 8, rtn.network())
    order = {"weight_format": ("U8", np.array(1, "u1"))}
    stored: rtn.Stored = {}
    for name, values in rtn.network().items():
        if not rtn.is_linear(name):
            stored[name] = ("F32", values)
            continue
        module = name.removesuffix(".weight")
        stored |= rtn.bitsandbytes(module, values, 8)[0] | {f"{module}.{key}": part for key, part in order.items()}
    write_safetensors(copy / "model.safetensors", stored)
    found = analysed(plain, copy)
    result = found["quantization_analysis"]
    for key in ("precision_loss", "suitability", "speedup"):
        assert result.values[key].reason == "NOT_DEQUANTIZABLE"
    assert of(result, "compression") > 50
    assert result.unreached == ("7 tensors of B in a layout that is not decoded",)
    assert "not decoded" in {row[4] for row in table(result, "How numbers are stored").rows}
    assert "Quantized codes are not decoded here" in found.to_text()
    back = analysed(copy, plain)["quantization_analysis"]
    assert back.values["precision_loss"].reason == "NOT_DEQUANTIZABLE"
    assert of(back, "compression") < 0


def test_a_decoded_copy_on_disk_is_larger_and_equal(tmp_path: Path) -> None:
    copy, decoded = rtn.write(tmp_path / "a", "compressed-tensors", 4, rtn.network())
    back = {**rtn.network(), **{name: values.astype("f4") for name, values in decoded.items()}}
    found = analysed(copy, rtn.write_plain(tmp_path / "b", back))
    result = found["quantization_analysis"]
    assert of(result, "compression") < -100
    assert of(result, "precision_loss") == pytest.approx(0, abs=1e-4)
    assert of(result, "suitability") == "excellent"
    assert found.report.change.kind in ("cast", "quantized")


def test_every_rendering_shows_it(plain: Path, tmp_path: Path) -> None:
    copy, _ = rtn.write(tmp_path, "MLX", 3, rtn.network())
    found = analysed(plain, copy)
    for written in (found.to_text(), found.to_markdown(), found.to_html()):
        assert "suitability=fair" in written
        assert "Tensors by error, the worst first" in written
    assert json.loads(found.to_json())["results"]["quantization-analysis"]["values"]


# Speed.


def test_speed_is_that_of_the_bytes_where_memory_binds(plain: Path, tmp_path: Path) -> None:
    copy, _ = rtn.write(tmp_path, "HQQ", 4, rtn.network())
    found = analysed(plain, copy, device="1e15,1e6,0")
    speed = found["quantization_analysis"].values["speedup"]
    linear = sum(values.size for name, values in rtn.network().items() if rtn.is_linear(name))
    head = 4 * rtn.VOCAB * rtn.HIDDEN
    cache = 2 * 2 * 128 * rtn.HIDDEN
    rounded_bits = rounding_error(found.pair).bits[1]
    expected = (4 * linear + head + cache) / (rounded_bits / 8 * linear + head + cache)
    # Activations, which are left out here, take little.
    assert speed.value == pytest.approx(expected, rel=0.05)
    assert speed.value > 2
    assert (speed.evidence, speed.confidence) == (Evidence.ESTIMATED, 0.5)
    assert "needs fused kernels" in speed.assumption


def test_a_batch_of_the_user_does_not_move_it(plain: Path, tmp_path: Path) -> None:
    copy, _ = rtn.write(tmp_path, "HQQ", 4, rtn.network())
    speeds = [analysed(plain, copy, batch=batch)["quantization_analysis"].values["speedup"] for batch in (1, 64)]
    assert speeds[0] == speeds[1]


def test_networks_that_make_no_tokens_are_told_one_forward_pass():
    draw = np.random.default_rng(0)
    a = {f"layers.{i}.weight": draw.normal(size=(256, 256)).astype("f4") for i in range(3)}
    made = pair(a, packed(a, 7, 4))
    made.deployment = Deployment(Hardware("slow memory", 1e15, 1e6, 0.0, "test"))
    speed = judged(made).values["speedup"]
    # Four bytes an element, half a byte an element, and 512 activations of two bytes at each matrix.
    assert speed.value == pytest.approx((4 * 65536 + 1024) / (65536 / 2 + 1024), rel=1e-6)


def test_a_cast_needs_no_fused_kernels():
    a = network()
    speed = judged(pair(a, {name: values.astype("f2") for name, values in a.items()})).values["speedup"]
    assert speed.evidence is Evidence.ESTIMATED
    assert "fused" not in speed.assumption


def test_no_speed_without_a_network():
    empty = checkpoint_of({"step": np.array(3, "i8")})
    result = judged(pair_checkpoints(empty, headers_of({})))
    assert not result.values["speedup"].is_known
    assert of(result, "compression") == 100.0
