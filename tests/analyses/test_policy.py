"""Readiness and risk: what the codes add up to, under the policy as it is and as a user may set it."""

from __future__ import annotations

import itertools
from functools import cache

import pytest
from bank import BANK, noised, pair_called
from code_pairs import CASES, CONFIG, case, metrics, network, packed, pair, stored_as, tokenizers, tuned

from diffai_jupyter.analyses import all_analyses
from diffai_jupyter.analyses.limits import policy_thresholds
from diffai_jupyter.contract.blocks import Severity, Table
from diffai_jupyter.contract.result import Result
from diffai_jupyter.evidence import Evidence
from diffai_jupyter.facts.policy.table import CODES, SEVERITIES, Code
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.wording import say

READINESS, RISK = all_analyses()["deployment-readiness"], all_analyses()["risk-assessment"]
BLOCKERS = {"NONFINITE", "UNLOADABLE", "METRIC_CRIT"}


def run(flag: str, made: Pair, **levels: float) -> Result:
    declared = all_analyses()[flag]
    return declared.run(made, {t.key: t.default for t in declared.thresholds} | levels)


def answer(flag: str, made: Pair, **levels: float) -> tuple[object, ...]:
    return tuple(value.value for value in run(flag, made, **levels).values.values())


def table(result: Result) -> Table:
    return next(block for block in result.blocks if isinstance(block, Table))


@cache
def copy_called(kind: str) -> Pair:
    a = network()
    f2 = {name: values.astype("f2") for name, values in a.items()}
    quantized = {"8 bits": (127, 8), "4 bits": (7, 4), "3 bits": (4, 3), "2 bits": (2, 2)}
    if kind in quantized:
        return pair(a, packed(a, *quantized[kind]))
    return {
        "identical": lambda: pair(a, dict(a)),
        "renamed": lambda: pair(a, {name.replace("model.layers", "transformer.h"): v for name, v in a.items()}),
        "exact upcast": lambda: pair(f2, {name: values.astype("f4") for name, values in f2.items()}),
        "lossy cast": lambda: pair(a, f2),
        "trained": lambda: case("METRIC_UNKNOWN"),
    }[kind]()


# What the documents promise.


@pytest.mark.parametrize(("kind", "expected"), [
    ("identical", (1.00, "full", "low")), ("renamed", (1.00, "full", "low")), ("exact upcast", (0.97, "full", "low")),
    ("lossy cast", (0.92, "full", "low")), ("8 bits", (0.92, "full", "low")), ("4 bits", (0.72, "gradual", "medium")),
    ("3 bits", (0.62, "gradual", "medium")), ("2 bits", (0.47, "hold", "high")),
    ("trained", (0.75, "gradual", "medium")),
])  # fmt: skip
def test_copies_and_a_bare_fine_tune(kind, expected):
    result = run("deployment-readiness", copy_called(kind))
    readiness, *words = (value.value for value in result.values.values())
    assert readiness == pytest.approx(expected[0], abs=1e-12)
    assert tuple(words) == expected[1:]
    assert result.badge == str(expected[1]).upper()


@pytest.mark.parametrize("code", sorted(BLOCKERS))
def test_a_blocker_holds_back_whatever_else_is_known(code):
    result = run("deployment-readiness", case(code))
    assert (result.badge, result.values["strategy"].value, result.values["risk"].value) == ("HOLD", "hold", "high")
    assert result.values["readiness"].value <= 0.30
    assert run("risk-assessment", case(code)).values["risk"].value == "critical"


def test_twelve_percent_worse_is_a_blocker_and_six_percent_none():
    answers = [answer("deployment-readiness", metrics({"f1": 0.90}, {"f1": f1})) for f1 in (0.79, 0.846, 0.91)]
    assert answers == [(0.30, "hold", "high"), (0.80, "gradual", "medium"), (1.00, "full", "low")]


@pytest.mark.parametrize("code", CASES)
def test_penalties_shown_add_up_to_what_is_missing(code):
    made = case(code)
    readiness = answer("deployment-readiness", made)[0]
    found = table(run("deployment-readiness", made))
    shown = {row[0]: row for row in found.rows}
    assert shown.pop("sum")[3] == pytest.approx(1 - readiness, abs=1e-9)
    assert sum(row[3] for row in shown.values()) == pytest.approx(1 - readiness, abs=1e-9)
    row = shown[code]
    assert row[1] in SEVERITIES
    assert row[2] in {word.value for word in Evidence}
    assert row[3] == pytest.approx(CODES[code].penalty)


@pytest.mark.parametrize("code", CASES)
def test_readiness_without_a_code_is_what_is_left_when_it_weighs_nothing(code):
    made = case(code)
    row = next(row for row in table(run("deployment-readiness", made)).rows if row[0] == code)
    others = {f"{code}.penalty": 0.0, f"{code}.blocker": 0}
    assert row[4] == pytest.approx(answer("deployment-readiness", made, **others)[0])


def test_reaching_a_cut_is_enough_though_sums_round():
    # 1 - 0.05 - 0.10 is a little below 0.85 in floating point.
    levels = {"METRIC_UNKNOWN.penalty": 0.10, "PICKLE.penalty": 0.05}
    assert answer("deployment-readiness", case("PICKLE"), **levels) == (0.85, "full", "low")


# The policy.


def test_defaults_force_what_the_policy_is_for():
    assert {name for name, code in CODES.items() if code.is_blocker} == BLOCKERS
    assert CODES["METRIC_UNKNOWN"].penalty == 0.25
    for code in CODES.values():
        assert 0 < code.penalty <= 1
        assert 0 < code.points <= 100
        assert code.severity in SEVERITIES[1:]
        assert code.mitigation.endswith(".")
        assert code.condition[0].islower() or code.condition[0].isupper()


MOVED = ("readiness", "strategy", "risk", "factors", "rollback")


@pytest.mark.parametrize("code", CASES)
def test_editing_the_policy_moves_verdicts_and_no_measured_number(code):
    made = case(code)
    usual = run("risk-assessment", made)
    edited = run("risk-assessment", made, **{f"{code}.penalty": 1.0, f"{code}.points": 100.0})
    assert edited.values["risk"].value == "critical"
    assert edited.values["readiness"].value == 0
    for key in ("factors", "rollback"):
        assert edited.values[key] == usual.values[key]
    harmless = {f"{other}.{part}": 0.0 for other in CODES for part in ("penalty", "points", "blocker")}
    assert answer("risk-assessment", made, **harmless)[:2] == ("low", 1.0)


@pytest.mark.parametrize("code", CASES)
def test_one_policy_for_all(code):
    made = case(code)
    assert run("risk-assessment", made).values["readiness"] == run("deployment-readiness", made).values["readiness"]
    assert answer("risk-assessment", made, **{f"{code}.blocker": 1})[0] == "critical"
    assert answer("deployment-readiness", made, **{f"{code}.blocker": 1})[1] == "hold"


@pytest.mark.parametrize("code", CODES.values(), ids=list(CODES))
def test_thresholds_say_which_code_they_belong_to(code: Code):
    parts = ("penalty", "points", "severity", "blocker")
    mine = [t for t in policy_thresholds(*parts) if t.key.startswith(code.name + ".")]
    assert [t.key.rpartition(".")[2] for t in mine] == list(parts)
    for threshold in mine:
        assert threshold.is_shared
        assert code.name in threshold.basis
        assert code.condition in threshold.basis
    assert mine[2].words == SEVERITIES
    assert mine[3].words == ("false", "true")


# Evidence.


@pytest.mark.parametrize(("code", "evidence"), [
    ("NONFINITE", Evidence.DERIVED), ("METRIC_UNKNOWN", Evidence.DERIVED), ("LATENCY", Evidence.ESTIMATED),
])  # fmt: skip
def test_verdict_is_as_well_known_as_the_weakest_code(code, evidence):
    for value in run("deployment-readiness", case(code)).values.values():
        assert value.evidence is evidence
        assert value.assumption
        assert evidence is not Evidence.ESTIMATED or 0 < (value.confidence or 0) < 1


# Risk.


@pytest.mark.parametrize(("kind", "expected"), [
    ("identical", ("low", 1.00, 0, "easy")), ("renamed", ("low", 1.00, 0, "easy")),
    ("exact upcast", ("low", 0.97, 1, "moderate")), ("lossy cast", ("low", 0.92, 2, "moderate")),
    ("4 bits", ("medium", 0.72, 2, "moderate")), ("2 bits", ("high", 0.47, 3, "moderate")),
    ("trained", ("medium", 0.75, 1, "easy")),
])  # fmt: skip
def test_risk_of_copies(kind, expected):
    assert answer("risk-assessment", copy_called(kind)) == pytest.approx(expected)


@pytest.mark.parametrize(("points", "risk", "badge"), [
    (14.9, "low", ""), (15, "medium", ""), (39.9, "medium", ""), (40, "high", "HIGH"), (69.9, "high", "HIGH"),
    (70, "critical", "CRITICAL"),
])  # fmt: skip
def test_cuts_of_the_points(points, risk, badge):
    result = run("risk-assessment", case("METRIC_UNKNOWN"), **{"METRIC_UNKNOWN.points": points})
    assert (result.values["risk"].value, result.badge) == (risk, badge)


def test_factors_come_with_most_points_first_and_what_to_do():
    found = table(run("risk-assessment", case("SATURATION")))
    points = [row[1] for row in found.rows]
    assert points == sorted(points, reverse=True)
    assert all(row[5] == CODES[str(row[0])].mitigation for row in found.rows)
    assert all(len(line) <= 100 for line in found.lines)


@pytest.mark.parametrize(("made", "word"), [
    (lambda: case("METRIC_UNKNOWN"), "easy"), (lambda: stored_as("f2"), "moderate"),
    (lambda: tokenizers("one", "other"), "moderate"),
    (lambda: case("INTERFACE"), "difficult"), (lambda: case("ARCH"), "difficult"),
    (lambda: tuned({"format": "safetensors"}, {"format": "gguf"}), "difficult"),
    (lambda: tuned({"format": "pytorch"}, {"format": "safetensors"}), "easy"), (lambda: case("CONFIG"), "easy"),
    (lambda: case("NONFINITE"), "easy"),
])  # fmt: skip
def test_rollback(made, word):
    assert answer("risk-assessment", made())[3] == word


# What a reader sees.


def test_what_would_raise_the_score_is_said():
    result = run("deployment-readiness", case("METRIC_UNKNOWN"))
    assert table(result).rows[0] == ("METRIC_UNKNOWN", "medium", "derived", 0.25, 1.0)
    finding = result.findings[0]
    assert finding.severity is Severity.NOTICE
    for flag in ("--metrics-a", "--metrics-b", "--evaluate", "--history"):
        assert flag in finding.action
    assert "no metric is known" in result.meaning.template


def said_of(made: Pair) -> str:
    meaning = run("deployment-readiness", made).meaning
    return say(meaning.template, meaning.said)


def test_why_nothing_speaks_against_it_is_said():
    assert said_of(pair_called("equal")).startswith("B computes what A computes")
    assert said_of(metrics({"acc": 0.8}, {"acc": 0.9})) == (
        "No reason speaks against replacing A by B: acc, the primary metric, is not worse beyond a limit."
    )
    further = metrics({"acc": 0.8, "f1": 0.9}, {"acc": 0.9, "f1": 0.6})
    assert said_of(further) == "Replace A by B step by step: 1 reason took 0.20 from a readiness of 1."


def test_blockers_are_named_first():
    result = run("deployment-readiness", case("NONFINITE"))
    assert result.findings[0].severity is Severity.CRITICAL
    assert say(result.meaning.template, result.meaning.said) == "Do not replace A by B: NONFINITE alone forbids it."


@pytest.mark.parametrize("name", BANK)
def test_verdicts_agree_on_every_pair(name):
    readiness, strategy, risk = answer("deployment-readiness", pair_called(name))
    assert strategy == ("full" if readiness >= 0.85 else "gradual" if readiness >= 0.60 else "hold")
    assert risk == {"full": "low", "gradual": "medium", "hold": "high"}[strategy]
    factors = answer("risk-assessment", pair_called(name))[2]
    assert factors == len(run("deployment-readiness", pair_called(name)).findings)


def test_every_two_codes_add_up():
    for one, other in itertools.combinations(("PICKLE", "DTYPE", "CONFIG"), 2):
        assert CODES[one].penalty + CODES[other].penalty == pytest.approx(
            1 - 0.25 - answer("deployment-readiness", _both(one, other))[0]
        )


def _both(one: str, other: str) -> Pair:
    a, wanted = network(), {one, other}
    b = noised(a, 0.005)
    if "DTYPE" in wanted:
        b["model.norm.weight"] = b["model.norm.weight"].astype("f8")
    said = {"format": "pytorch"} if "PICKLE" in wanted else {}
    config = {"hidden_act": "gelu"} if "CONFIG" in wanted else {}
    return pair(a, b, {"config": CONFIG}, {"config": {**CONFIG, **config}, **said})
