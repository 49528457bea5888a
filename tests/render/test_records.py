"""Rows and columns of a report, as CSV and as data frames."""

from __future__ import annotations

import builtins
import csv
import io
import math
from dataclasses import replace

import pytest

from diffai_jupyter.errors import MissingPackageError
from diffai_jupyter.evidence import derived, estimated, measured, unknown
from diffai_jupyter.render.frame import data_frame
from diffai_jupyter.render.records import VALUES, Records, render_csv, report_records, value_records


def tensors_of(report):
    return render_csv(report_records({"": report}))


def read(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_csv_has_a_row_for_each_tensor_and_no_formula(make_report):
    for name, shown in (
        ("=cmd()", "'=cmd()"),
        ("@x", "'@x"),
        ("\tx", "'\\u0009x"),
        ("-w", "'-w"),
        ('w,"', 'w,"'),
    ):
        header, first, second = csv.reader(io.StringIO(tensors_of(make_report(name))))
        row = dict(zip(header, first, strict=True))
        assert row["name"] == shown
        assert row["shape_a"] == "2x5"
        assert (row["rel"], row["max"], row["nan"], row["none"]) == ("0.3333333333", "inf", "3", "")
        assert row["min"] == "-inf", "numbers get no apostrophe"
        other = dict(zip(header, second, strict=True))
        assert (other["name"], other["shape_a"], other["norm"], other["reason"]) == (
            "added",
            "",
            "-2.5",
            "only in B",
        )


def test_csv_is_one_printable_line_a_tensor(make_report, hostile):
    lines = tensors_of(make_report(hostile[0])).splitlines()
    assert len(lines) == 3
    assert all(line.isprintable() for line in lines)


def test_values_have_a_row_each_with_their_evidence(make_report):
    report = make_report()
    rows = read(render_csv(report_records({"": report}, VALUES)))
    assert [row["analysis"] for row in rows][:2] == ["change", "change"]
    counts = {row["key"]: row["value"] for row in rows if row["analysis"] == "change"}
    assert counts["kind"] == report.change.value.value
    assert sum(int(n) for key, n in counts.items() if key.startswith("tensors_")) == len(report.tensors)
    flow, norm = (row for row in rows if row["analysis"] == "gradient-analysis")
    assert (flow["key"], flow["value"], flow["evidence"], flow["reason"]) == (
        "flow_health", "", "unknown", "NEEDS_OPTIM",
    )  # fmt: skip
    assert (norm["value"], norm["low"], norm["high"], norm["source"]) == ("0.123456789", "0.1", "0.2", "optimizer.pt")


def test_a_value_before_and_after_stands_in_two_columns():
    values = {
        "depth": measured((50, 24)), "grows": derived((None, 0.25), "a rule"), "is_ok": measured(True),
        "names": measured(["=x", "y"]), "guess": estimated(-1.5, 0.75), "not": unknown("NO_TARGET", "none here"),
    }  # fmt: skip
    rows = {row["key"]: row for row in read(render_csv(value_records(values)))}
    assert (rows["depth"]["value_a"], rows["depth"]["value"]) == ("50", "24")
    assert (rows["grows"]["value_a"], rows["grows"]["value"], rows["grows"]["assumption"]) == ("", "0.25", "a rule")
    assert rows["is_ok"]["value"] == "true"
    assert rows["names"]["value"] == '["=x", "y"]'
    assert (rows["guess"]["value"], rows["guess"]["confidence"]) == ("-1.5", "0.75")
    assert (rows["not"]["value"], rows["not"]["reason"], rows["not"]["detail"]) == ("", "NO_TARGET", "none here")


def test_columns_do_not_depend_on_whether_there_are_rows(make_report):
    report = make_report()
    empty = replace(report, tensors=(), results={})
    for table in ("tensors", "values"):
        some = report_records({"": report}, table).columns
        none = report_records({"": empty}, table).columns
        assert set(none) <= set(some)
        assert some[:5] == none[:5]
    assert report_records({}).columns[:3] == ("checkpoint", "name", "status")


def test_several_reports_stand_below_each_other(make_report):
    found = report_records({"1": make_report("w"), "2": make_report("v")})
    assert found.columns[0] == "checkpoint"
    assert [(row["checkpoint"], row["name"]) for row in found.rows] == [
        ("1", "w"), ("1", "added"), ("2", "v"), ("2", "added"),
    ]  # fmt: skip
    assert found.columns[-1] == "reason"


def test_a_data_frame_holds_numbers_as_they_are(make_report):
    frame = data_frame(report_records({"": make_report()}))
    assert list(frame.columns) == list(report_records({"": make_report()}).columns)
    first = frame.iloc[0]
    assert first["shape_a"] == (2, 5)
    assert first["rel"] == 1 / 3
    assert math.isinf(first["max"])
    assert math.isnan(first["mean"])


def test_a_missing_pandas_is_named(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "pandas":
            raise ImportError
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingPackageError, match=r"pip install 'diffai-jupyter\[pandas\]'"):
        data_frame(Records(("x",), ()))
