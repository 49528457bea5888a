"""The torture table: pairs on which other tools are wrong. Files are made here, the truth is known."""

from __future__ import annotations

import json

import numpy as np
import pytest
from builders import to_codes, transformer, write_safetensors

from diffai_jupyter.checkpoint.dtypes import DTYPES
from diffai_jupyter.comparison import Comparison, compare

UP = "model.layers.1.mlp.up_proj.weight"
ATTENTION = [f"model.layers.{i}.self_attn.{name}_proj.weight" for i in (0, 1) for name in ("q", "v")]


def decoded(dtype: str, values: np.ndarray) -> np.ndarray:
    return np.asarray(DTYPES[dtype].decode(to_codes(dtype, values)), dtype=np.float64)


def with_lora(state: dict[str, np.ndarray], rank: int = 4, scale: float = 0.5) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(7)
    changed = dict(state)
    for name in ATTENTION:
        rows, cols = state[name].shape
        update = draw.normal(size=(rows, rank)) @ draw.normal(size=(rank, cols))
        update *= scale * np.linalg.norm(state[name]) / np.linalg.norm(update)
        changed[name] = (state[name] + update).astype(np.float32)
    return changed


def kind(comparison: Comparison) -> str:
    return comparison.report.change.kind


def words(comparison: Comparison) -> str:
    return " ".join(comparison.to_text().split())


def rows(comparison: Comparison, status: str) -> list[str]:
    return [row.name for row in comparison.report.tensors if row.status == status]


@pytest.fixture
def base() -> dict[str, np.ndarray]:
    return transformer()


def test_copy_is_identical(save, base):
    found = compare(save("a", base, "bf16"), save("b", base, "bf16"))
    assert (kind(found), found.exit_code) == ("identical", 0)


@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32"])
def test_low_rank_update_is_found_with_its_rank(save, base, dtype):
    found = compare(save("a", base, dtype), save("b", with_lora(base), dtype), change_summary=True)
    assert kind(found) == "low-rank"
    assert found.exit_code == 1
    assert sorted(rows(found, "changed")) == sorted(ATTENTION)
    assert "rank 4 in 4 matrices; 4 of 30 trained tensors changed" in words(found)
    assert found["change_summary"].values["layers_changed"].value == 4


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_differences_of_half_precision_are_exact(save, base, dtype):
    changed = with_lora(base)
    found = compare(save("a", base, dtype), save("b", changed, dtype))
    by_name = {row.name: row for row in found.report.tensors}
    for name in base:
        a, b = decoded(dtype, base[name]), decoded(dtype, changed[name])
        numbers = by_name[name].numbers
        assert numbers["changed"] == np.count_nonzero(a != b)
        assert numbers["relative_change"] == pytest.approx(
            np.linalg.norm(b - a) / np.linalg.norm(a), rel=1e-12
        )
        assert numbers["max_abs_delta"] == np.abs(b - a).max()
        assert numbers["mean_b"] == pytest.approx(b.mean(), rel=1e-9, abs=1e-15)
        assert numbers["std_b"] == pytest.approx(b.std(), rel=1e-9, abs=1e-12)


def test_one_nan_is_found_and_located(save, base):
    changed = with_lora(base)
    changed[UP] = changed[UP].copy()
    changed[UP][17, 5] = np.nan
    found = compare(
        save("a", base, "bf16"), save("b", changed, "bf16"), anomaly_detection=True, change_summary=True
    )
    result = found["anomaly_detection"]
    assert result.badge == "CRITICAL"
    assert {key: value.value for key, value in result.values.items()} == {
        "type": "nan_inf_values", "severity": "critical", "affected": 1,
    }  # fmt: skip
    text = words(found)
    assert UP in text
    assert "[17, 5]" in text
    # The rest of the comparison still stands: the four low-rank updates, and the one element.
    assert "rank 4" in text
    assert sorted(rows(found, "changed")) == sorted([*ATTENTION, UP])


def test_nan_on_both_sides_is_no_change(save, base):
    base[UP] = base[UP].copy()
    base[UP][0, 0] = np.nan
    found = compare(save("a", base), save("b", base), anomaly_detection=True)
    assert found.exit_code == 0
    assert found["anomaly_detection"].values["severity"].value == "warning"
    assert "A holds them too" in words(found)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_fsdp_wrapped_module.", "base_model.model."])
def test_prefix_is_a_rename(save, base, prefix):
    found = compare(save("a", base), save("b", {prefix + name: value for name, value in base.items()}))
    assert (kind(found), found.exit_code) == ("renamed", 0)
    assert not rows(found, "added")
    assert not rows(found, "removed")


def test_other_family_names_are_a_rename(save, base):
    renamed = {
        name.replace("model.layers", "transformer.h")
        .replace("self_attn", "attn")
        .replace("model.", "transformer."): value
        for name, value in base.items()
    }
    found = compare(save("a", base), save("b", renamed))
    assert (kind(found), found.exit_code) == ("renamed", 0)


def test_rename_with_training_pairs_the_right_tensors(save, base):
    renamed = {name.replace("model.", "module.model."): value for name, value in with_lora(base).items()}
    found = compare(save("a", base), save("b", renamed))
    assert sorted(rows(found, "changed")) == sorted(ATTENTION)


def test_eight_more_vocabulary_rows_are_compared_row_by_row(save, base):
    grown = dict(base)
    draw = np.random.default_rng(1)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        grown[name] = np.concatenate([base[name], draw.normal(size=(8, 64)).astype(np.float32)])
    found = compare(save("a", base), save("b", grown), change_summary=True, architecture_comparison=True)
    assert kind(found) == "structure only"
    assert found.exit_code == 1
    assert "8 rows more" in words(found)
    assert rows(found, "changed") == []
    assert "vocabulary resized" in words(found)
    assert found["architecture_comparison"].values["differences"].value == 2
    grown["model.embed_tokens.weight"] = grown["model.embed_tokens.weight"].copy()
    grown["model.embed_tokens.weight"][3, 4] += 1
    found = compare(save("a", base), save("c", grown))
    assert rows(found, "changed") == ["model.embed_tokens.weight"]
    changed = next(row for row in found.report.tensors if row.status == "changed")
    assert changed.numbers["changed"] == 1
    assert "□ model.embed_tokens.weight: [96, 64] -> [104, 64]" in words(found)


def test_nan_in_the_new_rows_is_found(save, base):
    grown = dict(base)
    extra = np.full((2, 64), np.nan, np.float32)
    grown["lm_head.weight"] = np.concatenate([base["lm_head.weight"], extra])
    found = compare(save("a", base), save("b", grown), anomaly_detection=True)
    assert found["anomaly_detection"].values["type"].value == "nan_inf_values"


@pytest.mark.parametrize(
    ("first", "second", "exact"),
    [
        ("bf16", "f32", True),
        ("f32", "bf16", True),
        ("bf16", "f64", True),
        ("f16", "f32", False),
        ("f32", "f16", False),
    ],
)
def test_copy_in_another_dtype_is_a_pure_cast(save, base, first, second, exact):
    values = base if exact else {name: value * np.float32(1.2345) for name, value in base.items()}
    # The second file is a cast of what the first one stores.
    stored = {name: decoded(first, value) for name, value in values.items()}
    found = compare(save("a", values, first), save("b", stored, second), change_summary=True)
    assert kind(found) == "cast"
    assert found["change_summary"].values["layers_changed"].value == 0
    widened = DTYPES[second].bits > DTYPES[first].bits
    assert found.exit_code == (0 if exact or widened else 1)
    assert ("every value is equal" in words(found)) == (exact or widened)


@pytest.mark.parametrize(("first", "second"), [("bf16", "f16"), ("f16", "bf16"), ("bf16", "f8_e4m3")])
def test_two_casts_of_one_source_are_a_cast(save, base, first, second):
    source = {name: value * np.float32(1.2345) for name, value in base.items()}
    found = compare(save("a", source, first), save("b", source, second), change_summary=True)
    assert kind(found) == "cast"
    assert found["change_summary"].values["layers_changed"].value == 0
    assert found.exit_code == 1


@pytest.mark.parametrize("dtype", ["f8_e4m3", "f8_e5m2"])
def test_bf16_to_fp8_is_a_cast_with_its_error_not_training(save, base, dtype):
    found = compare(save("a", base, "bf16"), save("b", base, dtype), anomaly_detection=True)
    assert kind(found) == "cast"
    a = np.concatenate([value.ravel() for value in base.values()]).astype(np.float64)
    b = np.concatenate([decoded(dtype, value).ravel() for value in base.values()])
    error = np.linalg.norm(b - a) / np.linalg.norm(a)
    assert found.report.change.said["error"] == pytest.approx(error, rel=1e-12)
    assert f"relative error {error:.2e}" in words(found)
    assert found["anomaly_detection"].values["type"].value == "none"


def test_cast_and_training_together_are_not_a_cast(save, base):
    found = compare(save("a", base, "f32"), save("b", with_lora(base), "bf16"))
    assert kind(found) != "cast"
    assert sorted(rows(found, "changed")) == sorted(ATTENTION)


def test_hundred_zeroed_neurons_are_found_as_dead(save, base):
    dead = dict(base)
    dead[UP] = base[UP].copy()
    dead[UP][:100] = 0
    found = compare(
        save("a", base, "bf16"), save("b", dead, "bf16"), change_summary=True, anomaly_detection=True
    )
    assert kind(found) == "pruned"
    row = next(row for row in found.report.tensors if row.name == UP)
    assert row.numbers["new_zero_rows"] == 100
    assert "100 rows of B are all zero where those of A are not (dead units)" in words(found)


@pytest.mark.parametrize("dtype", ["bf16", "f32"])
def test_permuted_neurons_are_the_same_function(save, base, dtype):
    permuted = dict(base)
    order = np.random.default_rng(3).permutation(160)
    for name in ("gate", "up"):
        key = f"model.layers.1.mlp.{name}_proj.weight"
        permuted[key] = base[key][order]
    permuted["model.layers.1.mlp.down_proj.weight"] = base["model.layers.1.mlp.down_proj.weight"][:, order]
    found = compare(save("a", base, dtype), save("b", permuted, dtype))
    assert kind(found) == "permuted"
    assert "the function should be the same" in words(found)
    assert found.exit_code == 1


def test_permutation_that_is_not_undone_changes_the_function(save, base):
    permuted = {**base, UP: base[UP][::-1]}
    found = compare(save("a", base), save("b", permuted))
    assert kind(found) == "permuted"
    assert "the function changed" in words(found)


def test_noise_is_no_permutation_and_not_low_rank(save, base):
    draw = np.random.default_rng(0)
    noisy = {
        name: (value + draw.normal(0, 0.01, value.shape)).astype(np.float32) for name, value in base.items()
    }
    found = compare(save("a", base), save("b", noisy), change_summary=True)
    assert kind(found) == "full"


def test_few_levels_look_quantized(save, base):
    def four_bit(values: np.ndarray) -> np.ndarray:
        groups = values.reshape(-1, 32)
        scale = np.abs(groups).max(axis=1, keepdims=True) / 7
        return (np.round(groups / scale) * scale).reshape(values.shape).astype(np.float32)

    quantized = {name: four_bit(v) if v.ndim == 2 and "proj" in name else v for name, v in base.items()}
    found = compare(save("a", base), save("b", quantized))
    assert kind(found) == "quantized"
    assert found.report.change.value.evidence.value == "derived"


def test_scaled_head_only_buffers_and_norms(save, base):
    scaled = {**base, "lm_head.weight": base["lm_head.weight"] * 2}
    assert kind(compare(save("a", base), save("b", scaled))) == "scaled"
    draw = np.random.default_rng(0)
    head = {
        **base,
        "lm_head.weight": (base["lm_head.weight"] + draw.normal(0, 0.1, (96, 64))).astype(np.float32),
    }
    assert kind(compare(save("a", base), save("c", head))) == "head only"
    norms = {
        n: v + draw.normal(0, 0.1, v.shape).astype(np.float32) if "norm" in n else v for n, v in base.items()
    }
    assert kind(compare(save("a", base), save("d", norms))) == "norm and bias only"
    buffered = {**base, "model.layers.0.attn.rotary_emb.inv_freq": np.ones(4, np.float32)}
    other = {**buffered, "model.layers.0.attn.rotary_emb.inv_freq": np.full(4, 2, np.float32)}
    assert kind(compare(save("e", buffered), save("f", other))) == "buffers only"


def test_packed_modules_are_decoded_and_not_called_a_copy(tmp_path, save, base):
    state = {name: ("F32", value) for name, value in base.items() if name != UP}
    stem = UP.removesuffix("weight")
    state |= {
        stem + "qweight": ("I32", np.full((8, 160), 0x22222222, np.int32)),
        stem + "qzeros": ("I32", np.zeros((2, 20), np.int32)),
        stem + "scales": ("F16", np.ones((2, 160), np.float16)),
        stem + "g_idx": ("I32", np.zeros(64, np.int32)),
    }
    found = compare(save("a", base), write_safetensors(tmp_path / "b.safetensors", state))
    assert kind(found) == "some layers"  # it decodes to ones
    (row,) = [row for row in found.report.tensors if row.name == UP]
    assert (row.dtypes, row.status) == (("f32", "gptq4"), "changed")
    assert not rows(found, "added")
    assert not rows(found, "removed")


def test_resharded_folder_is_equal(tmp_path, base):
    names = sorted(base)
    for folder, parts in (("a", (names[:9], names[9:])), ("b", (names[:20], names[20:]))):
        index = {}
        for i, part in enumerate(parts):
            file = f"model-0000{i + 1}-of-00002.safetensors"
            write_safetensors(tmp_path / folder / file, {name: ("F32", base[name]) for name in part})
            index |= dict.fromkeys(part, file)
        (tmp_path / folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    found = compare(tmp_path / "a", tmp_path / "b")
    assert (kind(found), found.exit_code) == ("re-sharded", 0)


def test_nothing_in_common_is_a_report(save):
    resnet = {"conv1.weight": np.ones((8, 3, 3, 3), np.float32), "fc.weight": np.ones((10, 8), np.float32)}
    found = compare(
        save("a", resnet), save("b", transformer()), architecture_comparison=True, change_summary=True
    )
    assert kind(found) == "nothing in common"
    assert found.exit_code == 1
    values = found["architecture_comparison"].values
    assert (values["type1"].value, values["type2"].value) == ("cnn", "transformer")
    assert found["change_summary"].values["magnitude"].reason == "NO_COMMON"


def test_arbitrary_new_names_are_a_rename(save, base):
    draw = np.random.default_rng(5)
    names = [f"tensor_{i}" for i in draw.permutation(len(base))]
    found = compare(save("a", base), save("b", dict(zip(names, base.values(), strict=True))))
    assert (kind(found), found.exit_code) == ("renamed", 0)
    assert {row.rule for row in found.report.tensors} == {"same bytes under another name"}


def test_new_names_with_new_values_stay_added_and_removed(save, base):
    other = {f"tensor_{i}": value * np.float32(1.5) for i, value in enumerate(base.values())}
    found = compare(save("a", base), save("b", other))
    assert kind(found) == "nothing in common"
    assert len(rows(found, "added")) == len(rows(found, "removed")) == len(base)


def test_two_files_without_tensors_are_identical(save):
    found = compare(save("a", {}), save("b", {}), all=True)
    assert (kind(found), found.exit_code) == ("identical", 0)


def test_single_nan_is_not_called_training(save, base):
    damaged = {**base, UP: base[UP].copy()}
    damaged[UP][17, 5] = np.nan
    found = compare(save("a", base), save("b", damaged))
    assert kind(found) == "NaN or infinity only"
    assert "1 in 1 tensor; every other value is equal" in words(found)
