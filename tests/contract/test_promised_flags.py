"""The 28 promised flags are there, and nothing else is."""

from __future__ import annotations

from pathlib import Path

from diffai_jupyter.analyses import all_analyses

PROMISED = Path(__file__).with_name("promised_flags.txt").read_text(encoding="utf-8").split()


def test_the_analyses_are_the_promised_ones():
    assert len(PROMISED) == 28
    assert sorted(all_analyses()) == sorted(PROMISED)
