from __future__ import annotations

import base64
import struct

import pytest

from diffai_jupyter.contract.blocks import Curve, Document, Heading, Lines, Mark, Section, Sentence, Series
from diffai_jupyter.notebook.display import Written, bundles, emit, emit_written
from diffai_jupyter.wording import Name


def chart(key):
    curve = Curve("B", ("x", "y"), (1.0, 2.0))
    return Series(key, "Change", Mark.BAR, (curve,), "layer", "ratio", Sentence(f"{key} grows to 2."))


def section(key, group, *blocks):
    return Section(key, group, (Lines((f"{key}: x=1",)), *blocks))


class Comparison:
    """What `emit` needs of a comparison."""

    def __init__(self, *sections):
        self._sections = sections

    def document(self):
        return Document("diffai: a<b → c", self._sections)


@pytest.fixture
def comparison():
    return Comparison(
        section("summary", "Summary", Sentence("{n} differs: {w}", {"n": 1, "w": Name("<script>|`$x$")})),
        section("learning-progress", "Learning"),
        section("memory-analysis", "Architecture", Heading("Memory")),
        section("anomaly-detection", "Learning", chart("loss")),
    )


def test_one_output_per_group_and_one_per_chart_sheet(shell, outputs, comparison):
    emit(comparison)
    kinds = [set(bundle) for bundle in outputs()]
    assert kinds == [{"text/html", "text/markdown", "text/plain"}] * 3 + [{"image/png", "text/plain"}]
    assert "learning-progress: x=1" in outputs()[1]["text/plain"]
    assert "anomaly-detection: x=1" in outputs()[1]["text/plain"]


def test_every_form_of_an_output_says_the_same(comparison):
    for bundle in bundles(comparison.document()):
        for form in bundle.values():
            assert ": x=1" in form
        assert "<script>" not in bundle["text/html"]


def test_a_group_is_not_titled_twice():
    sections = (
        section("summary", ""),
        section("tensors", "Tensors", Heading("Tensors")),
        section("x", "Extra"),
    )
    second, third = [bundle["text/plain"] for bundle in bundles(Document("t", sections))][1:]
    assert second.count("Tensors") == 1
    assert third.startswith("Extra\n")


def test_a_chart_is_a_picture_with_its_sentence_and_size(shell, comparison):
    emit(comparison)
    output = shell.display_pub.outputs[-1]
    png = base64.b64decode(output["data"]["image/png"], validate=True)
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    pixels = struct.unpack(">II", png[16:24])
    said = output["metadata"]["image/png"]
    assert said["alt"] == output["data"]["text/plain"]
    assert "loss grows to 2." in said["alt"]
    # Drawn at twice the size it is shown at, up to the rounding of half a pixel.
    assert pixels == pytest.approx((2 * said["width"], 2 * said["height"]), abs=1)


def test_at_most_four_sheets(shell, outputs):
    emit(Comparison(section("summary", ""), section("x", "X", *(chart(f"c{i}") for i in range(12)))))
    assert 1 <= sum("image/png" in bundle for bundle in outputs()) <= 4


def test_the_same_report_gives_the_same_bytes(shell, outputs, comparison):
    emit(comparison)
    emit(comparison)
    assert outputs()[:4] == outputs()[4:]


@pytest.mark.parametrize(("form", "kinds"), [("json", {"text/plain"}), ("html", {"text/plain", "text/html"})])
def test_a_written_form_is_text_and_shown_as_what_it_is(shell, outputs, form, kinds):
    written = Written("<p>x</p>", form)
    assert written == "<p>x</p>"
    emit_written(written)
    assert outputs() == [dict.fromkeys(kinds, "<p>x</p>")]
