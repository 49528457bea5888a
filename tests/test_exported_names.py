from __future__ import annotations

import sys
from pathlib import Path

import pytest

import diffai_jupyter

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@pytest.mark.parametrize("name", diffai_jupyter.__all__)
def test_every_promised_name_is_there(name):
    assert getattr(diffai_jupyter, name) is not None
    assert name in dir(diffai_jupyter)


def test_the_promise_is_sorted_and_without_doubles():
    assert sorted(set(diffai_jupyter.__all__)) == diffai_jupyter.__all__


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'comparre'"):
        diffai_jupyter.comparre  # noqa: B018


def test_every_error_of_a_user_is_one_of_ours():
    for name in diffai_jupyter.__all__:
        if name.endswith("Error"):
            assert issubclass(getattr(diffai_jupyter, name), diffai_jupyter.DiffaiError)


def test_the_version_is_that_of_the_distribution():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))[
        "project"
    ]
    assert diffai_jupyter.__version__ == project["version"]
