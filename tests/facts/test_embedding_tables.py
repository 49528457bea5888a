"""Which tables hold tokens, how their rows are paired, and how rows are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from builders import checkpoint_of, pair_of, to_codes, transformer, write_safetensors
from embeddings import NAME, embedded, normal, tokenizer
from opening import Counted

from diffai_jupyter.checkpoint.dtypes import DTYPES, Dtype
from diffai_jupyter.checkpoint.model import Checkpoint, Tokenizer
from diffai_jupyter.checkpoint.quantized import Undecoded
from diffai_jupyter.checkpoint.storage import StoredFile
from diffai_jupyter.checkpoint.tensor import ArrayTensor
from diffai_jupyter.evidence import Unknowable
from diffai_jupyter.facts.change.changes import changes
from diffai_jupyter.facts.embedding.survey import surveyed
from diffai_jupyter.facts.embedding.tables import common_rows, read_rows, survey, tables, target
from diffai_jupyter.readers.formats.detection import open_container
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.scan.pairing import Filters, pair_checkpoints


def names(pair: Pair) -> list[tuple[str, str]]:
    return [(table.name_a, table.name_b) for table in tables(pair)]


def ones(*shape: int, seed: int = 0) -> np.ndarray:
    return normal(seed, *shape).astype("f4")


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ({"wte.weight": ones(9, 4), "wpe.weight": ones(20, 4), "h.0.mlp.c_fc.weight": ones(4, 8)}, ["wte.weight"]),
        (
            {"bert.embeddings.word_embeddings.weight": ones(9, 4),
             "bert.embeddings.position_embeddings.weight": ones(7, 4),
             "bert.embeddings.token_type_embeddings.weight": ones(2, 4), "cls.predictions.decoder.weight": ones(9, 4)},
            ["bert.embeddings.word_embeddings.weight"],
        ),
        ({"token_embd.weight": ones(9, 4), "output.weight": ones(9, 4)}, ["token_embd.weight"]),
        ({"tok_emb.weight": ones(9, 4), "pos_emb.weight": ones(20, 4), "fc.weight": ones(3, 4)}, ["tok_emb.weight"]),
        ({"emb.weight": ones(9, 4), "blocks.0.att.key.weight": ones(4, 4)}, ["emb.weight"]),
    ],
)  # fmt: skip
def test_tables_of_tokens_are_found(state: dict[str, np.ndarray], expected: list[str]) -> None:
    assert names(pair_of(state, state)) == [(name, name) for name in expected]


def test_no_table() -> None:
    for state in ({"conv.weight": ones(4, 3, 3, 3)}, {"embed_tokens.weight": np.zeros((0, 4), "f4")}, {}):
        with pytest.raises(Unknowable, match="NO_TARGET"):
            tables(pair_of(state, state))


def test_the_largest_of_b_on_both_sides_comes_first() -> None:
    a = {"encoder.embed_tokens.weight": ones(9, 4), "decoder.embed_tokens.weight": ones(12, 4, seed=1)}
    b = {"encoder.embed_tokens.weight": ones(30, 4, seed=2), "decoder.embed_tokens.weight": ones(12, 4, seed=3)}
    found = tables(pair_of(a, b | {"large.embed_tokens.weight": ones(99, 4, seed=4)}))
    assert [table.name for table in found] == [
        "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "large.embed_tokens.weight",
    ]  # fmt: skip
    assert [table.is_paired for table in found] == [True, True, False]
    assert (found[2].a, found[2].name_a, found[0].size) == (None, "", 120)


def test_copies_count_once() -> None:
    table, other = ones(9, 4), ones(9, 4, seed=1)
    a = {name: table.copy() for name in ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")}
    b = {name: other.copy() for name in a}
    assert len(tables(pair_of(a, b))) == 1
    # Where B gave up the tie, there are two tables.
    b["decoder.embed_tokens.weight"] = ones(9, 4, seed=2)
    assert len(tables(pair_of(a, b))) == 2
    tied = checkpoint_of({"embed_tokens.weight": table, "lm_head.weight": table})
    assert names(pair_checkpoints(tied, tied)) == [("embed_tokens.weight", "embed_tokens.weight")]


def test_tables_of_two_families_are_paired() -> None:
    a, b = {"wte.weight": ones(9, 4), "fc.weight": ones(4, 4)}, {"model.embed_tokens.weight": ones(8, 6)}
    assert names(pair_of(a, b)) == [("wte.weight", "model.embed_tokens.weight")]
    with pytest.raises(Unknowable, match="NO_COMMON"):
        target(pair_of(a, {"fc.weight": ones(4, 4)}))


def test_what_a_filter_leaves_out_is_not_looked_at() -> None:
    state = {"embed_tokens.weight": ones(9, 4), "fc.weight": ones(4, 4)}
    with pytest.raises(Unknowable, match="NO_TARGET"):
        tables(embedded(state, state, filters=Filters(ignore="embed")))


def test_packed_codes_that_hide_their_numbers() -> None:
    dtype = Dtype("odd", 8, "u1", "<f4", packing="odd", opaque="it is odd")
    payload = ArrayTensor(np.zeros((9, 4), "u1"), dtype, (NAME,))
    side = Checkpoint("memory", "live", {NAME: Undecoded((payload,), dtype)})
    pair = pair_checkpoints(side, side)
    assert names(pair) == [(NAME, NAME)]
    with pytest.raises(Unknowable, match="NOT_DEQUANTIZABLE"):
        common_rows(pair)


def test_rows_are_read_in_any_order_and_together(tmp_path: Path) -> None:
    values = ones(4000, 64)
    path = write_safetensors(tmp_path / "m.safetensors", {"t": ("BF16", to_codes("bf16", values))})
    file = Counted(StoredFile.at(path))
    tensor = open_container(file).tensors["t"]
    whole = np.asarray(tensor.read_all(), dtype=np.float64)
    draw = np.random.default_rng(1)
    for rows in ([], [3999], [5, 5, 0], list(range(4000)), draw.integers(4000, size=700).tolist()):
        found = read_rows(tensor, rows)
        assert found.dtype == np.float64
        np.testing.assert_array_equal(found, whole[np.array(rows, dtype=int)])
    file.reads.clear()
    read_rows(tensor, np.arange(0, 4000, 3))
    assert len(file.reads) < 10
    file.reads.clear()
    read_rows(tensor, [0, 3999])
    assert file.total < 4 * 64 * 2


def test_rows_of_complex_numbers_have_two_columns_each() -> None:
    values = (normal(0, 5, 3) + 1j * normal(1, 5, 3)).astype("c8")
    tensor = checkpoint_of({"t": values}).tensors["t"]
    found = read_rows(tensor, [4, 1])
    np.testing.assert_array_equal(found, values[[4, 1]].view("f4").astype("f8"))


def test_rows_that_say_nothing_are_left_out() -> None:
    a = normal(0, 40, 8)
    b = a + 0.1
    a[3, 2], b[4, 0] = np.nan, np.inf
    a[5], b[6] = 0, 0
    b[20:24] = b[20]
    a[30:32] = a[30]
    common = common_rows(embedded(a, b))
    assert common.dropped == {"non-finite": 2, "zero": 2, "repeated": 4}
    assert common.rows_b.tolist() == [i for i in range(40) if i not in (3, 4, 5, 6, 20, 21, 22, 23)]
    assert (common.paired_by, common.tokens, common.is_in_place) == ("index", None, True)
    about = survey(embedded(a, b), 1)
    np.testing.assert_allclose(about.mean, b[[i for i in range(40) if i not in (4, 6, 20, 21, 22, 23)]].mean(axis=0))


@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32", "f64"])
def test_few_rows_are_taken_for_equal_that_are_not(dtype: str) -> None:
    values = np.random.default_rng(0).integers(-2, 3, (30_000, 12)) / 4
    codes = to_codes(dtype, values) if dtype != "f64" else values
    kind = {"bf16": None, "f16": "f2", "f32": "f4", "f64": "f8"}[dtype]
    tensor = ArrayTensor(codes if kind is None else np.asarray(codes).view(kind), DTYPES[dtype], ("t",))
    blocks = [read_rows(tensor, np.arange(top, top + 5000)) for top in range(0, 30_000, 5000)]
    about = surveyed(blocks, lambda rows: read_rows(tensor, rows))
    _, where, counts = np.unique(values, axis=0, return_inverse=True, return_counts=True)
    expected = (counts[where.reshape(-1)] >= 3) & values.any(axis=1)
    np.testing.assert_array_equal(about.is_repeated, expected)
    np.testing.assert_allclose(about.norms, np.linalg.norm(values, axis=1), rtol=1e-12)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [(np.nan, "ALL_NONFINITE"), (0.0, "ZERO_REFERENCE"), (1.5, "TOO_SMALL")],
)
def test_nothing_left(spoil: float, reason: str) -> None:
    a = np.full((12, 4), spoil)
    with pytest.raises(Unknowable, match=reason):
        common_rows(embedded(a, normal(0, 12, 4)))


def test_numbers_at_the_ends_of_the_range() -> None:
    for scale in (1e300, 1e-300, 1e-310):
        a = normal(0, 12, 4) * scale
        expected = np.linalg.norm(a / scale, axis=1) * scale
        np.testing.assert_allclose(survey(embedded(a, a), 0).norms, expected, rtol=1e-9)


def test_rows_added_at_the_end() -> None:
    a = normal(0, 30, 4)
    common = common_rows(embedded(a, np.concatenate([a, normal(1, 5, 4)])))
    assert (len(common), common.added.rows.tolist(), len(common.removed.rows)) == (30, [30, 31, 32, 33, 34], 0)
    assert common.added.tokens is None
    # With one tokenizer rows are named, but not paired by it.
    words = tokenizer([f"t{i}" for i in range(35)])
    common = common_rows(embedded(a, np.concatenate([a, normal(1, 5, 4)]), None, words))
    assert common.paired_by == "index"
    assert common.tokens is not None
    assert (common.tokens[29], list(common.tokens[:2])) == ("t29", ["t0", "t1"])
    assert list(common.added.tokens or ()) == ["t30", "t31", "t32", "t33", "t34"]


def test_tokens_inserted_in_the_middle() -> None:
    words_a = [f"w{i}" for i in range(20)]
    words_b = [*words_a[:7], "new", "newer", *words_a[7:15], *words_a[16:]]
    a = normal(0, 20, 4)
    b = np.stack([a[words_a.index(word)] if word in words_a else [9, 9, 9, 9.0] for word in words_b])
    common = common_rows(embedded(a, b, tokenizer(words_a), tokenizer(words_b)))
    assert common.paired_by == "token"
    np.testing.assert_array_equal(a[common.rows_a], b[common.rows_b])
    assert list(common.tokens or ()) == [word for word in words_b if word in words_a]
    assert (list(common.added.tokens or ()), list(common.removed.tokens or ())) == (["new", "newer"], ["w15"])
    assert (common.added.rows.tolist(), common.removed.rows.tolist()) == ([7, 8], [15])


def test_one_tokenizer_for_both_leaves_out_rows_without_a_token() -> None:
    words = tokenizer({i: f"t{i % 9}" for i in range(10)} | {40: "beyond", -1: "before"})
    common = common_rows(embedded(normal(0, 16, 4), normal(1, 16, 4), words, words))
    assert (common.paired_by, common.rows_a.tolist()) == ("token", list(range(10)))
    assert common.added.rows.tolist() == [10, 11, 12, 13, 14, 15]
    assert list(common.added.tokens or ()) == [""] * 6


def test_a_tokenizer_that_names_few_rows_pairs_none() -> None:
    few = tokenizer({0: "a", 1: "b"})
    common = common_rows(embedded(normal(0, 16, 4), normal(1, 16, 4), few, few))
    assert (common.paired_by, len(common)) == ("index", 16)


def test_no_token_in_common() -> None:
    a, b = tokenizer([f"a{i}" for i in range(16)]), tokenizer([f"b{i}" for i in range(16)])
    with pytest.raises(Unknowable, match="NO_COMMON"):
        common_rows(embedded(normal(0, 16, 4), normal(1, 16, 4), a, b))


def test_words_are_read_for_those_who_ask_only() -> None:
    def refuse() -> dict[int, str]:
        raise AssertionError

    state = transformer(layers=1, hidden=8, inner=8, vocab=16)
    words = Tokenizer("digest", 16, (), refuse)
    pair = embedded(state, state, words, words)
    assert tables(pair)
    assert changes(pair)
    with pytest.raises(AssertionError):
        common_rows(pair)
