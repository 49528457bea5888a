"""Which tensor belongs to which: every rule, and never a couple that is forced."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from builders import checkpoint_of, pair_of, transformer
from hypothesis import given, settings
from hypothesis import strategies as st

from diffai_jupyter.checkpoint.views import Rows
from diffai_jupyter.scan.pair import Pair, Rule
from diffai_jupyter.scan.pairing import Filters, pair_checkpoints

LAYER = "model.layers.0."
SWAPPED = {
    Rule.ADDED: Rule.REMOVED, Rule.REMOVED: Rule.ADDED, Rule.NEW_ROWS: Rule.LOST_ROWS, Rule.LOST_ROWS: Rule.NEW_ROWS,
}  # fmt: skip


def zeros(*shape: int, dtype: str = "f4") -> np.ndarray:
    return np.zeros(shape, dtype)


def found(pair: Pair) -> dict[tuple[str, str], Rule]:
    return {(tensor.name_a, tensor.name_b): tensor.rule for tensor in pair.tensors}


def renames(pair: Pair) -> dict[str, str]:
    return {t.name_a: t.name_b for t in pair.tensors if t.a is not None and t.b is not None}


def gpt2(layers: int = 2, hidden: int = 12, prefix: str = "transformer.") -> dict[str, np.ndarray]:
    state = {f"{prefix}wte.weight": zeros(30, hidden), f"{prefix}wpe.weight": zeros(16, hidden)}
    for i in range(layers):
        block = f"{prefix}h.{i}."
        for norm, part in itertools.product(("ln_1", "ln_2"), ("weight", "bias")):
            state[f"{block}{norm}.{part}"] = zeros(hidden)
        for name, rows, cols in (
            ("attn.c_attn", hidden, 3 * hidden), ("attn.c_proj", hidden, hidden),
            ("mlp.c_fc", hidden, 4 * hidden), ("mlp.c_proj", 4 * hidden, hidden),
        ):  # fmt: skip
            state[f"{block}{name}.weight"], state[f"{block}{name}.bias"] = zeros(rows, cols), zeros(cols)
    return state | {f"{prefix}ln_f.weight": zeros(hidden), f"{prefix}ln_f.bias": zeros(hidden)}


def test_same_name_wins_over_every_other_rule():
    pair = pair_of({"w": zeros(2, 3), "module.w": zeros(2, 3)}, {"w": zeros(2, 3), "module.w": zeros(2, 3)})
    assert found(pair) == {("w", "w"): Rule.SAME_NAME, ("module.w", "module.w"): Rule.SAME_NAME}


WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "base_model.model.", "model.")


@pytest.mark.parametrize("prefix", [a + b for a, b in itertools.product(("", *WRAPPERS), WRAPPERS)])
def test_wrapper_prefixes_pair_in_any_combination(prefix):
    a = {
        name: zeros(*shape)
        for name, shape in (("mlp.fc.weight", (4, 6)), ("mlp.fc.bias", (4,)), ("norm", (3,)))
    }
    pair = pair_of(a, {prefix + name: values for name, values in a.items()})
    assert found(pair) == {(name, prefix + name): Rule.PREFIX for name in a}


def test_wrapper_inside_a_name_is_stripped_too():
    pair = pair_of({"layers.0.mlp.weight": zeros(4, 6)}, {"layers.0._orig_mod.mlp.weight": zeros(4, 6)})
    assert set(found(pair).values()) == {Rule.PREFIX}


@pytest.mark.parametrize("prefix", ["transformer.", "gpt.", "module.transformer."])
def test_gpt2_like_state_pairs_under_another_prefix(prefix):
    pair = pair_of(gpt2(prefix=""), gpt2(prefix=prefix))
    assert renames(pair) == {name: prefix + name for name in gpt2(prefix="")}


def test_gpt2_like_state_pairs_when_h_and_attn_are_renamed():
    a = gpt2()
    new = {name: name.replace("transformer.h", "model.layers").replace(".attn.", ".self_attn.") for name in a}
    pair = pair_of(a, {new[name]: values for name, values in a.items()})
    assert renames(pair) == new


def test_llama_like_state_pairs_when_layers_and_self_attn_are_renamed():
    a = transformer(layers=2, hidden=12, inner=20, vocab=30)
    new = {
        name: name.replace("model.layers", "transformer.h")
        .replace("self_attn", "attn")
        .replace("model.", "transformer.")
        for name in a
    }
    pair = pair_of(a, {new[name]: values for name, values in a.items()})
    assert renames(pair) == new


META = {
    "self_attn.q_proj": "attention.wq", "self_attn.k_proj": "attention.wk", "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo", "mlp.gate_proj": "feed_forward.w1", "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3", "model.layers": "layers", "model.embed_tokens": "tok_embeddings",
    "lm_head": "output", "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm",
    "model.norm": "norm",
}  # fmt: skip


def test_roles_pair_two_naming_families_and_nothing_wrong():
    a = transformer(layers=2, hidden=12, inner=20, vocab=30)
    new = {}
    for name in a:
        new[name] = name
        for old, other in META.items():
            new[name] = new[name].replace(old, other)
    pair = pair_of(a, {new[name]: values for name, values in a.items()})
    paired = renames(pair)
    assert all(new[name] == partner for name, partner in paired.items())
    matrices = [name for name in a if "proj" in name]
    assert {name for name, _ in found(pair)} >= set(matrices)
    assert all(found(pair)[name, new[name]] is Rule.ROLE for name in matrices)


def test_pattern_pairs_by_shape_under_the_longest_common_tail():
    a = {f"enc.{i}.fc.weight": zeros(4, 6) for i in range(3)} | {
        f"enc.{i}.out.weight": zeros(4, 6) for i in range(3)
    }
    b = {f"dec.{i}.fc.weight": zeros(4, 6) for i in range(3)} | {
        f"dec.{i}.out.weight": zeros(4, 6) for i in range(3)
    }
    pair = pair_of(a, b)
    assert renames(pair) == {name: name.replace("enc", "dec") for name in a}
    assert set(found(pair).values()) == {Rule.PATTERN}


@pytest.mark.parametrize(
    ("a", "b"),
    [
        pytest.param(["x.0.fc.weight"], ["y.0.fc.weight", "z.0.fc.weight"], id="two fit as well"),
        pytest.param(["y.0.fc.weight", "z.0.fc.weight"], ["x.0.fc.weight"], id="two fit as well, swapped"),
        pytest.param(["x.0.fc.weight"], ["y.0.out.weight"], id="one common component is not enough"),
        pytest.param(["x.0.fc.weight"], ["y.0.fc.weight", "y.1.fc.weight"], id="other indices"),
        pytest.param(["x.0.fc.weight"], ["y.1.fc.weight"], id="another index"),
        pytest.param(
            ["h.0.attn.q_proj.weight"], ["h.0.attn.query.weight", "h.0.attn.wq.weight"], id="two of one role"
        ),
        pytest.param(
            ["module.w.weight"],
            ["_orig_mod.w.weight", "base_model.model.w.weight"],
            id="two of one bare name",
        ),
    ],
)
def test_ambiguous_tensors_stay_alone(a, b):
    # The further tensors keep a common prefix of one side from counting as a wrapper.
    pair = pair_of(
        {"anchor": zeros(1)} | dict.fromkeys(a, zeros(4, 6)),
        {"anchor": zeros(1)} | dict.fromkeys(b, zeros(4, 6)),
    )
    assert renames(pair) == {"anchor": "anchor"}
    assert Counter(found(pair).values()) == {Rule.SAME_NAME: 1, Rule.REMOVED: len(a), Rule.ADDED: len(b)}


def test_renamed_tensor_of_another_shape_is_not_forced_together():
    pair = pair_of({"anchor": zeros(1), "module.w": zeros(4, 6)}, {"anchor": zeros(1), "w": zeros(6, 4)})
    assert Counter(found(pair).values()) == {Rule.SAME_NAME: 1, Rule.REMOVED: 1, Rule.ADDED: 1}


def test_same_name_of_another_shape_is_reshaped_with_its_reason():
    (tensor,) = pair_of({"w": zeros(4, 6)}, {"w": zeros(6, 4)}).tensors
    assert tensor.rule is Rule.RESHAPED
    assert not tensor.is_compared
    assert tensor.reason == "shapes differ: [4, 6] and [6, 4]"


def test_equal_grids_of_other_shapes_are_compared():
    (tensor,) = pair_of({"w": zeros(4, 2, 3)}, {"w": zeros(4, 6)}).tensors
    assert tensor.rule is Rule.SAME_NAME
    assert tensor.is_compared


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "lm_head.weight", "transformer.wte.weight"])
@pytest.mark.parametrize(("rows_a", "rows_b"), [(10, 13), (13, 10)])
def test_resized_embedding_is_split_into_common_and_lonely_rows(name, rows_a, rows_b):
    pair = pair_of({name: zeros(rows_a, 4)}, {name: zeros(rows_b, 4)})
    common, lonely = pair.tensors
    assert common.rule is Rule.ROWS
    assert common.is_compared
    assert common.a is not None
    assert common.b is not None
    assert common.a.shape == common.b.shape == (10, 4)
    one = lonely.b if rows_b > rows_a else lonely.a
    assert lonely.rule is (Rule.NEW_ROWS if rows_b > rows_a else Rule.LOST_ROWS)
    assert isinstance(one, Rows)
    assert (one.start, one.stop) == (10, 13)
    assert one.origin == 40


def test_renamed_and_resized_embedding_is_split_too():
    pair = pair_of(
        {"model.embed_tokens.weight": zeros(5, 4)}, {"module.model.embed_tokens.weight": zeros(6, 4)}
    )
    assert [tensor.rule for tensor in pair.tensors] == [Rule.ROWS, Rule.NEW_ROWS]


@pytest.mark.parametrize(
    ("name", "a", "b"), [("fc.weight", (10, 4), (13, 4)), ("wte.weight", (10, 4), (13, 5))]
)
def test_other_growth_is_a_reshape(name, a, b):
    (tensor,) = pair_of({name: zeros(*a)}, {name: zeros(*b)}).tensors
    assert tensor.rule is Rule.RESHAPED


@pytest.mark.parametrize("dtype", ["i1", "u1", "i4", "?"])
def test_matrix_retyped_to_integers_is_not_compared(dtype):
    (tensor,) = pair_of({"w": zeros(4, 6)}, {"w": zeros(4, 6, dtype=dtype)}).tensors
    assert tensor.rule is Rule.SAME_NAME
    assert not tensor.is_compared
    assert "codes of a layout that was not recognised" in tensor.reason


@pytest.mark.parametrize("dtype", ["f2", "f8"])
def test_matrix_retyped_to_another_float_is_compared(dtype):
    (tensor,) = pair_of({"w": zeros(4, 6)}, {"w": zeros(4, 6, dtype=dtype)}).tensors
    assert tensor.is_compared


def test_complex_against_real_is_not_compared():
    (tensor,) = pair_of({"w": zeros(4)}, {"w": zeros(4, dtype="c8")}).tensors
    assert tensor.reason == "f32 and c64 hold different kinds of numbers"


def test_packed_weight_with_its_scale_is_known_by_its_companion():
    a = {f"{LAYER}mlp.up_proj.weight": zeros(8, 8)}
    b = {f"{LAYER}mlp.up_proj.weight": zeros(8, 8, dtype="i1"), f"{LAYER}mlp.up_proj.SCB": zeros(8)}
    pair = pair_of(a, b)
    assert pair.anatomy_b.parts[f"{LAYER}mlp.up_proj.weight"].role == "quantized"
    assert {t.name_b: t.rule for t in pair.tensors}[f"{LAYER}mlp.up_proj.SCB"] is Rule.ADDED


# Filters.


def test_filters_leave_tensors_out_and_say_which_filter_did():
    a = transformer(layers=2, hidden=12, inner=20, vocab=30)
    sides = checkpoint_of(a), checkpoint_of(a)
    pair = pair_checkpoints(*sides, filters=Filters("layers.1", r"norm|\bq_proj"))
    kept = {name for name in a if "layers.1" in name and "norm" not in name and "q_proj" not in name}
    assert {tensor.name_a for tensor in pair.tensors} == kept
    refusals = dict(pair.left_out)
    assert set(refusals) == set(a) - kept
    assert refusals["model.layers.0.self_attn.q_proj.weight"] == "--path layers.1"
    assert refusals["model.layers.1.self_attn.q_proj.weight"] == r"--ignore-keys-regex norm|\bq_proj"


# What holds for any two checkpoints.

PIECES = (
    "model",
    "module",
    "layers",
    "h",
    "0",
    "1",
    "mlp",
    "attn",
    "self_attn",
    "q_proj",
    "query",
    "fc1",
    "embed_tokens",
)
LASTS = ("weight", "bias", "qweight", "gamma")
SHAPES = ((), (4,), (4, 6), (6, 6), (9, 6), (0, 6), (2, 2, 2))
names = st.builds(
    lambda inner, last: ".".join([*inner, last]),
    st.lists(st.sampled_from(PIECES), max_size=4),
    st.sampled_from(LASTS),
)
states = st.dictionaries(
    names, st.tuples(st.sampled_from(SHAPES), st.sampled_from(["f4", "f2", "i1"])), max_size=8
).map(lambda state: {name: np.zeros(shape, dtype) for name, (shape, dtype) in state.items()})


@given(states, states)
@settings(max_examples=80, deadline=None)
def test_every_stored_tensor_is_in_the_pair_exactly_once(a, b):
    pair = pair_of(a, b)
    for state, side, lonely in ((a, "a", Rule.LOST_ROWS), (b, "b", Rule.NEW_ROWS)):
        held = [t for t in pair.tensors if getattr(t, side) is not None]
        assert Counter(getattr(t, f"name_{side}") for t in held if t.rule is not lonely) == Counter(
            list(state)
        )
        assert {part for t in held for part in getattr(t, side).parts} == set(state)
        # Rows are split without loss.
        sizes: Counter[str] = Counter()
        for t in held:
            sizes[getattr(t, f"name_{side}")] += getattr(t, side).size
        assert sizes == Counter({name: array.size for name, array in state.items()})
        assert {name for t in pair.tensors if (name := getattr(t, f"name_{side}"))} == set(state)


@given(states, states)
@settings(max_examples=80, deadline=None)
def test_couples_are_one_to_one_and_fit(a, b):
    pair = pair_of(a, b)
    couples = [t for t in pair.tensors if t.a is not None and t.b is not None]
    assert len({t.name_a for t in couples}) == len({t.name_b for t in couples}) == len(couples)
    for t in couples:
        if t.rule is Rule.RESHAPED:
            assert t.name_a == t.name_b
        else:
            assert t.a is not None
            assert t.b is not None
            assert t.a.grid == t.b.grid
        if t.rule is Rule.SAME_NAME:
            assert t.name_a == t.name_b
        if t.rule.is_rename:
            assert t.name_a not in b or t.name_b not in a


@given(states, states)
@settings(max_examples=80, deadline=None)
def test_swapping_the_sides_swaps_what_is_found(a, b):
    there, back = found(pair_of(a, b)), found(pair_of(b, a))
    swapped = {(name_b, name_a): SWAPPED.get(rule, rule) for (name_a, name_b), rule in there.items()}
    assert swapped == back


@given(states, states, st.sampled_from(["", "mlp", "q"]), st.sampled_from(["", r"\d", "weight$"]))
@settings(max_examples=80, deadline=None)
def test_filters_only_take_away(a, b, path, ignore):
    sides = checkpoint_of(a), checkpoint_of(b)
    whole = pair_checkpoints(*sides)
    pair = pair_checkpoints(*sides, filters=Filters(path, ignore))
    kept = [(t.name_a, t.name_b, t.rule) for t in pair.tensors]
    assert [entry for entry in [(t.name_a, t.name_b, t.rule) for t in whole.tensors] if entry in kept] == kept
    gone = Counter(t.shown_name for t in whole.tensors) - Counter(t.shown_name for t in pair.tensors)
    assert gone == Counter(name for name, _ in pair.left_out)
    for name, refusal in pair.left_out:
        assert (path and path not in name and refusal == f"--path {path}") or refusal.startswith(
            "--ignore-keys"
        )
