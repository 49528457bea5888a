"""The 28 lines, exactly: one regular expression for each flag."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest
from bank import BANK, pair_called

from diffai_jupyter.analyses import all_analyses
from diffai_jupyter.comparison import Comparison
from diffai_jupyter.report.request import request_of

FLAGS = tuple(all_analyses())

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
            ("compression", r"-?\d+(?:\.\d+(?:e-\d\d)?)?%"), ("speedup", r"\d+(?:\.\d+(?:e-\d\d)?)?x"),
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


@pytest.mark.parametrize("flag", FLAGS)
def test_line_has_the_exact_form(flag):
    pattern = line_pattern(flag)
    for name in BANK:
        comparison = Comparison(pair_called(name), request_of((flag,), {}))
        line = all_analyses()[flag].line(comparison[flag])
        assert pattern.fullmatch(line), (name, line)
        assert line in comparison.to_text().splitlines(), (name, line)


@pytest.mark.parametrize(
    ("flag", "line"),
    [
        ("learning-progress", "+ learning_progress: trend=improving, magnitude=0.0543, speed=0.80"),
        (
            "anomaly-detection",
            "[CRITICAL] anomaly_detection: type=nan_inf_values, severity=critical, affected=2 layers",
        ),
        (
            "architecture-comparison",
            "architecture_comparison: type1=cnn, type2=unknown, depth=50→24, differences=15",
        ),
        ("memory-analysis", "memory_analysis: delta=+2.7MB, gpu_est=4.5MB, efficiency=0.25"),
        (
            "alert-on-degradation",
            "[ALERT] alert_on_degradation: triggered=true, type=memory, threshold_exceeded=inf",
        ),
        (
            "include-charts",
            'include_charts: types=["histogram", "scatter"], data_points=1024, complexity=low',
        ),
        ("markdown-output", "markdown_output: sections=8, tables=3, charts=2, length=2456 chars"),
        (
            "change-summary",
            "change_summary: layers_changed=15, magnitude=unknown, patterns=3, most_changed=5",
        ),
    ],
)
def test_patterns_of_lines_accept_the_examples_and_refuse_others(flag, line):
    assert line_pattern(flag).fullmatch(line)
    for wrong in (
        line + " ",
        line.replace("=", ": ", 1),
        "x" + line,
        line.replace(", ", "; ", 1),
        line.upper(),
    ):
        assert not line_pattern(flag).fullmatch(wrong)


def test_there_is_a_pattern_for_every_promised_line():
    assert len(LINES) == 28
    assert set(FLAGS) <= set(LINES)
    for flag, declared in all_analyses().items():
        assert [field.key for field in declared.fields] == [key for key, _ in LINES[flag][2]]
