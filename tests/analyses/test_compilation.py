"""The report as a whole: its counts are those of what it shows, and what it writes is what it shows."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from diffai_jupyter.analyses import all_analyses, findings
from diffai_jupyter.cli import main
from diffai_jupyter.comparison import Comparison, compare
from diffai_jupyter.errors import SettingError, SourceError
from diffai_jupyter.report.request import SUMMARY_REPORT

FLAG = "generate-report"


def state(seed: int = 0) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    return {f"layers.{i}.fc.weight": draw.normal(size=(24, 24)).astype("f4") for i in range(3)}


def broken() -> dict[str, np.ndarray]:
    after = {name: values * np.float32(1.1) for name, values in state().items()}
    after["layers.1.fc.weight"][2, 3] = np.nan
    after["layers.9.fc.weight"] = np.ones((4, 4), "f4")
    return after


def section(found: Comparison) -> str:
    return found.to_markdown().split("## Generate report", 1)[1].split("\n## ", 1)[0]


@pytest.mark.parametrize("b", [state(), broken()], ids=["equal", "broken"])
def test_the_counts_are_those_of_the_lists(b: dict[str, np.ndarray]) -> None:
    found = compare(state(), b, generate_report=True)
    values, text = found[FLAG].values, section(found)
    end = "Recommendations" if "**Recommendations**" in text else "No action"
    listed = text.split("### Findings", 1)[1].split(end)[0]
    marks = re.findall(r"^\*\*(?:CRITICAL|WARNING|NOTICE|INFO)[:.]", listed, re.MULTILINE)
    assert values["findings"].value == len(marks)
    rows = re.findall(r"^\|\s*\d+ \|", text, re.MULTILINE)
    assert values["recommendations"].value == len(rows)


def test_what_is_wrong_is_among_the_findings() -> None:
    quiet, loud = compare(state(), state(), generate_report=True), compare(state(), broken(), generate_report=True)
    assert loud[FLAG].values["findings"].value > quiet[FLAG].values["findings"].value
    text = section(loud)
    assert "layers.1.fc.weight` holds 1 NaN" in text
    assert "differ in 1 structural point" in text


def test_the_confidence_is_the_mean_weight_of_the_evidence() -> None:
    found = compare(state(), broken(), generate_report=True, report_type="summary")
    weights = {"measured": 1.0, "reported": 0.95, "derived": 0.9, "unknown": 0.0}
    data = json.loads(found.to_json())["results"]
    values = [value for flag, result in data.items() if flag != FLAG for value in result["values"].values()]
    each = [v["confidence"] if v["evidence"] == "estimated" else weights[v["evidence"]] for v in values]
    assert found[FLAG].values["confidence"].value == pytest.approx(sum(each) / len(each))


def test_each_type_runs_its_analyses() -> None:
    built = {flag for flag in SUMMARY_REPORT if flag in all_analyses()}
    assert set(compare(state(), broken(), generate_report=True, report_type="summary").report.results) == {*built, FLAG}
    whole = compare(state(), broken(), generate_report=True)
    assert set(whole.report.results) >= set(all_analyses()) - {"include-charts", "markdown-output"}
    assert 'type="comprehensive"' in whole.to_text()
    technical = compare(state(), broken(), generate_report=True, report_type="technical").to_text()
    assert 'type="technical"' in technical
    assert all(technical.count(name) > whole.to_text().count(name) for name in state())
    with pytest.raises(SettingError, match="comprehensive, summary, technical"):
        compare(state(), state(), generate_report=True, report_type="long")


def test_a_path_gets_three_files_that_hold_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, arrays in (("a", state()), ("b", broken())):
        np.savez(tmp_path / f"{name}.npz", **arrays)
    words = [str(tmp_path / "a.npz"), str(tmp_path / "b.npz"), "--report-type", "summary"]
    assert main([*words, "--generate-report"]) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "b.npz"]
    line = re.search("^generate_report: .*$", capsys.readouterr().out, re.MULTILINE)
    assert main([*words, f"--generate-report={tmp_path / 'out'}", "-q"]) == 1
    written = {path.name: path.read_text("utf-8") for path in (tmp_path / "out").iterdir()}
    assert sorted(written) == ["report.html", "report.json", "report.md"]
    assert line is not None
    assert line.group() in written["report.md"]
    assert json.loads(written["report.json"])["results"][FLAG]["line"] == line.group()
    assert "findings" in written["report.html"]
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    main([*words, f"--generate-report={tmp_path / 'out'}", "-q"])
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(SourceError, match="Choose a path that can be written"):
        compare(state(), state(), generate_report=tmp_path / "out", report_type="summary")


def test_the_short_form_stays_within_60_lines() -> None:
    worst = compare(state(), broken(), all=True, brief=True, fail_on="nan>0, rel_change>0.01")
    for text in (worst.to_markdown(), worst.to_text()):
        assert len(text.splitlines()) <= 60
        assert text.count("The gate fails") == 2
        assert "anomaly_detection: type=nan_inf_values" in text
        assert "NONFINITE: B has 1 NaN" in text
    assert compare(state(), state(), brief=True).to_text().count("\n") < 5


def test_a_finding_that_two_analyses_share_is_one() -> None:
    report = compare(state(), broken(), anomaly_detection=True, change_summary=True).report
    once = findings.findings_of(report)
    found = report.results["anomaly-detection"].findings
    shared = {**report.results, "change-summary": replace(report.results["change-summary"], findings=found)}
    items = findings.findings_of(replace(report, results=shared))
    assert len(items) == len(once)
    assert "anomaly detection, change summary" in {item.title for item in items}
