"""The gate: its grammar, its order of words, and that what is unknown never passes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from diffai_jupyter.cli import main
from diffai_jupyter.comparison import Comparison, compare
from diffai_jupyter.contract.declaration import TEXT, TRUE_OR_FALSE, Field
from diffai_jupyter.errors import ArgumentError
from diffai_jupyter.evidence import Evidence
from diffai_jupyter.report.gate import Condition, conditions_of, flags_of

RISE = ("none", "warning", "critical")


def state(seed: int = 0) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    return {f"layers.{i}.fc.weight": draw.normal(size=(16, 16)).astype("f4") for i in range(3)}


def moved(by: float, nan: int = 0) -> dict[str, np.ndarray]:
    after = {name: values * np.float32(1 + by) for name, values in state().items()}
    after["layers.1.fc.weight"].flat[:nan] = np.nan
    return after


def outcomes(found: Comparison) -> list[tuple[str, bool]]:
    return [(outcome.value, outcome.failed) for outcome in found.report.gate]


@pytest.mark.parametrize(
    ("sign", "fails"),
    [(">", (False, False, True)), (">=", (False, True, True)), ("<", (True, False, False)),
     ("<=", (True, True, False)), ("=", (False, True, False)), ("==", (False, True, False)),
     ("!=", (True, False, True))],
)  # fmt: skip
def test_words_compare_by_their_declared_order(sign: str, fails: tuple[bool, ...]) -> None:
    field = Field("severity", "Severity", "word", Evidence.DERIVED, "", words=RISE)
    condition = Condition("", "anomaly-detection", field, sign, "warning")
    assert tuple(condition.holds(word) for word in RISE) == fails


@pytest.mark.parametrize(
    ("unit", "wanted", "value", "holds"),
    [(TRUE_OR_FALSE, False, False, True), (TRUE_OR_FALSE, False, True, False), (TEXT, "cosine", "cosine", True),
     ("ratio", 2.0, 2.0, True), ("blocks", 4.0, (9, 4), True), ("blocks", 9.0, (9, 4), False)],
)  # fmt: skip
def test_other_values_compare_as_what_they_are(unit: str, wanted: object, value: object, holds: bool) -> None:
    field = Field("key", "Key", unit, Evidence.MEASURED, "")
    assert Condition("", "flag", field, "=", wanted).holds(value) is holds  # type: ignore[arg-type]


def test_conditions_are_judged_on_the_numbers_of_the_files() -> None:
    found = compare(state(), moved(0.25, nan=2), fail_on="nan>0, nan>2, rel_change>0.2, change_summary.magnitude>0.3")
    assert outcomes(found) == [("2", True), ("2", False), ("0.2500", True), ("0.2500", False)]
    assert found.failures == ("nan>0 (it is 2, measured)", "rel_change>0.2 (it is 0.2500, measured)")
    assert found.exit_code == 3
    assert {"anomaly-detection", "change-summary"} == set(found.report.results)


def test_an_unknown_value_never_passes_and_says_what_would_settle_it() -> None:
    nothing = {name: np.full_like(values, np.nan) for name, values in state().items()}
    found = compare(nothing, nothing, fail_on="rel_change>0.5, rel_change<=0.5")
    assert outcomes(found) == [("unknown", True), ("unknown", True)]
    assert found.report.gate[0].remedy == "No finite value is left to compare."
    assert found.exit_code == 3
    assert "No finite value is left" in found.to_text()


def test_a_gate_that_passes_says_so_and_leaves_the_exit_code() -> None:
    found = compare(state(), state(), fail_on="nan>0")
    assert (found.exit_code, found.failures) == (0, ())
    assert "none of 1 condition holds" in found.to_text()
    assert compare(state(), moved(0.1), fail_on="nan>0").exit_code == 1


def test_headers_alone_are_read_when_the_gate_asks_no_more() -> None:
    found = compare(state(), moved(0.1, nan=5), fail_on="memory-analysis.delta>10MB")
    assert not found.report.tensors
    assert outcomes(found) == [("+0.0MB", False)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "names no condition"),
        ("nan", "'nan' of --fail-on is no condition"),
        ("nan>", "is no condition"),
        ("nan>0 and x", "is no condition"),
        ("magnitud>1", "no field 'magnitud'.*Did you mean '.*magnitude'"),
        ("anomaly-detection.severty>=critical", "no field 'anomaly-detection.severty'"),
        ("anomaly-detection.severity>=grave", "is one of none, warning, critical. Got 'grave'"),
        ("anomaly-detection.affected>=many", "is a number. Got 'many'"),
        ("markdown-output.length>5", "counts the report itself"),
        ("\x1b[31m>1", r"\\u001b"),
    ],
)
def test_what_is_no_condition_is_refused_with_a_hint(text: str, said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        conditions_of(text)


def test_a_field_of_several_analyses_needs_its_flag() -> None:
    with pytest.raises(ArgumentError, match="More than one analysis has a field 'magnitude'"):
        conditions_of("magnitude>1")


def test_numbers_may_carry_the_unit_of_the_line() -> None:
    wanted = [c.wanted for c in conditions_of("change-summary.magnitude>5%, nan>=1e3,memory-analysis.delta<-2.5MB")]
    assert wanted == [5.0, 1000.0, -2.5]


def test_the_gate_runs_what_it_names() -> None:
    assert flags_of(conditions_of("nan>0, rel_change>1, nan>3")) == ("anomaly-detection", "change-summary")


def test_in_a_terminal_the_exit_code_is_three(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "a.npz", **state())
    np.savez(tmp_path / "b.npz", **moved(0.1, nan=1))
    words = [str(tmp_path / "a.npz"), str(tmp_path / "b.npz"), "--fail-on", "nan>0"]
    assert main(words) == 3
    out, err = capsys.readouterr()
    assert "The gate fails: nan>0" in out
    assert err.strip() == "diffai: The gate failed: nan>0 (it is 1, measured)."
    assert main([*words, "-q"]) == 3
    assert capsys.readouterr().out == ""


def test_a_pair_in_a_folder_that_fails_fails_the_whole(tmp_path: Path) -> None:
    for side, last in (("a", state()), ("b", moved(0.1, nan=1))):
        for name, arrays in (("first", state()), ("last", last)):
            (tmp_path / side / name).mkdir(parents=True)
            np.savez(tmp_path / side / name / "model.npz", **arrays)
    found = compare(tmp_path / "a", tmp_path / "b", fail_on="nan>0")
    assert found.exit_code == 3
    assert [text.split(" (")[0] for text in found.failures] == ["last/model.npz: nan>0"]
    assert "The gate fails" in found.to_text()

