"""Tensors as rows: the exact lines, the numbers against NumPy, and what is collapsed."""

from __future__ import annotations

import re

import numpy as np
import pytest
from bank import BANK, pair_called
from builders import pair_of

from diffai_jupyter.contract.report import TensorRow
from diffai_jupyter.facts.change.changes import Status
from diffai_jupyter.report.rows import collapsed_lines, tensor_rows

ONE = np.linspace(-1, 2, 600, dtype="f4").reshape(30, 20)
NUMBER = r"(?:-?\d+\.\d{4}(?:e[+-]\d+)?|unknown)"
LINES = {
    "changed": rf"~ [^\n]+: mean={NUMBER}->{NUMBER}, std={NUMBER}->{NUMBER}, change={NUMBER}",
    "added": r"\+ [^\n]+: shape=\[[\d, ]*\], dtype=\w+, params=\d+",
    "removed": r"- [^\n]+: shape=\[[\d, ]*\], dtype=\w+, params=\d+",
    "reshaped": r"□ [^\n]+: \[[\d, ]*\] -> \[[\d, ]*\]",
    "unread": r"\? [^\n]+: not compared, [^\n]+",
    "equal": r"= [^\n]+: equal",
}
LINES |= {"cast": LINES["changed"], "rounding": LINES["changed"]}


def row_of(a: np.ndarray, b: np.ndarray, name: str = "w") -> TensorRow:
    (row,) = tensor_rows(pair_of({name: a}, {name: b}), "rel")
    return row


@pytest.mark.parametrize(
    ("a", "b", "line"),
    [
        (np.array([1.0, 3.0]), np.array([2.0, 4.0]), "~ w: mean=2.0000->3.0000, std=1.0000->1.0000, change=0.4472"),
        (np.array([1e-6, 3e-6]), np.array([2e-6, 4e-6]),
         "~ w: mean=2.0000e-06->3.0000e-06, std=1.0000e-06->1.0000e-06, change=0.4472"),
        (np.zeros(2), np.ones(2), "~ w: mean=0.0000->1.0000, std=0.0000->0.0000, change=unknown"),
        (np.full(2, np.nan), np.ones(2), "~ w: mean=unknown->1.0000, std=unknown->0.0000, change=unknown"),
        (ONE, ONE[:10], "□ w: [30, 20] -> [10, 20]"),
        (ONE, ONE.copy(), "= w: equal"),
        (np.array(1.0), np.array(2.0), "~ w: mean=1.0000->2.0000, std=0.0000->0.0000, change=1.0000"),
        (ONE, (ONE * 9).astype("i1"),
         "? w: not compared, f32 and i8: codes of a layout that was not recognised"),
    ],
)  # fmt: skip
def test_exact_line(a, b, line):
    assert row_of(a, b).line == line


def test_lines_of_lonely_tensors():
    rows = tensor_rows(
        pair_of({"w": ONE, "gone": ONE[:, :2]}, {"w": ONE, "new.kernel": np.ones((2, 3, 4), "f2")}), "rel"
    )
    assert [row.line for row in rows] == [
        "- gone: shape=[30, 2], dtype=f32, params=60",
        "+ new.kernel: shape=[2, 3, 4], dtype=f16, params=24", "= w: equal",
    ]  # fmt: skip


def test_scalars_have_an_empty_shape():
    (row,) = tensor_rows(pair_of({}, {"s": np.array(2.5)}), "rel")
    assert row.line == "+ s: shape=[], dtype=f64, params=1"


@pytest.mark.parametrize("name", BANK)
def test_every_line_has_the_form_of_its_status(name):
    for row in tensor_rows(pair_called(name), "rel"):
        assert re.fullmatch(LINES[row.status], row.line), row.line
        assert "\x1b" not in row.line
        assert "\u202e" not in row.line


def test_numbers_are_those_of_numpy():
    draw = np.random.default_rng(0)
    a, b = draw.normal(size=(50, 60)), draw.normal(size=(50, 60))
    b[3:5] = 0
    row = row_of(a, b)
    d = b - a
    assert row.numbers["relative_change"] == pytest.approx(np.linalg.norm(d) / np.linalg.norm(a), rel=1e-12)
    assert row.numbers["cosine"] == pytest.approx(
        (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b), rel=1e-9
    )
    assert row.numbers["delta_norm"] == pytest.approx(np.linalg.norm(d), rel=1e-12)
    assert row.numbers["max_abs_delta"] == np.abs(d).max()
    assert row.numbers["max_abs_delta_at"] == np.abs(d).argmax()
    assert (row.numbers["changed"], row.numbers["compared"], row.numbers["new_zero_rows"]) == (3000, 3000, 2)
    assert (row.numbers["size_a"], row.numbers["zeros_b"]) == (3000, 120)


def test_cosine_of_equal_and_opposite_tensors():
    assert row_of(ONE, ONE.copy()).numbers["cosine"] == 1
    assert row_of(ONE, -ONE).numbers["cosine"] == pytest.approx(-1)
    assert row_of(0 * ONE, ONE).numbers["cosine"] is None


def test_resized_rows_keep_the_shapes_of_the_whole():
    a = np.ones((4, 3))
    b = np.concatenate([a, np.full((2, 3), np.nan)])
    rows = tensor_rows(pair_of({"wte.weight": a}, {"wte.weight": b}), "rel")
    assert [(row.status, row.shapes) for row in rows] == [
        ("reshaped", ((4, 3), (6, 3))), ("equal", ((4, 3), (4, 3))),
    ]  # fmt: skip
    assert rows[0].line == "□ wte.weight: [4, 3] -> [6, 3]"
    assert (rows[0].numbers["nan_b"], rows[0].numbers["first_bad_b"]) == (6, 12)


def test_renamed_tensor_has_the_name_of_a_and_keeps_the_other():
    (row, _) = tensor_rows(
        pair_of({"module.w.x": ONE, "module.v.x": ONE}, {"w.x": ONE + 1, "v.x": ONE}), "rel"
    )
    assert (row.name, row.other_name) == ("module.w.x", "w.x")
    assert row.line.startswith("~ module.w.x: ")


def test_long_and_hostile_names_are_cut_and_spelled_out():
    line = row_of(ONE, ONE + 1, "a\nb\x1b[31m" + "x" * 5000).line
    assert line.startswith(r"~ a\u000ab\u001b[31mxxx")
    assert "… (5008 characters): mean=" in line
    assert len(line) < 400


def test_casts_and_roundings_collapse_into_one_line_each():
    state = {f"w{i}": ONE + i for i in range(7)}
    b = dict(state)
    b["w0"], b["w1"] = ONE.astype("f8"), (ONE + 1).astype("f8")
    b["w2"] = (ONE + 2).astype("f2")
    b["w3"] = np.nextafter(state["w3"], np.float32(9))
    b["w4"] = state["w4"] * 3
    rows = tensor_rows(pair_of(state, b), "rel")
    assert collapsed_lines(rows, show_unchanged=False) == [
        "≈ 1 tensors: rounding only", "≈ 3 tensors: cast only f32->f16, f32->f64", "= 2 tensors: equal",
    ]  # fmt: skip
    assert collapsed_lines(rows, show_unchanged=True) == collapsed_lines(rows, show_unchanged=False)[:2]


def test_there_is_a_line_for_every_status():
    assert set(LINES) == {status.value for status in Status}
