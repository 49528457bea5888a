from __future__ import annotations

import os
import re

import numpy as np
import pytest
from builders import transformer
from safetensors.numpy import save_file

from diffai_jupyter.analyses import all_analyses
from diffai_jupyter.contract.blocks import Facts, Table
from diffai_jupyter.errors import ArgumentError
from diffai_jupyter.notebook.panel.choice import (
    COMBINATIONS,
    Choice,
    choice_of,
    groups,
    limits_of,
    request_for,
)
from diffai_jupyter.notebook.panel.recent import MOST, Recent
from diffai_jupyter.notebook.panel.session import Session
from diffai_jupyter.notebook.panel.work import Stopped
from diffai_jupyter.report.listing import OUTSIDE, Filter
from diffai_jupyter.report.request import request_of
from diffai_jupyter.scan import passes


def quiet(stage, done, total):
    pass


@pytest.fixture(scope="module")
def states():
    before = transformer()
    draw = np.random.default_rng(5)
    after = {
        name: (values + draw.normal(0, 0.05 if ".1.mlp" in name else 0.004, values.shape)).astype(np.float32)
        if "norm" not in name
        else values
        for name, values in before.items()
    }
    return before, after


@pytest.fixture
def files(states, tmp_path):
    texts = tuple(str(tmp_path / f"{side}.safetensors") for side in "ab")
    for text, state in zip(texts, states, strict=True):
        save_file(state, text)
    return texts


@pytest.fixture
def session(files):
    made = Session(request_of((), {}), lambda text: (text, ""))
    made.open(files, Choice(), quiet)
    return made


def facts_of(document):
    return next(block for block in document.sections[0].blocks if isinstance(block, Facts))


def listed(document):
    section = next(s for s in document.sections if s.key == "tensors")
    return [str(row[0]) for block in section.blocks if isinstance(block, Table) for row in block.rows]


def test_every_analysis_is_in_one_of_the_six_groups():
    flags = [flag for group in groups().values() for flag in group]
    assert len(groups()) == 6
    assert sorted(flags) == sorted(all_analyses())


def test_the_combinations_are_those_of_the_description():
    assert [len(flags) for flags in COMBINATIONS.values()] == [3, 3, 3, 3]
    assert {flag for flags in COMBINATIONS.values() for flag in flags} <= set(all_analyses())


def test_a_choice_becomes_a_request_that_names_the_panel_as_source():
    base = request_of(("memory-analysis",), {"top": 7, "markdown_output": "x.md"}, source="--{flag}")
    choice = Choice(frozenset({"anomaly-detection", "change-summary"}), {"psi": 0.5}, sort_by="abs", top=7)
    request = request_for(choice, base)
    assert request.analyses == ("anomaly-detection", "change-summary")
    assert (request.settings["sort_by"], request.settings.source("sort_by")) == ("abs", "panel")
    assert (request.settings["top"], request.settings.source("top")) == (7, "--top")
    assert request.thresholds["anomaly-detection"]["psi"] == (0.5, "panel")
    # A shared threshold has one value for all that declare it.
    assert request.thresholds["risk-assessment"]["psi"] == (0.5, "panel")
    assert request.paths == {}


def test_what_a_gate_asks_for_stays_whatever_is_ticked():
    base = request_of((), {"fail_on": "memory_analysis.delta>=1"})
    assert request_for(Choice(), base).analyses == ("memory-analysis",)


def test_the_first_choice_is_what_was_asked_for():
    base = request_of(("anomaly-detection",), {"top": 3, "sort_by": "max", "show_unchanged": True})
    choice = choice_of(base)
    assert choice == Choice(frozenset({"anomaly-detection"}), only_differences=False, sort_by="max", top=3)


def test_limits_start_where_flags_and_files_put_them():
    base = request_of((), {"set": {"psi": 0.75}})
    found = {limit.name: limit for limit in limits_of("anomaly-detection", base)["limits"]}
    assert (found["psi"].value, found["psi"].threshold.default) == (0.75, 0.25)
    assert found["anomaly-detection.tail"].value == found["anomaly-detection.tail"].threshold.default
    parts = limits_of("risk-assessment", base)
    assert next(iter(parts)) == "limits"
    names = [limit.name for limit in parts["DTYPE"]]
    assert names == ["DTYPE.points", "DTYPE.penalty", "DTYPE.severity", "DTYPE.blocker"]


def test_toggling_scans_nothing(session, monkeypatch):
    def fail(pair):
        raise AssertionError

    first = session.look(Choice(frozenset({"change-summary"})), quiet)
    monkeypatch.setattr(passes, "_scan", fail)
    second = session.look(Choice(frozenset({"change-summary", "anomaly-detection"})), quiet)
    assert set(second.comparison.report.results) == {"anomaly-detection", "change-summary"}
    assert second.comparison.report.results["change-summary"] is first.comparison.report.results["change-summary"]
    assert second.said.startswith("1 analysis run (anomaly-detection), nothing scanned")
    back = session.look(Choice(frozenset({"change-summary"})), quiet)
    assert back.said == "No analysis run, nothing scanned"
    assert back.document == first.document


def test_a_limit_moves_the_verdict_and_no_number(session):
    flags = frozenset({"anomaly-detection"})
    loose = session.look(Choice(flags, {"psi": 100.0}), quiet).comparison.report.results["anomaly-detection"]
    strict = session.look(Choice(flags, {"psi": 0.0001}), quiet)
    assert strict.said.startswith("1 analysis run")
    found = strict.comparison.report.results["anomaly-detection"]
    assert loose.values["type"].value == "none"
    assert found.values["type"].value == "weight_distribution_shift"


@pytest.mark.parametrize(
    ("chosen", "keeps"),
    [
        (Filter(layer="1"), lambda name: ".layers.1." in name),
        (Filter(layer=OUTSIDE), lambda name: ".layers." not in name),
        (Filter(pattern=r"mlp\.(up|down)"), lambda name: re.search("mlp.up|mlp.down", name)),
        (Filter(layer="2", pattern="q_proj"), lambda name: name == "model.layers.2.self_attn.q_proj.weight"),
    ],
)
def test_a_filter_lists_what_it_says_and_counts_everything(session, states, chosen, keeps):
    whole = session.look(Choice(only_differences=False, top=100), quiet).document
    document = session.look(Choice(shown=chosen, only_differences=False, top=100), quiet).document
    assert sorted(listed(whole)) == sorted(states[0])
    assert sorted(listed(document)) == sorted(filter(keeps, states[0]))
    assert facts_of(document) == facts_of(whole)
    said = next(block for block in next(s for s in document.sections if s.key == "tensors").blocks[1:])
    assert said.said["kept"] == len(listed(document))
    assert said.said["total"] == len(states[0])


def test_only_differences_leaves_out_equal_tensors(session, states):
    document = session.look(Choice(top=100), quiet).document
    changed = [name for name in states[0] if not np.array_equal(states[0][name], states[1][name])]
    assert sorted(listed(document)) == sorted(changed)


def test_roles_and_layers_on_offer_are_those_of_the_checkpoints(session):
    assert session.layers == ("0", "1", "2", OUTSIDE)
    assert {"q", "k", "v", "embedding"} <= set(session.roles)
    for role in session.roles:
        assert listed(session.look(Choice(shown=Filter(role=role), only_differences=False, top=100), quiet).document)


def test_charts_draw_what_the_filter_keeps_and_say_so(session):
    choice = Choice(frozenset({"include-charts"}), shown=Filter(pattern="layers.0.self_attn"))
    charts = session.look(choice, quiet).charts
    chart = charts["change_by_layer"]
    assert {str(x) for x in chart.curves[0].x} == {f"model.layers.0.self_attn.{k}_proj" for k in "qkvo"}
    assert chart.title.endswith("(filtered)")
    assert all("layers.0.self_attn" in key for key in charts if key.startswith("distribution:"))


def test_a_hidden_chart_leaves_the_view_but_stays_on_offer(session):
    flags = frozenset({"include-charts"})
    every = session.look(Choice(flags), quiet)
    some = session.look(Choice(flags, hidden=frozenset(every.charts) - {"change_by_size"}), quiet)
    assert [chart.key for chart in some.document.charts()] == ["change_by_size"]
    assert set(some.charts) == set(every.charts)
    none = session.look(Choice(flags, hidden=frozenset(every.charts)), quiet)
    assert not [section for section in none.document.sections if section.key == "charts"]


def test_without_charts_none_is_made(session):
    assert session.look(Choice(frozenset({"change-summary"})), quiet).charts == {}


def test_a_stop_keeps_what_was_found_out(session):
    done = []

    def stop_at_the_second(stage, at, total):
        if stage != (done or [stage])[0]:
            raise Stopped
        done[:] = [stage]

    flags = frozenset({"embedding-analysis", "attention-analysis", "similarity-matrix"})
    with pytest.raises(Stopped):
        session.look(Choice(flags), stop_at_the_second)
    assert session.pair.run.tick is None
    assert set(session.look(Choice(flags), quiet).comparison.report.results) == flags


def test_files_that_have_not_changed_are_not_read_again(session, files):
    pair = session.pair
    assert session.open(files, Choice(), quiet) is False
    assert session.pair is pair
    os.utime(files[1], ns=(1, 1))
    assert session.open(files, Choice(), quiet) is True
    assert session.pair is not pair
    assert session.open(files[::-1], Choice(), quiet) is True


def test_live_objects_are_read_again():
    state = {"w": np.zeros(4, np.float32)}
    session = Session(request_of((), {}), lambda text: ({"w": np.ones(4, np.float32)} if text == "b" else state, text))
    assert session.open(("a", "b"), Choice(), quiet)
    state["w"] = np.ones(4, np.float32)
    assert session.open(("a", "b"), Choice(), quiet)
    assert session.look(Choice(), quiet).comparison.report.change.is_equal


@pytest.mark.parametrize(
    ("texts", "said"), [(("", "b"), "Choose a checkpoint for A"), ((" ", ""), "Choose a checkpoint for A and B")]
)
def test_a_missing_source_is_asked_for(texts, said):
    with pytest.raises(ArgumentError, match=said):
        Session(request_of((), {}), lambda text: (text, "")).open(texts, Choice(), quiet)


def test_nothing_can_be_looked_at_before_it_is_open():
    with pytest.raises(ArgumentError, match="press Run"):
        Session(request_of((), {}), lambda text: (text, "")).look(Choice(), quiet)


def test_a_broken_pattern_is_refused(session):
    with pytest.raises(ArgumentError, match=r"'mlp\[' is no regular expression"):
        session.look(Choice(shown=Filter(pattern="mlp[")), quiet)


def test_folders_of_several_are_refused(tmp_path):
    for side in "ab":
        for name in ("one", "two"):
            (tmp_path / side / name).mkdir(parents=True)
            save_file({"w": np.ones(3, np.float32)}, tmp_path / side / name / "model.safetensors")
    session = Session(request_of((), {}), lambda text: (text, ""))
    with pytest.raises(ArgumentError, match="folders of several"):
        session.open((str(tmp_path / "a"), str(tmp_path / "b")), Choice(), quiet)


def test_recent_sources_are_few():
    recent = Recent()
    for at in range(2 * MOST):
        recent.add(f"{at}.pt")
    assert len(recent.sources) == MOST
    assert recent.sources[0] == f"{2 * MOST - 1}.pt"
