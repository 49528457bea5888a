"""The quickstart notebook: its cells, and how it is executed.

The demo writes it into its folder; ``notebooks/quickstart.ipynb`` is the same notebook, kept with
its outputs, and written again by ``python -m diffai_jupyter.cli.demo notebooks/quickstart.ipynb``.
"""

from __future__ import annotations

from pathlib import Path

from diffai_jupyter.cli.demo.execution import execute, metadata
from diffai_jupyter.errors import MissingPackageError

STORY: tuple[tuple[str, str], ...] = (
    (
        "markdown",
        """\
# What changed between two checkpoints?

A checkpoint is a network as it was saved at some moment: files full of numbers. Given two of them, `%diffai A B` says
what changed from A to B, whether that is a reason to worry, and what cannot be known from what is there.

Everything below was computed from five checkpoints of a small network that reads handwritten digits. It was really
trained, in a few seconds.

| checkpoint | what it is |
|---|---|
| `early` | the network after 150 steps of training, with the log of its run |
| `late` | the same run after 900 steps |
| `head-tuned` | `late`, trained on for digits that are shifted by a pixel; only its last layer was allowed to move |
| `late-bf16` | `late`, stored with 16 bits for each number instead of 32; no log |
| `late-damaged` | `late`, with a single number broken; no log |""",
    ),
    ("code", "%load_ext diffai_jupyter"),
    (
        "markdown",
        """\
## What changed?

Without any flag: the kind of change, the numbers that matter, and the tensors (the arrays of numbers that a network
consists of), the most changed first.""",
    ),
    ("code", "%diffai checkpoints/early checkpoints/late"),
    (
        "markdown",
        """\
So training moved everything (`full`), by 14 % of its size, and no number is broken. By the log, the loss on digits
that were held back in training fell to a third: B is the better one.

Every value says how it is known:

| word | means |
|---|---|
| `measured` | computed from the numbers in the files |
| `reported` | read from a file beside them, such as the log; not verified |
| `derived` | follows by a formula from an assumption, which is shown |
| `estimated` | inferred, with a confidence |
| `unknown` | cannot be known from what was given; the reason is shown, and what would settle it |

## Is that a reason to worry?

Each flag asks one more question, and is answered by a line of fixed form. `--brief` shows those lines, and below them
whatever calls for attention.""",
    ),
    (
        "code",
        """\
%%diffai checkpoints/early checkpoints/late --brief
--learning-progress --anomaly-detection --regression-test --risk-assessment""",
    ),
    (
        "markdown",
        """\
Here nothing does: it got better, no check failed, and the risk of putting B in the place of A is low. Compare with a
copy of `late` in which one number of 13,098 was broken:""",
    ),
    ("code", "%diffai checkpoints/late checkpoints/late-damaged --brief --anomaly-detection --risk-assessment"),
    (
        "markdown",
        """\
This one must not be used: a single NaN (not a number) makes every answer of the network useless. It is named with its
place.

## Which part changed?

In `head-tuned` only the last layer was allowed to move. The weights alone show it.""",
    ),
    ("code", "%diffai checkpoints/late checkpoints/head-tuned"),
    (
        "markdown",
        """\
Four of six tensors are equal to the last bit. (The step goes back because the log of B begins anew, and the loss rose
because there it is that on shifted digits.)

## Did anything change at all?

A copy with half of the bytes differs almost everywhere. Yet all of its numbers are the old ones, rounded, and the first
sentence says so:""",
    ),
    ("code", "%diffai checkpoints/late checkpoints/late-bf16"),
    (
        "markdown",
        """\
## What cannot be known?

Weights do not say whether a network got better. Here the two are taken out of their folders, away from their logs.
Names of variables work in place of files.""",
    ),
    (
        "code",
        """\
from safetensors.numpy import load_file

early = load_file("checkpoints/early/model.safetensors")
late = load_file("checkpoints/late/model.safetensors")

%diffai early late --learning-progress""",
    ),
    (
        "markdown",
        """\
The trend is `unknown`, and the report names what would tell. One of these is the log, so we hand it over:""",
    ),
    (
        "code",
        """\
%%diffai early late --brief
--learning-progress --history checkpoints/late/trainer_state.json --steps 750""",
    ),
    (
        "markdown",
        """\
## An answer in full, with charts

Without `--brief` an analysis shows its line, what it means, where each value comes from, tables, what it assumes, and
the method.""",
    ),
    ("code", "%diffai checkpoints/early checkpoints/late --change-summary --include-charts"),
    (
        "markdown",
        """\
## In a program

What was shown is also an object: values with their evidence, Markdown for a review, JSON, an HTML page.""",
    ),
    (
        "code",
        """\
report = %diffai checkpoints/late checkpoints/head-tuned --change-summary -q
for name, known in report["change_summary"].values.items():
    print(f"{name}: {known.value:.4g} ({known.evidence})")""",
    ),
    ("code", 'print(*report.to_markdown().splitlines()[:10], "...", sep="\\n")'),
)


def write_notebook(path: Path) -> None:
    """Write the quickstart at `path` with its outputs, run beside the folder ``checkpoints``.

    Raises
    ------
    MissingPackageError
        If the packages that run a notebook are not installed.
    """
    try:
        from nbformat import v4
    except ImportError as missing:
        feature = "The notebook of diffai demo"
        raise MissingPackageError(feature, missing.name or "nbformat", "lab") from missing
    make = {"markdown": v4.new_markdown_cell, "code": v4.new_code_cell}
    cells = [make[kind](source, id=f"cell-{index}") for index, (kind, source) in enumerate(STORY)]
    execute(v4.new_notebook(cells=cells, metadata=metadata()), path)
