from __future__ import annotations

import importlib.resources
import json
import math

import jsonschema
import numpy as np
import pytest
import yaml

from diffai_jupyter.contract.blocks import Column, Mark, Severity, Table
from diffai_jupyter.contract.report import SCHEMA
from diffai_jupyter.evidence import REASONS, Evidence
from diffai_jupyter.render import data


@pytest.fixture(scope="module")
def validator():
    text = (
        importlib.resources.files("diffai_jupyter.render").joinpath("report.schema.json").read_text("utf-8")
    )
    schema = json.loads(text)
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("name", ["w", "=1+1", "a\ud800b\x1b[0m", "权重"])
def test_json_and_yaml_say_the_same_and_follow_the_schema(make_report, validator, name):
    report = make_report(name)
    found = json.loads(data.render_json(report), parse_constant=pytest.fail)
    validator.validate(found)
    assert found == data.report_data(report) == yaml.safe_load(data.render_yaml(report))
    assert data.render_json(report) == data.render_json(make_report(name))


def test_schema_refuses_what_is_no_report(make_report, validator):
    found = data.report_data(make_report())
    for path, wrong in (("schema", "diffai-report/0"), ("tensors", {}), ("extra", 1)):
        assert not validator.is_valid({**found, path: wrong}), path
    norm = found["results"]["gradient-analysis"]["values"]["norm"]
    norm["evidence"] = "unknown"  # without a reason
    assert not validator.is_valid(found)


def test_schema_knows_every_word_of_the_contract():
    text = (
        importlib.resources.files("diffai_jupyter.render").joinpath("report.schema.json").read_text("utf-8")
    )
    for word in [*Evidence, *Severity, *Mark]:
        assert f'"{word.value}"' in text
    assert f'"{SCHEMA}"' in text


def test_numbers_keep_ten_digits_and_name_what_is_not_finite(make_report):
    first = data.report_data(make_report())["tensors"][0]
    assert first["numbers"] == {
        "max": "inf", "mean": "nan", "min": "-inf", "nan": 3, "none": None, "rel": 0.3333333333,
    }  # fmt: skip
    assert list(first["numbers"]) == sorted(first["numbers"])
    assert first["a"] == {"shape": [2, 5], "dtype": "F32"}


def test_evidence_is_spelled_out(make_report):
    values = data.report_data(make_report())["results"]["gradient-analysis"]["values"]
    assert list(values) == ["flow_health", "norm"], "as declared"
    assert values["norm"]["value"] == 0.123456789
    assert (values["norm"]["source"], values["norm"]["interval"]) == ("optimizer.pt", [0.1, 0.2])
    reason = REASONS["NEEDS_OPTIM"]
    assert values["flow_health"]["value"] is None
    assert values["flow_health"]["reason"] == {
        "code": reason.code, "sentence": reason.sentence, "remedy": reason.remedy,
    }  # fmt: skip
    assert values["flow_health"]["detail"] == "nothing found"


def test_findings_hold_template_values_and_text(make_report):
    (finding,) = data.report_data(make_report("w\n"))["results"]["gradient-analysis"]["findings"]
    assert finding == {
        "severity": "warning",
        "template": "{n} dead rows in {name}",
        "values": {"n": 3, "name": "w\n"},
        "text": "3 dead rows in w\\u000a",
        "action": "Look.",
    }


def test_numpy_values_become_plain_ones():
    table = Table("t", (Column("x"),), ((np.float32(0.5),), (np.int64(3),), (np.bool_(True),), (math.nan,)))
    assert data._block(table)["rows"] == [[0.5], [3], [True], ["nan"]]
    assert data.plain(np.array([[1, 2]])) == [[1, 2]]


def test_json_holds_no_character_that_a_terminal_acts_on(make_report, hostile):
    text = data.render_json(make_report(hostile[0]))
    assert all(line.isprintable() for line in text.split("\n"))
    text.encode("utf-8")
    data.render_yaml(make_report(hostile[0], 0)).encode("utf-8")
