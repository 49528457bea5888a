"""The analysis of the token embedding, from files to pages."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import mistune
import numpy as np
import pytest
from builders import to_codes, transformer, write_safetensors
from embeddings import NAME, embedded, normal, rotation, tokenizer

from diffai_jupyter.analyses import all_analyses
from diffai_jupyter.checkpoint.dtypes import Dtype
from diffai_jupyter.checkpoint.model import Checkpoint
from diffai_jupyter.checkpoint.quantized import Undecoded
from diffai_jupyter.checkpoint.tensor import ArrayTensor
from diffai_jupyter.comparison import Comparison
from diffai_jupyter.contract.blocks import Facts, Series, Table
from diffai_jupyter.contract.result import Result
from diffai_jupyter.evidence import Evidence
from diffai_jupyter.readers import open_checkpoint
from diffai_jupyter.render.phrases import sentence
from diffai_jupyter.report.request import request_of
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.scan.pairing import pair_checkpoints
from diffai_jupyter.scan.run import Run

FLAG = "embedding-analysis"
WORDS = [f"w{i}" for i in range(300)]
HOSTILE = ["<script>alert(1)</script>", "a|b", "$x$", "\n", "\x1b[31m", "", "`c`*d*_e_", "\u202eevil", "{0}{key}", " a"]


def result_of(pair: Pair) -> Result:
    declared = all_analyses()[FLAG]
    found: Result = declared.run(pair, {threshold.key: threshold.default for threshold in declared.thresholds})
    return found


def line_of(pair: Pair) -> str:
    return all_analyses()[FLAG].line(result_of(pair))


def table_of(result: Result, title: str) -> list[tuple[Any, ...]]:
    return [row for block in result.blocks if isinstance(block, Table) and block.title == title for row in block.rows]


def facts_of(result: Result) -> dict[str, Any]:
    return {fact.label: fact.value for block in result.blocks if isinstance(block, Facts) for fact in block.facts}


def folder(path: Path, table: np.ndarray, words: list[str] | None = None, dtype: str = "F32") -> Path:
    """Write weights, and a tokenizer beside them."""
    state = transformer(layers=1, hidden=table.shape[1], inner=48, vocab=4)
    kept = {name: ("F32", values) for name, values in state.items() if "embed" not in name and "head" not in name}
    write_safetensors(path / "model.safetensors", {**kept, NAME: (dtype, table)})
    if words is not None:
        model = {"type": "WordLevel", "vocab": {word: i for i, word in enumerate(words)}, "unk_token": "w0"}
        content = {"version": "1.0", "added_tokens": [], "model": model}
        (path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    return path


def opened(a: Path, b: Path) -> Pair:
    return pair_checkpoints(open_checkpoint(a), open_checkpoint(b))


def test_equal_tables() -> None:
    a = normal(0, 300, 16).astype("f4")
    pair = embedded(a, a.copy())
    assert line_of(pair) == (
        "embedding_analysis: dim_change=16→16, semantic_drift=0.0000, similarity_preservation=1.0000"
    )
    result = result_of(pair)
    assert {value.evidence for value in result.values.values()} == {Evidence.MEASURED}
    assert sentence(result.meaning) == "The rows of all 300 tokens, paired by row, are the same in A and B."
    assert result.assumptions[0].startswith("row order kept")
    assert not result.findings
    assert not table_of(result, "Tokens that turned most")


def test_only_lengths_changed() -> None:
    a = normal(0, 300, 16)
    assert "only lengths changed" in sentence(result_of(embedded(a, 2 * a)).meaning)


def test_moved_tokens_are_found_by_name(tmp_path: Path) -> None:
    a = normal(0, 300, 32).astype("f4")
    b = a + np.float32(0.01) * normal(1, 300, 32).astype("f4")
    b[[17, 250]] = normal(2, 2, 32)
    b[40] *= 9
    pair = opened(folder(tmp_path / "a", a, WORDS), folder(tmp_path / "b", b.astype("f4"), WORDS))
    result = result_of(pair)
    assert {row[:2] for row in table_of(result, "Tokens that turned most")[:2]} == {("w17", 17), ("w250", 250)}
    assert table_of(result, "Tokens whose norm changed most")[0][:2] == ("w40", 40)
    assert table_of(result, "Tokens whose norm changed most")[0][3] == pytest.approx(9, rel=0.01)
    assert result.values["semantic_drift"].value == pytest.approx(2 / 300, rel=0.4)
    assert "300 tokens, paired by name, moved by" in sentence(result.meaning)
    assert not result.assumptions[0].startswith("row order")
    (chart,) = [block for block in result.blocks if isinstance(block, Series)]
    assert [curve.label for curve in chart.curves] == ["A", "B"]
    assert all(len(curve.x) == len(curve.y) == 300 for curve in chart.curves)


def test_tokens_inserted_in_the_middle_move_no_other_token(tmp_path: Path) -> None:
    a = normal(0, 300, 32).astype("f4")
    words = [*WORDS[:100], "new", "newer", *WORDS[100:]]
    b = np.insert(a, [100, 100], normal(1, 2, 32), axis=0).astype("f4")
    result = result_of(opened(folder(tmp_path / "a", a, WORDS), folder(tmp_path / "b", b, words)))
    assert result.values["semantic_drift"].value == 0.0
    assert table_of(result, "Tokens only in B") == [("new", 100), ("newer", 101)]
    # Without tokenizers it looks as if most tokens had moved.
    result = result_of(opened(folder(tmp_path / "c", a), folder(tmp_path / "d", b)))
    assert result.values["semantic_drift"].value is None or result.values["semantic_drift"].value > 0.5
    assert table_of(result, "Rows only in B") == [(300,), (301,)]


def test_new_tokens_that_look_untrained_are_told() -> None:
    a = normal(0, 300, 32)
    b = np.concatenate([a, 0.001 * normal(1, 2, 32), normal(2, 1, 32), np.zeros((1, 32))])
    words = tokenizer([*WORDS, "faint", "feeble", "firm", "nil"])
    (finding,) = result_of(embedded(a, b, tokenizer(WORDS), words)).findings
    assert "{n} of {all}" in finding.template
    assert (finding.said["n"], finding.said["all"]) == (3, "4 new tokens")
    result = result_of(embedded(a, b, tokenizer(WORDS), words))
    assert [row[0] for row in table_of(result, "Tokens that look untrained, B")] in (
        ["faint", "feeble"],
        ["feeble", "faint"],
    )
    # Rows that no token has are padding.
    padded = np.concatenate([a, np.zeros((20, 32))])
    assert not result_of(embedded(a, padded, tokenizer(WORDS), tokenizer(WORDS))).findings


def test_independent_runs_are_rotated_first() -> None:
    a = normal(0, 500, 16)
    pair = embedded(a, a @ rotation(1, 16), cosine=0.0)
    result = result_of(pair)
    drift = result.values["semantic_drift"]
    assert (drift.evidence, drift.value) == (Evidence.DERIVED, pytest.approx(0.0, abs=1e-9))
    assert drift.assumption
    assert result.values["similarity_preservation"].value == pytest.approx(1.0, abs=1e-9)
    assert facts_of(result)["Drift without rotation"].value > 0.5
    assert "behind the best rotation" in sentence(result.meaning)
    assert not table_of(result, "Tokens that turned most")
    (chart,) = [block for block in result.blocks if isinstance(block, Series)]
    np.testing.assert_allclose(chart.curves[0].x, chart.curves[1].x, atol=1e-9)
    unrelated = result_of(embedded(a, normal(5, 500, 16), cosine=0.0))
    assert unrelated.values["semantic_drift"].value == pytest.approx(1.0, abs=0.03)
    assert unrelated.values["similarity_preservation"].value == pytest.approx(0.0, abs=0.02)


def test_too_few_tokens_for_a_rotation() -> None:
    result = result_of(embedded(normal(0, 300, 16), normal(1, 300, 16), cosine=0.0))
    drift = result.values["semantic_drift"]
    assert (drift.reason, drift.detail) == ("TOO_SMALL", "rows=300, least=320")
    assert "too few to find a rotation" in sentence(result.meaning)
    result = result_of(embedded(normal(0, 300, 12), normal(1, 300, 16)))
    assert (result.values["dim_change"].value, result.values["semantic_drift"].reason) == ((12, 16), "TOO_SMALL")
    assert result.values["similarity_preservation"].is_known


@pytest.mark.parametrize(
    ("a", "b", "line"),
    [
        ({"w": np.ones((3, 3))}, {"w": np.ones((3, 3))}, ["unknown", "unknown", "unknown"]),
        (normal(0, 30, 4), {"fc.weight": np.ones((3, 3))}, ["4→unknown", "unknown", "unknown"]),
        (normal(0, 2, 4), normal(0, 2, 4), ["4→4", "0.0000", "unknown"]),
        (np.full((30, 4), np.nan), normal(0, 30, 4), ["4→4", "unknown", "unknown"]),
        (np.zeros((30, 4)), normal(0, 30, 4), ["4→4", "unknown", "unknown"]),
    ],
)
def test_what_cannot_be_known(a: Any, b: Any, line: list[str]) -> None:
    keys = ("dim_change", "semantic_drift", "similarity_preservation")
    pair = embedded(a, b)
    said = ", ".join(f"{key}={value}" for key, value in zip(keys, line, strict=True))
    assert line_of(pair) == f"embedding_analysis: {said}"
    assert sentence(result_of(pair).meaning)


def test_rows_with_nan_are_counted_and_left_out() -> None:
    a = normal(0, 300, 16)
    b = a.copy()
    b[7, 3], b[8] = np.nan, 0
    result = result_of(embedded(a, b))
    assert result.values["semantic_drift"].value == 0.0
    left_out = facts_of(result)["Common rows left out"]
    assert (left_out.value, left_out.source) == (2, "1 non-finite, 1 zero")


def test_tables_in_bf16(tmp_path: Path) -> None:
    a, b = normal(0, 300, 16), normal(0, 300, 16) + 0.2 * normal(1, 300, 16)
    one = folder(tmp_path / "a", to_codes("bf16", a), dtype="BF16")
    other = folder(tmp_path / "b", to_codes("bf16", b), dtype="BF16")
    exact = result_of(embedded(a, b)).values
    found = result_of(opened(one, other)).values
    for key in ("semantic_drift", "similarity_preservation"):
        assert found[key].value == pytest.approx(exact[key].value, abs=1e-3)


def test_a_quantized_table(tmp_path: Path) -> None:
    # Rows of 32 codes with a scale each, as in Q8_0.
    import gguf

    a = normal(0, 300, 64).astype("f4")
    sides = []
    for name, kind in (("a", gguf.GGMLQuantizationType.F32), ("b", gguf.GGMLQuantizationType.Q8_0)):
        writer = gguf.GGUFWriter(tmp_path / f"{name}.gguf", "llama")
        raw = gguf.quants.quantize(a, kind)
        writer.add_tensor("token_embd.weight", raw, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        sides.append(tmp_path / f"{name}.gguf")
    found = result_of(opened(sides[0], sides[1])).values
    whole = gguf.quants.dequantize(gguf.quants.quantize(a, kind), kind)
    cosines = (a * whole).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(whole, axis=1)
    assert found["semantic_drift"].value == pytest.approx(1 - cosines.astype("f8").mean(), rel=0.05, abs=1e-7)
    assert found["similarity_preservation"].value > 0.9999


def test_further_tables_are_listed() -> None:
    a = {"encoder.embed_tokens.weight": normal(0, 30, 4), "decoder.embed_tokens.weight": normal(1, 20, 4)}
    b = {name: values * 1.5 for name, values in a.items()}
    rows = table_of(result_of(embedded(a, b)), "Other token embeddings")
    assert rows == [("decoder.embed_tokens.weight", "20x4", "20x4", pytest.approx(0.5))]


def test_hostile_tokens_come_out_harmless(tmp_path: Path) -> None:
    words = [*HOSTILE, *WORDS[len(HOSTILE) :]]
    a = normal(0, 300, 16).astype("f4")
    b = a.copy()
    b[: len(HOSTILE)] = normal(1, len(HOSTILE), 16)
    b = np.concatenate([b, normal(2, 1, 16)]).astype("f4")
    pair = opened(folder(tmp_path / "a", a, words), folder(tmp_path / "b", b, [*words, "</td><i>|new"]))
    comparison = Comparison(pair, request_of((FLAG,), {}))
    fragment, text, markdown = comparison.to_html(), comparison.to_text(), comparison.to_markdown()
    parse = mistune.create_markdown(escape=False, plugins=["table", "strikethrough", "math"])
    page = str(parse(markdown))
    for written in (fragment, page):
        assert "<script" not in written
        assert not re.search(r"<em>|class=.math", re.sub(r"(?s)<style.*?</style>", "", written))
        assert "&lt;script&gt;" in written
    for written in (fragment, page, text, markdown):
        assert "\x1b" not in written
        assert "\u202e" not in written
    assert "<script>alert(1)</script>" in text
    for table in re.findall(r"(?s)<table>.*?</table>", page):
        assert len({row.count("<t") - 1 for row in re.findall(r"(?s)<tr>.*?</tr>", table)}) == 1
    shown = html.unescape(re.sub(r"<[^>]+>", "", page))
    assert all(token in shown for token in ("a|b", "$x$", "</td><i>|new"))
    assert json.loads(comparison.to_json())["results"][FLAG]["line"] == line_of(pair)


def test_same_files_give_the_same_bytes() -> None:
    texts = set()
    for _ in range(2):
        pair = embedded(normal(0, 500, 16), normal(0, 500, 16) + normal(1, 500, 16), tokenizer(WORDS), tokenizer(WORDS))
        texts.add(Comparison(pair, request_of((FLAG,), {})).to_json())
    assert len(texts) == 1


def test_what_hides_its_numbers_and_what_takes_too_long() -> None:
    dtype = Dtype("odd", 8, "u1", "<f4", packing="odd", opaque="it is odd")
    payload = ArrayTensor(np.zeros((9, 4), "u1"), dtype, (NAME,))
    side = Checkpoint("memory", "live", {NAME: Undecoded((payload,), dtype)})
    result = result_of(pair_checkpoints(side, side))
    assert {value.reason for value in result.values.values()} == {"NOT_DEQUANTIZABLE"}
    assert "cannot be turned back" in sentence(result.meaning)
    late = embedded(normal(0, 30, 4), normal(1, 30, 4))
    late.run = Run(seconds=-1.0)
    result = result_of(late)
    assert [value.reason for value in result.values.values()] == [None, "TIME_BUDGET", "TIME_BUDGET"]
    assert "time budget" in sentence(result.meaning)


def test_a_gguf_file_names_its_rows(tmp_path: Path) -> None:
    import gguf

    a = normal(0, 300, 32).astype("f4")
    words = [f"▁w{i}" for i in range(300)]
    writer = gguf.GGUFWriter(tmp_path / "b.gguf", "llama")
    writer.add_token_list([words[1], words[0], *words[2:]])
    moved = a[[1, 0, *range(2, 300)]]
    moved[44] = normal(1, 32)
    writer.add_tensor("token_embd.weight", moved)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    result = result_of(opened(folder(tmp_path / "a", a, words), tmp_path / "b.gguf"))
    assert [row[:2] for row in table_of(result, "Tokens that turned most")] == [("▁w44", 44)]
