"""What a report is asked for shows itself in a cell: answers, tables, tensors, explanations."""

from __future__ import annotations

import pytest
from IPython.core.completer import provisionalcompleter

MAKE = """
import numpy as np
draw = np.random.default_rng(0)
a = {f"layers.{i}.weight": draw.normal(size=(24, 20)) for i in range(2)}
b = {name: values + 0.1 * draw.normal(size=values.shape) for name, values in a.items()}
r = %diffai a b --memory-analysis --change-summary
"""


@pytest.fixture
def made(run, outputs):
    run(MAKE)
    assert outputs() == []


@pytest.mark.parametrize(
    ("asked", "expected", "pictures"),
    [
        ('r["memory_analysis"].table', "<table>", 0),
        ('r["memory_analysis"]', "memory_analysis: ", 0),
        ('r.explain("magnitude")', "<table>", 0),
        ('r.tensor("layers.1.weight")', "Singular values", 1),
    ],
)
def test_each_is_one_output_and_at_most_one_sheet(made, run, outputs, asked, expected, pictures):
    run(asked)
    first, *others = outputs()
    assert set(first) == {"text/html", "text/markdown", "text/plain"}
    assert expected in first["text/html"]
    assert "<script" not in first["text/html"]
    assert [("image/png" in output) for output in others] == [True] * pictures
    assert sum(len(output["image/png"]) for output in others) < 250_000


def test_a_figure_is_one_of_matplotlib(made, run, outputs, shell):
    run('f = r.figure("change_by_layer")')
    assert type(shell.user_ns["f"]).__name__ == "Figure"
    assert outputs() == []


def test_keys_are_completed(made, shell):
    text = 'r["mem'
    with provisionalcompleter():
        assert [found.text for found in shell.Completer.completions(text, len(text))] == ["memory_analysis"]


def test_a_comment_is_shown_as_markdown(made, run, outputs):
    run("%diffai a b --output comment")
    assert set(outputs()[0]) == {"text/plain", "text/markdown"}
    run("%diffai a b --output csv")
    assert set(outputs()[1]) == {"text/plain"}
