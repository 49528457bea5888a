"""The 28 promised flags: each is built or honestly pending, and nothing else is there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bank import pair_called

from diffai_jupyter.analyses import PENDING, all_analyses
from diffai_jupyter.comparison import Comparison
from diffai_jupyter.report.request import request_of

PROMISED = [
    line.split()
    for line in Path(__file__).with_name("promised_flags.txt").read_text(encoding="utf-8").splitlines()
]
PENDING_FLAGS = [flag for flag, *word in PROMISED if word]


def test_there_are_28_and_each_line_is_a_flag_or_a_pending_flag():
    assert len(PROMISED) == len({flag for flag, *_ in PROMISED}) == 28
    assert all(word in ([], ["pending"]) for _, *word in PROMISED)


def test_built_flags_are_the_promised_ones():
    assert set(all_analyses()) == {flag for flag, *word in PROMISED if not word}


def test_pending_flags_are_the_promised_ones():
    assert set(PENDING) == set(PENDING_FLAGS)


@pytest.mark.parametrize("flag", PENDING_FLAGS)
@pytest.mark.parametrize(("name", "exit_code"), [("equal", 0), ("moved", 1)])
def test_pending_flag_is_listed_and_shows_no_value(flag, name, exit_code):
    pair = pair_called(name)
    found = Comparison(pair, request_of((flag,), {}))
    assert found.report.pending == (flag,)
    assert found.report.results == {}
    assert found.exit_code == Comparison(pair, request_of((), {})).exit_code == exit_code
    data = json.loads(found.to_json())
    assert (data["pending"], data["results"]) == ([flag], {})
    text = found.to_text()
    assert f"--{flag} is not built yet: no value is shown." in " ".join(text.split())
    for written in (text, found.to_markdown(), found.to_html()):
        assert f"{flag.replace('-', '_')}:" not in written
