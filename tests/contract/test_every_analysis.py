"""The battery: what holds for every analysis on every pair of the bank."""

from __future__ import annotations

import dataclasses
import functools
import html
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import mistune
import numpy as np
import pytest
import yaml
from bank import BANK, bytes_of, pair_from
from hypothesis import given, settings
from hypothesis import strategies as st

from diffai_jupyter.analyses import all_analyses
from diffai_jupyter.comparison import Comparison, compare
from diffai_jupyter.contract.blocks import Heading, Sentence, Severity
from diffai_jupyter.contract.declaration import Analysis, Field, Group, Reads, Threshold, Thresholds, analysis
from diffai_jupyter.contract.result import Result
from diffai_jupyter.errors import SettingError
from diffai_jupyter.evidence import REASONS, Evidence, Value, measured
from diffai_jupyter.report.request import request_of
from diffai_jupyter.scan.pair import Pair

FLAGS = tuple(all_analyses())
COUNTS = ("count", "layers", "tensors")
COMPANIONS: Mapping[str, Mapping[str, object]] = {
    "markdown-output": {"include_charts": True, "change_summary": True, "markdown_output": "report.md"}
}
"""What else is asked for, so that there is something to count."""

N2, N4, N6 = (rf"-?\d+(?:\.\d{{{n}}}|\.\d{{4}}e[+-]\d\d)" for n in (2, 4, 6))
PERCENT = r"-?\d+(?:\.\d|\.\d{4}e[+-]\d\d)%"
SIGNED = r"[+-]\d+(?:\.\d|\.\d{4}e[+-]\d\d)%"
COUNT = r"\d+"
SEVERITIES = "none|low|medium|high|critical"

LINES: Mapping[str, tuple[str, str, tuple[tuple[str, str], ...]]] = {
    "learning-progress": (r"\+ ", "", (("trend", "improving|degrading|stable"), ("magnitude", N4), ("speed", N2))),
    "convergence-analysis": (
        r"\+ ", "",
        (("status", "converged|diverging|oscillating|stable"), ("stability", N4), ("action", '"[^"]+"')),
    ),
    "anomaly-detection": (
        r"(?:\[(?:CRITICAL|WARNING)\] )?", " layers",
        (
            ("type", "gradient_explosion|gradient_vanishing|weight_distribution_shift|nan_inf_values|none"),
            ("severity", "none|warning|critical"), ("affected", COUNT),
        ),
    ),
    "gradient-analysis": ("", "", (("flow_health", "healthy|exploding|dead|diminishing"), ("norm", N6), ("ratio", N4))),
    "architecture-comparison": (
        "", "",
        (
            ("type1", "cnn|rnn|transformer|mlp|ssm|hybrid"), ("type2", "cnn|rnn|transformer|mlp|ssm|hybrid"),
            ("depth", r"(?:\d+|unknown)→(?:\d+|unknown)"), ("differences", COUNT),
        ),
    ),
    "param-efficiency-analysis": (
        "", "", (("efficiency_ratio", N4), ("utilization", N2), ("pruning_potential", N2)),
    ),
    "memory-analysis": (
        "", "",
        (("delta", SIGNED.replace("%", "MB")), ("gpu_est", PERCENT.replace("%", "MB")), ("efficiency", N2)),
    ),
    "inference-speed-estimate": (
        "", "", (("speed_ratio", N2 + "x"), ("flops_ratio", N2 + "x"), ("bottlenecks", COUNT)),
    ),
    "deployment-readiness": (
        r"(?:\[(?:HOLD|GRADUAL|FULL)\] )?", "",
        (("readiness", N2), ("strategy", "full|gradual|hold"), ("risk", "low|medium|high")),
    ),
    "regression-test": (
        r"(?:\[(?:CRITICAL|HIGH|MEDIUM|LOW)\] )?", " checks",
        (("passed", "true|false"), ("degradation", PERCENT), ("severity", SEVERITIES), ("failed", COUNT)),
    ),
    "risk-assessment": (
        r"(?:\[(?:CRITICAL|HIGH)\] )?", "",
        (
            ("risk", "low|medium|high|critical"), ("readiness", N2), ("factors", COUNT),
            ("rollback", "easy|moderate|difficult"),
        ),
    ),
    "hyperparameter-impact": ("", "", (("lr_impact", N4), ("batch_impact", N4), ("convergence", N4))),
    "learning-rate-analysis": ("", "", (("current_lr", N6), ("schedule", r"[\w-]+"), ("effectiveness", N4))),
    "alert-on-degradation": (
        r"(?:\[ALERT\] )?", "",
        (
            ("triggered", "true|false"), ("type", "performance|memory|stability|none"),
            ("threshold_exceeded", rf"(?:{N2}x|inf)"),
        ),
    ),
    "performance-impact-estimate": (
        "", "", (("latency_change", SIGNED), ("throughput_change", SIGNED), ("confidence", N2)),
    ),
    "generate-report": (
        "", "",
        (
            ("type", '"(?:comprehensive|summary|technical)"'), ("findings", COUNT), ("recommendations", COUNT),
            ("confidence", N2),
        ),
    ),
    "markdown-output": ("", " chars", (("sections", COUNT), ("tables", COUNT), ("charts", COUNT), ("length", COUNT))),
    "include-charts": (
        "", "",
        (
            ("types", r'\[(?:"(?:histogram|scatter|line|heatmap|bar)"(?:, (?=")|(?=\])))*\]'),
            ("data_points", COUNT), ("complexity", "low|medium|high"),
        ),
    ),
    "review-friendly": (
        "", "",
        (
            ("impact", "low|medium|high|critical"), ("approval", "recommended|conditional|not_recommended"),
            ("key_changes", COUNT),
        ),
    ),
    "embedding-analysis": (
        "", "",
        (
            ("dim_change", r"(?:\d+|unknown)→(?:\d+|unknown)"), ("semantic_drift", N4),
            ("similarity_preservation", N4),
        ),
    ),
    "similarity-matrix": ("", "", (("matrix_dims", r"\d+x\d+"), ("clustering_coeff", N4), ("sparsity", N4))),
    "clustering-change": (
        "", "",
        (
            ("clusters", r"(?:\d+|unknown)→(?:\d+|unknown)"), ("stability", N4), ("migrated", COUNT), ("new", COUNT),
        ),
    ),
    "attention-analysis": ("", "", (("layers", COUNT), ("pattern_changes", COUNT), ("focus_shift", N4))),
    "head-importance": ("", "", (("important_heads", COUNT), ("prunable_heads", COUNT), ("specializations", COUNT))),
    "attention-pattern-diff": (
        "", "", (("pattern", r"\w+→\w+"), ("similarity", N4), ("span_change", N4)),
    ),
    "quantization-analysis": (
        "", "",
        (
            ("compression", PERCENT), ("speedup", r"\d+(?:\.\d|\.\d{4}e[+-]\d\d)x"),
            ("precision_loss", r"[\d.]+(?:e[+-]\d\d)?%"), ("suitability", "excellent|good|fair|poor"),
        ),
    ),
    "sort-by-change-magnitude": ("", "", (("sorted", COUNT), ("top", r"[^\x00-\x1f\x7f]+"), ("top_change", N4))),
    "change-summary": (
        "", "", (("layers_changed", COUNT), ("magnitude", N4), ("patterns", COUNT), ("most_changed", COUNT)),
    ),
}  # fmt: skip
"""Flag to prefix, unit of the last value, and the pattern of each value; any value may be ``unknown``."""


def line_pattern(flag: str) -> re.Pattern[str]:
    prefix, unit, fields = LINES[flag]
    values = [f"{key}=(?:{value}|unknown)" for key, value in fields]
    if unit:
        key, value = fields[-1]
        values[-1] = f"{key}=(?:(?:{value}){unit}|unknown)"
    return re.compile(f"{prefix}{flag.replace('-', '_')}: {', '.join(values)}")


@functools.cache
def pair_called(name: str) -> Pair:
    """Pair a pair of the bank once; the facts that one analysis asks for serve the next."""
    return pair_from(BANK[name]())


@functools.cache
def found(flag: str, name: str, companions: bool = False) -> Comparison:
    options = COMPANIONS.get(flag, {}) if companions else {}
    return Comparison(pair_called(name), request_of((flag,), options))


def result_of(flag: str, name: str) -> Result:
    return found(flag, name, companions=True)[flag]


each_flag = pytest.mark.parametrize("flag", FLAGS)
each_pair = pytest.mark.parametrize("name", BANK)


# What a result may be. Each check returns sentences about what is wrong, so that it can be tried on analyses
# that are wrong on purpose.


def problems_of(declared: Analysis[Any], result: Result) -> Iterator[str]:
    if list(result.values) != [field.key for field in declared.fields]:
        yield f"keys {list(result.values)} are not the declared ones"
        return
    for field in declared.fields:
        value = result.values[field.key]
        if value.evidence.rank < field.best.rank:
            yield f"{field.key} is {value.evidence}, declared {field.best} at best"
        if (value.evidence is Evidence.UNKNOWN) != (value.reason in REASONS):
            yield f"{field.key} is {value.evidence} with reason {value.reason}"
        if not value.is_known and value.value is not None:
            yield f"{field.key} is unknown and has a value"
        if field.words and value.is_known and value.value not in field.words:
            yield f"{field.key} says {value.value!r}, which is not declared"
        if value.evidence is Evidence.DERIVED and not value.assumption:
            yield f"{field.key} is derived from no named assumption"
        if value.evidence is Evidence.ESTIMATED and not 0 < (value.confidence or 0) < 1:
            yield f"{field.key} is estimated without a confidence"
        number = value.value if isinstance(value.value, float) else 0.0
        if math.isnan(number) or (math.isinf(number) and not field.allows_infinite and "inf" not in field.definition):
            yield f"{field.key} is {number}"


def constant_fields(declared: Analysis[Any], results: Callable[[str], Result]) -> list[str]:
    """Return the measured fields that say the same about every pair."""
    values: dict[str, set[str]] = {field.key: set() for field in declared.fields if field.best is Evidence.MEASURED}
    for name in BANK:
        for key, seen in values.items():
            value = results(name).values[key]
            if value.is_known:
                seen.add(repr(value.value))
    return [key for key, seen in values.items() if len(seen) < 2]


def alarms_of(result: Result) -> list[str]:
    return [f.template for f in result.findings if f.severity.rank >= Severity.WARNING.rank]


@each_pair
@each_flag
def test_result_is_what_was_declared(flag, name):
    assert not list(problems_of(all_analyses()[flag], result_of(flag, name)))


@each_flag
def test_measured_fields_depend_on_the_files(flag):
    assert not constant_fields(all_analyses()[flag], lambda name: result_of(flag, name))


@each_pair
@each_flag
def test_line_has_the_exact_form(flag, name):
    line = all_analyses()[flag].line(result_of(flag, name))
    assert line_pattern(flag).fullmatch(line), line
    assert line in found(flag, name, companions=True).to_text().splitlines()


@each_flag
def test_equal_pair_is_no_change_and_no_alarm(flag):
    comparison = found(flag, "equal")
    assert comparison.exit_code == 0
    assert not alarms_of(comparison[flag])
    assert not comparison[flag].badge
    assert comparison.report.change.kind in ("identical", "headers only")


@each_pair
def test_same_input_gives_the_same_bytes_and_stays_as_it_was(name):
    answers = []
    for _ in range(2):
        sides = BANK[name]()
        before = bytes_of(sides)
        comparison = Comparison(pair_from(sides), request_of(("all",), {"stats": True}))
        answers.append((comparison.to_json(), comparison.to_text(), comparison.to_html(), comparison.to_markdown()))
        assert bytes_of(sides) == before
    assert answers[0] == answers[1]


def headings(comparison: Comparison) -> list[str]:
    return [
        block.text
        for section in comparison.document().sections
        for block in section.blocks
        if isinstance(block, Heading)
    ]


def as_html(markdown: str) -> str:
    """Read Markdown with a parser that is not ours."""
    parse = mistune.create_markdown(escape=False, plugins=["table", "strikethrough", "math"])
    return str(parse(markdown))


def titles(written: str) -> list[str]:
    found_titles = re.findall(r"<h[1-6][^>]*>(.*?)</h[1-6]>", written)
    return [html.unescape(re.sub(r"<[^>]+>", "", title)) for title in found_titles]


@each_pair
@each_flag
def test_every_renderer_draws_it(flag, name):
    comparison = found(flag, name)
    fragment, markdown, text = comparison.to_html(), comparison.to_markdown(), comparison.to_text()
    assert "<script" not in fragment.lower()
    expected = headings(comparison)
    assert titles(fragment)[1:] == expected
    lines = text.splitlines()
    assert [line for line in lines if line in expected] == expected
    # The section about the Markdown document is not in the document.
    shown = [title for title in expected if title != "Markdown output"]
    assert titles(as_html(markdown))[1:] == shown
    data = json.loads(comparison.to_json(), parse_constant=pytest.fail)
    assert list(data["results"]) == [flag]
    assert data["results"][flag]["line"] == all_analyses()[flag].line(comparison[flag])


@each_pair
def test_yaml_holds_the_same_data_as_json(name):
    comparison = Comparison(pair_called(name), request_of(("change-summary", "memory-analysis"), {}))
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    assert yaml.load(comparison.to_yaml(), loader) == json.loads(comparison.to_json())


@pytest.mark.parametrize("flag", [flag for flag in FLAGS if flag != "include-charts"])
def test_page_is_one_static_file(flag):
    page = found(flag, "hostile names").to_page()
    assert page.startswith("<!DOCTYPE html>")
    assert "<script" not in page.lower()
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", page)


def test_page_with_charts_is_one_static_file():
    comparison = found("include-charts", "low rank")
    page = comparison.to_page()
    assert "<script" not in page.lower()
    assert page.count('src="data:image/png;base64,') == len(comparison.document().charts()) > 0


@pytest.mark.parametrize("flag", [None, *FLAGS])
def test_names_from_files_come_out_escaped(flag):
    pair = pair_called("hostile names")
    options = {"top": 50, "stats": True, "show_pairing": True}
    comparison = Comparison(pair, request_of(() if flag is None else (flag,), options))
    fragment, markdown, text = comparison.to_html(), comparison.to_markdown(), comparison.to_text()
    for written in (fragment, as_html(markdown), comparison.to_page() if flag != "include-charts" else ""):
        assert not re.search(r'<b>\||<i>|<em>|<a (?!href="#)|class=.math', re.sub(r"(?s)<style.*?</style>", "", written))
        assert "\x1b" not in written
        assert "\u202e" not in written
    assert "&lt;b&gt;|x" in fragment
    assert "<b>|x" in html.unescape(re.sub(r"<[^>]+>", "", as_html(markdown)))
    assert "<b>|x" in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert not re.search(r"[^>\w]\$y\$|\\\$y\\\$", re.sub(r"(?s)<(?:code|pre)\b.*?</(?:code|pre)>", "", fragment))
    for table in re.findall(r"(?s)<table>.*?</table>", as_html(markdown)):
        widths = {row.count("<t") - 1 for row in re.findall(r"(?s)<tr>.*?</tr>", table)}
        assert len(widths) == 1


# Thresholds.

THRESHOLDS = [
    pytest.param(flag, threshold, id=f"{flag}.{threshold.key}")
    for flag, declared in all_analyses().items()
    for threshold in declared.thresholds
]
WEIGHTS = {"w": np.ones((2, 2), "f4")}


@pytest.mark.parametrize(("flag", "threshold"), THRESHOLDS)
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_threshold_outside_its_range_is_refused(flag, threshold, data):
    below = st.floats(max_value=threshold.low, exclude_max=True)
    above = st.floats(min_value=threshold.high, exclude_min=True)
    value = data.draw(st.one_of(below, above, st.just(math.nan)))
    with pytest.raises(SettingError) as refused:
        compare(WEIGHTS, WEIGHTS, set=f"{flag}.{threshold.key}={value!r}")
    assert str(refused.value) == (
        f"The '{threshold.key}' threshold of --{flag} must be in [{threshold.low:g}, {threshold.high:g}] "
        f"{threshold.unit}. Got {value:g} from set=."
    )


@pytest.mark.parametrize(("flag", "threshold"), THRESHOLDS)
@given(data=st.data())
@settings(max_examples=10, deadline=None)
def test_threshold_inside_its_range_is_taken(flag, threshold, data):
    value = data.draw(st.floats(threshold.low, threshold.high))
    comparison = compare(WEIGHTS, WEIGHTS, set=f"{flag}.{threshold.key}={value!r}", **{flag.replace("-", "_"): True})
    settings_of = {setting.key: setting for setting in comparison.report.settings}
    assert settings_of[f"{flag}.{threshold.key}"].value == value
    assert settings_of[f"{flag}.{threshold.key}"].source == "set="


def with_threshold(flag: str, threshold: Threshold, value: float, name: str) -> Result:
    declared = all_analyses()[flag]
    levels = {other.key: other.default for other in declared.thresholds} | {threshold.key: value}
    return declared.run(pair_called(name), levels)


@each_pair
@pytest.mark.parametrize(("flag", "threshold"), THRESHOLDS)
def test_threshold_moves_verdicts_and_counts_only(flag, threshold, name):
    usual = with_threshold(flag, threshold, threshold.default, name)
    for value in (threshold.low, threshold.high):
        moved = with_threshold(flag, threshold, value, name)
        for field in all_analyses()[flag].fields:
            if not field.words and field.unit not in COUNTS:
                assert moved.values[field.key] == usual.values[field.key], field.key


@pytest.mark.parametrize(("flag", "threshold"), THRESHOLDS)
def test_threshold_does_something(flag, threshold):
    lowest = max(threshold.low, 1e-3) if threshold.key == "memory_limit_mb" else threshold.low
    assert any(
        with_threshold(flag, threshold, lowest, name) != with_threshold(flag, threshold, threshold.high, name)
        for name in BANK
    )


# The checks themselves can fail.


def planted(run: Callable[[Any, Thresholds], Result], best: Evidence = Evidence.MEASURED) -> Analysis[Any]:
    field = Field("accuracy_change", "Change of accuracy", "ratio", best, "planted", words=())
    declare = analysis(flag="planted", group=Group.MLOPS, reads=Reads.PASS, fields=(field,), references=("none",))
    return declare(run)


def saying(**values: Value) -> Result:
    return Result(values, Sentence("Planted."))


def test_planted_constant_is_caught():
    def constant(pair: Pair, thresholds: Thresholds) -> Result:
        """Say 1.2 whatever the files hold."""
        return saying(accuracy_change=measured(1.2, "nothing"))

    declared = planted(constant)
    assert constant_fields(declared, lambda name: declared.run(pair_called(name), {})) == ["accuracy_change"]


def test_planted_wrong_results_are_caught():
    def nothing(pair: Pair, thresholds: Thresholds) -> Result:
        """Return nothing."""
        return saying()

    good, declared = measured(1.0), planted(nothing)
    assert not list(problems_of(declared, saying(accuracy_change=good)))
    for wrong in (
        {}, {"accuracy": good}, {"accuracy_change": good, "more": good},
        {"accuracy_change": Value(math.nan, Evidence.MEASURED)},
        {"accuracy_change": Value(1.0, Evidence.DERIVED)}, {"accuracy_change": Value(1.0, Evidence.ESTIMATED)},
        {"accuracy_change": Value(1.0, Evidence.UNKNOWN, reason="NEEDS_LOSS")},
    ):  # fmt: skip
        assert list(problems_of(declared, saying(**wrong)))
    weaker = planted(nothing, Evidence.ESTIMATED)
    assert list(problems_of(weaker, saying(accuracy_change=good)))
    worded = dataclasses.replace(declared, fields=(dataclasses.replace(declared.fields[0], words=("good", "bad")),))
    assert list(problems_of(worded, saying(accuracy_change=measured("meh"))))


@pytest.mark.parametrize(
    ("flag", "line"),
    [
        ("learning-progress", "+ learning_progress: trend=improving, magnitude=0.0543, speed=0.80"),
        (
            "anomaly-detection",
            "[CRITICAL] anomaly_detection: type=nan_inf_values, severity=critical, affected=2 layers",
        ),
        ("architecture-comparison", "architecture_comparison: type1=cnn, type2=unknown, depth=50→24, differences=15"),
        ("memory-analysis", "memory_analysis: delta=+2.7MB, gpu_est=4.5MB, efficiency=0.25"),
        ("alert-on-degradation", "[ALERT] alert_on_degradation: triggered=true, type=memory, threshold_exceeded=inf"),
        ("include-charts", 'include_charts: types=["histogram", "scatter"], data_points=1024, complexity=low'),
        ("markdown-output", "markdown_output: sections=8, tables=3, charts=2, length=2456 chars"),
        ("change-summary", "change_summary: layers_changed=15, magnitude=unknown, patterns=3, most_changed=5"),
    ],
)
def test_patterns_of_lines_accept_the_examples_and_refuse_others(flag, line):
    assert line_pattern(flag).fullmatch(line)
    for wrong in (line + " ", line.replace("=", ": ", 1), "x" + line, line.replace(", ", "; ", 1), line.upper()):
        assert not line_pattern(flag).fullmatch(wrong)


def test_there_is_a_pattern_for_every_promised_line():
    assert len(LINES) == 28
    assert set(FLAGS) <= set(LINES)
    for flag, declared in all_analyses().items():
        assert [field.key for field in declared.fields] == [key for key, _ in LINES[flag][2]]
