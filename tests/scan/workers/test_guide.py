"""The arithmetic of the guide about clusters, done again with the inputs that it states."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from diffai_jupyter.scan.tiles import TILE_ELEMENTS
from diffai_jupyter.scan.workers.dispatch import ATTEMPTS, FAR_TILES
from diffai_jupyter.scan.workers.places import LEAST_UNDER_WAY

GUIDES = Path(__file__).parents[3] / "docs" / "guides"


@pytest.mark.parametrize("guide", ["cluster.md", "cluster.ja.md"])
def test_the_example_follows_from_its_inputs(guide):
    text = (GUIDES / guide).read_text(encoding="utf-8")
    (formula,) = [code for code in re.findall(r"```python\n(.+?)```", text, re.DOTALL) if "rate =" in code]
    given = {name: float(value) for name, value in re.findall(r"`(\w+) = ([\d.e]+)`", text)}
    assert set(given) == {"S", "N", "n", "p", "c", "k", "start"}
    found = {}
    for machines in (given["N"], 1):
        names = {**given, "N": machines, "price_hour": 1.0, "price_request": 0.0}
        exec(formula, names)
        found[machines] = names
    for machines, hours in ((given["N"], "0.25"), (1, "0.20")):
        one = found[machines]
        assert f"{one['seconds'] - one['start']:.0f}" in text
        assert f"{one['seconds']:.0f}" in text
        assert f"{one['cost']:.2f}" == hours
        assert hours in text
    assert f"{one['rate'] / 1e9:.1f} GB/s" in text
    assert f"{one['requests']:,.0f}" in text
    # What one request brings, and what else the page says about the code.
    assert one["requests"] == given["S"] / (2 * FAR_TILES * TILE_ELEMENTS)
    assert (LEAST_UNDER_WAY, ATTEMPTS) == (32, 4)
