"""Results and charts that an earlier run has kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from diffai_jupyter.contract import blocks
from diffai_jupyter.contract.blocks import Chart
from diffai_jupyter.contract.declaration import Analysis, Reads
from diffai_jupyter.contract.result import Finding, Result
from diffai_jupyter.evidence import Evidence, Value
from diffai_jupyter.scan.keeping import kept
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.store.codec import Codec
from diffai_jupyter.wording import Name

_BLOCKS = (
    blocks.Severity, blocks.Heading, blocks.Lines, blocks.Sentence, blocks.Notice, blocks.Fact, blocks.Facts,
    blocks.Align, blocks.Column, blocks.Table, blocks.Mark, blocks.Curve, blocks.Series, blocks.Matrix, blocks.Link,
    blocks.Flow,
)  # fmt: skip
_CUT_SHORT = ("TIME_BUDGET", "INTERRUPTED")

CODEC = Codec((*_BLOCKS, Result, Finding, Value, Evidence, Name), _CUT_SHORT)
"""Writes what analyses return; nothing that says of a number that the run was stopped before it was known."""


def kept_result(
    pair: Pair, analysis: Analysis[Any], thresholds: Mapping[str, float], run: Callable[[], Result]
) -> Result:
    """Return what an analysis says of a pair, if it was kept, else run it and keep that.

    What is read off headers is not kept: finding it again would take as long as computing it.

    Parameters
    ----------
    pair : Pair
        The subject.
    analysis : Analysis
        Which.
    thresholds : mapping of str to float
        All of its thresholds.
    run : callable
        Runs it.
    """
    if analysis.reads is Reads.HEADERS:
        return run()
    keys = {field.key for field in analysis.fields}
    return kept(
        pair,
        ("result", analysis.flag, sorted(thresholds.items())),
        run,
        CODEC,
        lambda found: isinstance(found, Result) and found.values.keys() == keys,
    )


def kept_charts(pair: Pair, draw: Callable[[], tuple[Chart, ...]]) -> tuple[Chart, ...]:
    """Return the charts of a pair, if they were kept, else draw and keep them.

    Parameters
    ----------
    pair : Pair
        The subject.
    draw : callable
        Draws them.
    """
    return kept(
        pair,
        ("charts",),
        draw,
        CODEC,
        lambda found: isinstance(found, tuple) and all(isinstance(chart, Chart) for chart in found),
    )
