"""What `report.explain` says, against the declarations."""

from __future__ import annotations

import re

import pytest
from bank import pair_called

from diffai_jupyter.analyses import all_analyses
from diffai_jupyter.comparison import Comparison
from diffai_jupyter.errors import ArgumentError
from diffai_jupyter.evidence import REASONS
from diffai_jupyter.report.request import request_of
from diffai_jupyter.wording import write_value


@pytest.fixture(scope="module")
def found():
    flags = ("change-summary", "head-importance", "embedding-analysis", "memory-analysis")
    return Comparison(pair_called("moved"), request_of(flags, {"set": ("ov_important=1.5",)}))


def said(explanation):
    return re.sub(r"\s+", " ", explanation.to_text())


def test_every_field_is_explained_by_its_full_name(found):
    for flag, analysis in all_analyses().items():
        for field in analysis.fields:
            explanation = found.explain(f"{flag}.{field.key}")
            assert explanation.name == f"{flag}.{field.key}"
            text = said(explanation)
            assert re.sub(r"\s+", " ", field.definition).rstrip(".") in text
            assert analysis.references[0] in text
            assert all(word in text for word in field.words)
            if flag in found:
                assert write_value(found[flag].values[field.key].value, field.form, field.allows_infinite) in text
            else:
                assert f"--{flag} was not asked for" in text


def test_every_analysis_and_every_threshold_is_explained(found):
    for flag, analysis in all_analyses().items():
        assert analysis.summary in said(found.explain(f"--{flag}"))
        for threshold in analysis.thresholds:
            name = threshold.key if threshold.is_shared else f"{flag}.{threshold.key}"
            text = said(found.explain(name))
            assert f"--{flag}" in text
            assert f"--set {name}=VALUE" in text
            assert re.sub(r"\s+", " ", threshold.basis) in text


def test_a_threshold_says_where_its_value_comes_from(found):
    assert "head-importance.ov_important = 1.5 (set=); in [1, 1000] times the median." in said(
        found.explain("ov_important")
    )
    assert "head-importance.ov_prunable = 0.8 (default)" in said(found.explain("head_importance.prunable_heads"))


def test_what_is_unknown_says_what_would_settle_it(found):
    value = found["head_importance"].values["important_heads"]
    text = said(found.explain("important_heads"))
    assert value.reason in text
    assert REASONS[value.reason].remedy in text
    reason = said(found.explain(value.reason.lower()))
    assert REASONS[value.reason].sentence in reason
    assert "head-importance.important_heads" in reason


def test_names_are_read_as_people_write_them(found):
    full = "embedding-analysis.semantic_drift"
    for name in ("semantic_drift", "semantic-drift", "embedding_analysis.semantic_drift", "--" + full):
        assert found.explain(name).name == full
    assert found.explain("rel_change").name == "change-summary.magnitude"


def test_a_field_of_several_analyses_means_the_one_that_was_asked_for(found):
    assert found.explain("magnitude").name == "change-summary.magnitude"
    with pytest.raises(ArgumentError, match=r"write anomaly-detection\.severity or regression-test\.severity"):
        found.explain("severity")


@pytest.mark.parametrize(("name", "near"), [("sematic_drift", "semantic_drift"), ("NEDS_LOSS", "NEEDS_LOSS")])
def test_an_unknown_name_gets_a_close_one(found, name, near):
    with pytest.raises(ArgumentError, match=rf"no analysis, field, threshold or reason '{name}'.*'{near}'"):
        found.explain(name)


def test_an_explanation_shows_itself(found):
    explanation = found.explain("semantic_drift")
    assert "<table>" in explanation._repr_html_()
    assert "| threshold |" in found.explain("head_importance")._repr_markdown_()
    assert repr(explanation) == explanation.to_text().rstrip("\n")
