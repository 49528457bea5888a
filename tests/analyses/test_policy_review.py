"""The summary for a reviewer: impact, approval, and a list that fits a comment."""

from __future__ import annotations

import numpy as np
import pytest
from bank import BANK, noised, pair_called
from code_pairs import CASES, CONFIG, UP, case, metrics, network, pair

from diffai_jupyter.analyses import all_analyses
from diffai_jupyter.contract.blocks import Table
from diffai_jupyter.contract.result import Result
from diffai_jupyter.evidence import Evidence
from diffai_jupyter.facts.change.changes import displacement
from diffai_jupyter.scan.pair import Pair

REVIEW, READINESS = all_analyses()["review-friendly"], all_analyses()["deployment-readiness"]
PLAIN = "METRIC_UNKNOWN"


def run(made: Pair, **levels: float) -> Result:
    return REVIEW.run(made, {t.key: t.default for t in REVIEW.thresholds} | levels)


def answer(result: Result) -> tuple[object, ...]:
    return tuple(value.value for value in result.values.values())


def bullets(result: Result) -> Table | None:
    return table(result, "Key changes")


def table(result: Result, title: str) -> Table | None:
    return next((block for block in result.blocks if isinstance(block, Table) and block.title == title), None)


def lines(result: Result) -> tuple[str, ...]:
    found = bullets(result)
    return found.lines if found is not None else ()


def test_equal_pair_has_no_impact_and_nothing_to_list():
    assert answer(run(pair_called("equal"))) == ("low", "recommended", 0)
    assert lines(run(pair_called("equal"))) == ()


def test_what_no_metric_leaves_open_is_said_with_what_settles_it():
    found = table(run(pair_called("moved")), "Not known")
    assert found is not None
    what, why, settled = found.rows[0]
    assert (what, "better" in str(why), "--metrics-a" in str(settled)) == ("metric", True, True)
    assert "tokenizer" not in str(found.rows)


def test_every_check_stands_in_one_row_with_its_outcome():
    made = case("NONFINITE")
    found = table(run(made), "Checks")
    assert found is not None
    counted = {str(outcome): (count, str(which).split("; ")) for outcome, count, which in found.rows}
    assert counted["fail"] == (1, ["finite values"])
    assert all(count == len(which) for count, which in counted.values())
    regression = all_analyses()["regression-test"]
    told = regression.run(made, {t.key: t.default for t in regression.thresholds})
    assert counted["fail"][0] == told.values["failed"].value


def test_bare_fine_tune_is_medium_and_conditional():
    assert answer(run(case(PLAIN)))[:2] == ("medium", "conditional")
    assert REVIEW.line(run(case(PLAIN))) == "review_friendly: impact=medium, approval=conditional, key_changes=2"


@pytest.mark.parametrize(("code", "impact"), [
    ("NONFINITE", "critical"), ("UNLOADABLE", "critical"), ("METRIC_CRIT", "critical"), ("METRIC_WARN", "high"),
    ("ARCH", "high"), ("INTERFACE", "high"), ("CONFIG", "high"), ("INDEPENDENT", "high"), ("TOKENIZER", "medium"),
    ("METRIC_UNKNOWN", "medium"), ("TIE_BROKEN", "medium"),
])  # fmt: skip
def test_impact_by_code(code, impact):
    assert answer(run(case(code)))[0] == impact


@pytest.mark.parametrize(("share", "impact"), [(0.0005, "low"), (0.009, "low"), (0.011, "medium"), (0.31, "high")])
def test_impact_by_how_far_the_weights_moved(share, impact):
    a = network()
    # Every element moves by the same share, so that the relative change is that share.
    b = {name: (values * (1 + share)).astype("f4") for name, values in a.items()}
    said = metrics({"loss": 1.0}, {"loss": 0.9})
    made = pair(a, b, {"training": said.a.training}, {"training": said.b.training})
    assert displacement(made).relative == pytest.approx(share, rel=1e-3)
    assert answer(run(made, **{"SHIFT_MANY.severity": 1, "SHIFT_FEW.severity": 1}))[0] == impact


@pytest.mark.parametrize("code", CASES)
def test_approval_follows_readiness(code):
    readiness = READINESS.run(case(code), {t.key: t.default for t in READINESS.thresholds}).values["readiness"].value
    expected = "recommended" if readiness >= 0.85 else "conditional" if readiness >= 0.60 else "not_recommended"
    assert answer(run(case(code)))[1] == expected


def test_editing_the_policy_moves_words_only():
    made = case(PLAIN)
    edited = run(made, **{"METRIC_UNKNOWN.penalty": 0.0, "METRIC_UNKNOWN.severity": 1})
    assert answer(edited)[:2] == ("low", "recommended")
    assert edited.values["key_changes"] == run(made).values["key_changes"]
    assert answer(run(made, **{"METRIC_UNKNOWN.blocker": 1}))[:2] == ("critical", "not_recommended")


@pytest.mark.parametrize("code", CASES)
def test_every_point_is_counted_and_says_how_it_is_known(code):
    result = run(case(code))
    found = bullets(result)
    assert found is not None
    assert len(found.rows) == answer(result)[2]
    assert any(str(row[0]).startswith(f"{code}: ") for row in found.rows)
    assert {row[1] for row in found.rows} <= {word.value for word in Evidence}
    text = " ".join(found.lines)
    assert sum(text.count(f"[{word.value}]") for word in Evidence) == len(found.rows)
    assert sum(line.startswith("* ") for line in found.lines) == len(found.rows)


@pytest.mark.parametrize("name", BANK)
def test_lines_fit_eighty_characters(name):
    assert all(len(line) <= 80 for line in lines(run(pair_called(name))))


def test_metrics_are_told_once():
    worse, better = (run(metrics({"accuracy": 0.9, "f1": 0.8}, b)) for b in (
        {"accuracy": 0.7, "f1": 0.85}, {"accuracy": 0.95, "f1": 0.8},
    ))  # fmt: skip
    for result, said in ((worse, ("METRIC_CRIT: accuracy", "f1: 0.8 → 0.85, better.")),
                         (better, ("accuracy: 0.9 → 0.95, better.", "f1: 0.8 → 0.8, equal."))):  # fmt: skip
        text = " ".join(lines(result))
        assert all(part in text for part in said)
        assert text.count("accuracy") == 1


def test_gravest_points_come_first_and_ten_are_the_most():
    a = {f"l{i}.{'x' * 90}.weight": values for i, values in enumerate(network().values())}
    b = {name: values.astype("f2") for name, values in noised(a, 3.0).items()}
    first = next(iter(b))
    b[first].flat[0] = np.nan
    b[first].flat[1] = 65504
    said = dict.fromkeys(("acc", "auc", "bleu", "f1", "mcc", "r2", "recall"), 0.9)
    worse = dict.fromkeys(said, 0.8)
    of = [metrics(said, worse).a.training, metrics(said, worse).b.training]
    config = [{"config": {**CONFIG}}, {"config": {**CONFIG, "hidden_act": "gelu"}, "format": "pytorch"}]
    result = run(pair(a, b, {**config[0], "training": of[0]}, {**config[1], "training": of[1]}))
    assert answer(result) == ("critical", "not_recommended", 10)
    found = lines(result)
    assert found[1].startswith("* NONFINITE")
    assert found[-1].startswith("+")
    assert found[-1].endswith(" more")
    assert all(len(line) <= 80 for line in found)


def test_half_of_the_change_names_its_layers():
    a = network()
    b = {**a, UP: (a[UP] * 1.1).astype("f4")}
    assert f"Half of the change is in 1 layer of 12: {UP.removesuffix('.weight')}" in " ".join(lines(run(pair(a, b))))
