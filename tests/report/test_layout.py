"""What is shown: options, the default screen, and the same numbers in every rendering."""

from __future__ import annotations

import html
import json
import re
from typing import Any

import numpy as np
import pytest
from bank import BANK, pair_called
from builders import transformer

from diffai_jupyter.comparison import Comparison, compare
from diffai_jupyter.contract.blocks import Heading, Lines, Table
from diffai_jupyter.errors import ArgumentError, SettingError
from diffai_jupyter.options import OPTIONS
from diffai_jupyter.report.request import request_of

State = dict[str, np.ndarray]
LINE = re.compile(r"[~+□?=-] (?!\d+ tensors: )\S.*: ")
TOP = OPTIONS["top"].default


def base() -> State:
    return transformer(layers=3, hidden=32, inner=48, vocab=40)


def moved(count: int, state: State | None = None) -> State:
    """Move the first tensors by name, each less than the one before."""
    state = base() if state is None else state
    draw = np.random.default_rng(0)
    b = dict(state)
    for i, name in enumerate(sorted(state)[:count]):
        b[name] = (state[name] * (1 + 0.5 / (i + 1) * draw.normal(size=state[name].shape))).astype("f4")
    return b


def lines_of(found: Comparison) -> list[str]:
    return [line for line in found.to_text().splitlines() if LINE.match(line)]


def headings(found: Comparison) -> list[str]:
    return [b.text for section in found.document().sections for b in section.blocks if isinstance(b, Heading)]


def table(found: Comparison, title: str) -> Table:
    blocks = [block for section in found.document().sections for block in section.blocks]
    return next(block for block in blocks if isinstance(block, Table) and block.title.startswith(title))


# The default screen.


@pytest.mark.parametrize("changed", [0, 1, 5, 12, 30])
def test_default_text_of_30_tensors_has_at_most_30_lines(changed):
    found = compare(base(), moved(changed))
    assert len(base()) == 30
    assert len(found.to_text().splitlines()) <= 30
    assert len(lines_of(found)) == min(TOP, changed)


@pytest.mark.parametrize("changed", [0, 12, 500])
def test_default_text_of_500_tensors_has_at_most_30_lines(changed):
    draw = np.random.default_rng(0)
    a = {
        f"layers.{i}.part{j}.weight": draw.normal(size=(6, 5)).astype("f4")
        for i in range(50)
        for j in range(10)
    }
    text = compare(a, moved(changed, a)).to_text()
    assert len(text.splitlines()) <= 30
    if changed == 500:
        assert f"… {500 - TOP} more tensors (--top 500 shows them)" in text


@pytest.mark.parametrize("name", BANK)
def test_default_text_of_every_pair_has_at_most_30_lines(name):
    assert len(Comparison(pair_called(name), request_of((), {})).to_text().splitlines()) <= 30


# Options.


@pytest.mark.parametrize("top", [1, 7, 100])
def test_top_cuts_the_list_and_says_how_many_are_left(top):
    found = compare(base(), moved(20), top=top)
    assert len(lines_of(found)) == min(top, 20)
    assert (f"… {20 - top} more tensors (--top 20 shows them)" in found.to_text()) == (top < 20)
    assert len(table(found, "Largest changes first").rows) == min(top, 20)
    assert len(found.report.tensors) == 30


def test_brief_is_one_sentence_and_the_lines_that_were_asked_for():
    found = compare(base(), moved(20), brief=True, change_summary=True, stats=True, show_config=True)
    assert found.to_text().splitlines()[2:] == [
        (
            "Some layers changed: 20 tensors of 30 trained tensors, by "
            f"{found.report.change.magnitude.value:.3%} of the norm of A."
        ),
        found.report.analyses[0].line(found["change_summary"]),
    ]
    assert "<h2" not in found.to_html()
    assert "## " not in found.to_markdown()
    # What was asked for is still there as data.
    assert found["change_summary"].values["layers_changed"].value == 20


def test_unchanged_tensors_are_listed_on_demand():
    usual, shown = compare(base(), moved(3), top=50), compare(base(), moved(3), top=50, show_unchanged=True)
    assert "= 27 tensors: equal" in usual.to_text()
    assert len(lines_of(usual)) == 3
    assert "= 27 tensors: equal" not in shown.to_text()
    assert [line[0] for line in lines_of(shown)] == ["~"] * 3 + ["="] * 27


def test_unchanged_tensors_are_listed_beside_analyses_too():
    assert "Tensors" in headings(compare(base(), moved(3), memory_analysis=True, show_unchanged=True))
    assert "Tensors" not in headings(compare(base(), moved(3), memory_analysis=True))


def test_pairing_is_shown_with_its_rules():
    b = {"module." + name: values for name, values in base().items()}
    rows = {row[0]: row[1:] for row in table(compare(base(), {**b, "new.weight": np.ones(3)}, show_pairing=True),
                                             "Which tensor belongs").rows}  # fmt: skip
    assert rows["lm_head.weight"] == ("module.lm_head.weight", "same name without wrapper prefixes")
    assert rows[""] == ("new.weight", "only in B")
    assert len(rows) == 31
    lost = compare(
        base(), {name: values for name, values in base().items() if "lm_head" not in name}, show_pairing=True
    )
    assert {row[0]: row[1:] for row in table(lost, "Which tensor belongs").rows}["lm_head.weight"] == (
        "", "only in A",
    )  # fmt: skip


def test_configuration_is_shown_with_its_sources():
    found = compare(
        base(), base(), show_config=True, top=5, anomaly_detection=True, set="anomaly-detection.psi=0.5"
    )
    rows = {row[0]: row[1:] for row in table(found, "Effective settings").rows}
    assert rows["top"] == ("5", "top=")
    assert rows["epsilon"] == ("0.0", "default")
    assert rows["anomaly-detection"] == ("True", "anomaly_detection=")
    assert rows["psi"] == ("0.5", "set=")
    assert rows["anomaly-detection.tail"] == ("0.01", "default")
    assert set(OPTIONS) - {"set"} <= set(rows)


def test_statistics_are_those_of_numpy():
    a, b = base(), moved(5)
    b["lm_head.weight"] = b["lm_head.weight"].copy()
    b["lm_head.weight"][0, :4] = np.nan, np.inf, 0, 0
    rows = table(compare(a, b, stats=True, top=50), "Statistics").rows
    assert len(rows) == 30
    titles = [
        f"{key} {side}"
        for key in ("mean", "std", "min", "max", "norm", "zeros", "nan", "inf")
        for side in "AB"
    ]
    for name, *numbers in rows:
        values = dict(zip(titles, numbers, strict=True))
        for side, state in (("A", a), ("B", b)):
            array = state[name].astype("f8")
            finite = array[np.isfinite(array)]
            expected = [finite.mean(), finite.std(), finite.min(), finite.max(), np.linalg.norm(finite)]
            found = [values[f"{key} {side}"] for key in ("mean", "std", "min", "max", "norm")]
            assert found == pytest.approx(expected, rel=1e-7, abs=1e-9)
            counts = [np.count_nonzero(array == 0), np.isnan(array).sum(), np.isinf(array).sum()]
            assert [values[f"{key} {side}"] for key in ("zeros", "nan", "inf")] == counts


@pytest.mark.parametrize("order", ["rel", "abs", "energy", "max", "frac", "role_z"])
def test_tensors_come_in_the_order_asked_for(order):
    draw = np.random.default_rng(1)
    a = {name: draw.normal(size=(4 + i, 5)) for i, name in enumerate("abcdefgh")}
    b = {}
    for name, values in a.items():
        mask = draw.random(values.shape) < draw.uniform(0.3, 1)
        b[name] = values + mask * draw.normal(size=values.shape) * draw.lognormal()
    score = {
        "rel": lambda x, d: np.linalg.norm(d) / np.linalg.norm(x), "abs": lambda x, d: np.linalg.norm(d),
        "energy": lambda x, d: np.linalg.norm(d), "max": lambda x, d: np.abs(d).max(),
        "frac": lambda x, d: np.count_nonzero(d) / d.size, "role_z": lambda x, d: np.linalg.norm(d) / np.linalg.norm(x),
    }[order]  # fmt: skip
    names = [row.name for row in compare(a, b, sort_by=order).report.tensors]
    if order == "role_z":
        # Each name is a role of its own here, so nothing has a score and the norm of the difference decides.
        score = lambda x, d: np.linalg.norm(d)  # noqa: E731
    scores = [score(a[name], b[name] - a[name]) for name in names]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize(("epsilon", "changed"), [(0, 3), (1e-6, 2), (1e-3, 1), (10, 0)])
def test_differences_up_to_epsilon_are_no_change(epsilon, changed):
    a = {"w": np.ones(5)}
    b = {"w": np.array([1, 1, 1 + 1e-7, 1 + 1e-4, 2])}
    found = compare(a, b, epsilon=epsilon)
    assert found.report.tensors[0].numbers["changed"] == changed
    assert found.exit_code == (1 if changed else 0)


def test_path_and_pattern_leave_tensors_out_and_say_so():
    found = compare(base(), moved(30), path="layers.1", ignore_keys_regex="norm")
    names = {row.name for row in found.report.tensors}
    assert names == {name for name in base() if "layers.1" in name and "norm" not in name}
    assert found.report.coverage.total == 30
    assert found.report.coverage.compared == len(names) == 7
    left = dict(found.report.coverage.not_compared)
    assert left["lm_head.weight"] == "left out by --path layers.1"
    assert "Coverage: 7 of 30 tensors compared by value" in " ".join(found.to_text().split())


def test_filter_that_leaves_nothing_is_an_error():
    with pytest.raises(ArgumentError, match=r"No tensor is left: --path nowhere leaves out all 30\."):
        compare(base(), base(), path="nowhere")


def test_left_out_change_is_no_change():
    found = compare(base(), moved(1), ignore_keys_regex="lm_head")
    assert sorted(base())[0] == "lm_head.weight"
    assert found.exit_code == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"top": 0}, "The 'top' option must be in [1, 1000]. Got 0 from top=."),
        ({"epsilon": -1}, "The 'epsilon' option must be in [0, inf). Got -1 from epsilon=."),
        ({"sort_by": "size"}, "The 'sort_by' option must be one of rel, abs, energy, max, frac, role_z."),
        ({"ignore_keys_regex": "("}, "The 'ignore_keys_regex' option must be a regular expression"),
    ],
)
def test_wrong_options_are_refused(options, words):
    with pytest.raises(SettingError) as refused:
        compare(base(), base(), **options)
    assert str(refused.value).startswith(words)


# The same numbers in every rendering.


def words_of(markup: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", markup)).replace("\\", "").split())


@pytest.mark.parametrize("bad", [0, 3])
def test_headline_numbers_are_equal_in_text_html_markdown_and_json(bad):
    a, b = base(), moved(9)
    if bad:
        b["lm_head.weight"] = b["lm_head.weight"].copy()
        b["lm_head.weight"].flat[:bad] = np.nan
    changed = sum(np.count_nonzero((a[n] != b[n]) & ~(np.isnan(a[n]) & np.isnan(b[n]))) for n in a)
    elements = sum(values.size for values in a.values())
    masks = {n: np.isfinite(b[n]) for n in a}
    squares = [
        sum((x[n][masks[n]].astype("f8") ** 2).sum() for n in a) for x in ({n: b[n] - a[n] for n in a}, a)
    ]
    relative = np.sqrt(squares[0] / squares[1])
    found = compare(a, b)
    expected = [
        "9 changed, 21 equal",
        f"{changed} of {elements}",
        f"{relative:.4g}",
        f"{elements} elements in f32",
    ]
    for written in (
        found.to_text(),
        words_of(found.to_html()),
        words_of(found.to_markdown()),
        words_of(found.to_page()),
    ):
        flat = " ".join(written.replace("|", " ").split())
        for number in expected:
            assert number in flat
        assert re.search(rf"NaN or infinite in B {bad} ", flat)
    data = json.loads(found.to_json())
    assert data["change"]["magnitude"]["value"] == pytest.approx(relative, rel=1e-6)
    assert sum(row["numbers"]["changed"] for row in data["tensors"]) == changed
    assert sum(row["numbers"]["nan_b"] for row in data["tensors"]) == bad
    assert data["coverage"]["elements"] == elements - bad
    assert (data["coverage"]["compared"], data["coverage"]["total"]) == (30, 30)


def test_line_of_an_analysis_is_the_same_in_every_rendering():
    found = compare(base(), moved(9), all=True)
    data = json.loads(found.to_json())
    text, page, markdown = (
        found.to_text().splitlines(),
        html.unescape(found.to_html()),
        found.to_markdown().splitlines(),
    )
    for flag, result in data["results"].items():
        assert result["line"] in text
        assert result["line"] in page
        assert (result["line"] in markdown) == (flag != "markdown-output")


def test_sections_of_one_group_stand_together():
    found = compare(
        base(), moved(9), all=True, stats=True, show_pairing=True, show_config=True, learning_progress=True
    )
    groups = [section.group for section in found.document().sections]
    runs = [group for i, group in enumerate(groups) if i == 0 or groups[i - 1] != group]
    assert len(runs) == len(set(runs))
    assert groups[0] == "Summary"


def test_list_of_tensors_follows_the_line_that_announces_it():
    found = compare(base(), moved(4), sort_by_change_magnitude=True)
    (section,) = [
        section for section in found.document().sections if section.key == "sort-by-change-magnitude"
    ]
    assert [type(block) for block in section.blocks[:3]] == [Heading, Lines, Table]
    assert [line for line in section.blocks[2].lines if line.startswith("~")] == lines_of(found)[:4]


def test_unknowns_come_with_what_would_settle_them():
    found = compare({"w": np.ones(3)}, {"v": np.zeros((2, 2))}, change_summary=True)
    text = " ".join(found.to_text().split())
    assert "NO_COMMON: No tensor of A has a partner in B." in text


def test_alarms_are_shown_whatever_was_asked_for():
    a, b = base(), base()
    b["lm_head.weight"][2] = np.nan
    b["model.layers.0.mlp.up_proj.weight"][4:7] = 0
    for flags in ({}, {"change_summary": True}, {"sort_by_change_magnitude": True}):
        text = " ".join(compare(a, b, **flags).to_text().split())
        assert "CRITICAL: 32 NaN or infinite elements in lm_head.weight of B, the first at [2, 0]." in text
        assert "WARNING: 3 rows of B are all zero where those of A are not (dead units)" in text


def test_nan_of_both_sides_is_a_warning():
    a = base()
    a["lm_head.weight"][2, 3] = np.nan
    text = compare(a, {name: values.copy() for name, values in a.items()}).to_text()
    assert (
        "WARNING: 1 NaN or infinite element in lm_head.weight of B, the first at [2, 3]; A has them too."
        in text
    )


def test_timings_list_the_stages_and_stay_out_of_exports() -> None:
    found = compare(base(), moved(3), timings=True, change_summary=True, markdown_output=True)
    rows = table(found, "Seconds by stage").rows
    assert {"pair", "open", "change-summary"} <= {row[0] for row in rows}
    assert any(row[0] in ("scan (numpy kernel)", "scan (compiled kernel)") for row in rows)
    assert rows[0] == ("all", pytest.approx(sum(row[1] for row in rows[1:]), abs=0.5), 100.0)
    assert json.loads(found.to_json())["timings"].keys() == dict(found.report.timings).keys()
    assert "Seconds by stage" not in found.to_markdown()
    without = compare(base(), moved(3), change_summary=True, markdown_output=True)
    assert found["markdown_output"].values == without["markdown_output"].values
    assert "timings" not in json.loads(without.to_json())


def test_every_option_of_show_is_tried_here() -> None:
    shown: set[str] = {"top", "brief", "show_unchanged", "show_pairing", "show_config", "stats", "timings"}
    others: dict[str, Any] = dict.fromkeys(("sort_by", "path", "ignore_keys_regex", "epsilon", "set"))
    elsewhere = {"output", "into", "quiet", "workers", "executor", "verify", "time_budget", "report_type", "fail_on"}
    elsewhere |= {"history", "metrics_a", "metrics_b", "evaluate", "steps", "optimizer", "lr"}
    elsewhere |= {"context", "batch", "device", "align", "spectral", "lang", "panel", "summary_cell"}
    assert set(OPTIONS) == shown | set(others) | elsewhere
