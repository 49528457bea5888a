"""The panel of a Japanese report: its labels and what it says, but not names, values and reports' lines."""

from __future__ import annotations

import re

import numpy as np
import pytest
from builders import transformer
from panels import Displays

from diffai_jupyter.notebook.panel.live import Panel
from diffai_jupyter.notebook.panel.session import Session
from diffai_jupyter.report.request import request_of

JAPANESE = re.compile("[ぁ-んァ-ヶ一-龯]")
ENGLISH = re.compile(r"[a-z]{3,} [a-z]{3,}")


@pytest.fixture(scope="module")
def made():
    before = transformer()
    after = {name: (values * 1.01).astype(np.float32) for name, values in before.items()}
    states = {"before": before, "after": after}
    session = Session(request_of(("change-summary",), {"lang": "ja"}), lambda text: (states[text], text))
    made = Panel(session.base, session, ("before", "after"), {}, None, Displays())
    made._view.create()
    made.controls.run.click()
    return made


def test_labels_are_japanese(made):
    controls = [made.controls.run, made.controls.stop, made.controls.every, *made.controls.boxes.values()]
    controls += [*made.controls.combinations.values(), *made.controls.parts.values(), made.controls.layer]
    left = [control.description for control in controls if not JAPANESE.search(control.description)]
    assert left == []


def test_choices_keep_what_they_stand_for(made):
    assert [value for _, value in made.controls.sort_by.options] == ["rel", "abs", "energy", "max", "frac", "role_z"]
    assert all(JAPANESE.search(label) for label, _ in made.controls.sort_by.options)
    assert made.controls.sort_by.value == "rel"
    assert made.controls.layer.options[0] == ("すべて", "")


def test_what_it_says_is_japanese(made):
    assert JAPANESE.search(made.controls.status.value)
    made.controls.boxes["memory-analysis"].value = True
    assert "memory-analysis" in made.controls.status.value
    made.controls.layer.value = "1"
    said = made.controls.status.value
    assert "層 1" in said
    assert not ENGLISH.search(said)
    made.controls.layer.value = ""


def test_the_view_is_japanese_with_its_lines_as_ever(made):
    assert "変化の種類" in made._view.text
    assert "change_summary: layers_changed=" in made._view.text
