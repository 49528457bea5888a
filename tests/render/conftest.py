"""A fixed document with every kind of block, a fixed report, and names that mean harm."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest

from diffai_jupyter.contract.blocks import (
    Align,
    Block,
    Column,
    Curve,
    Document,
    Fact,
    Facts,
    Flow,
    Heading,
    Lines,
    Link,
    Mark,
    Matrix,
    Notice,
    Section,
    Sentence,
    Series,
    Severity,
    Table,
)
from diffai_jupyter.contract.declaration import Field, Group, Reads, analysis
from diffai_jupyter.contract.report import Change, Coverage, Report, Setting, Side, TensorRow
from diffai_jupyter.contract.result import Finding, Result
from diffai_jupyter.evidence import Evidence, derived, estimated, measured, reported, unknown
from diffai_jupyter.wording import Name

HOSTILE = {
    "script": "<script>alert(1)</script>",
    "image": '<img src=x onerror="alert(1)">',
    "pipe": "a|b||c",
    "backslash-pipe": "a\\|b",
    "dollar": "$x$ and $y$",
    "backtick": "``a`b```",
    "only-backticks": "`",
    "newline": "a\nb\r\nc",
    "ansi": "\x1b[31mred\x1b[0m",
    "long": "layer." * 1667,
    "surrogate": "a\ud800b",
    "rtl": "a\u202egnp.exe",
    "emphasis": "*a* _b_ ~c~ [d](e)",
    "quote": "\"'&amp;&lt;",
    "wide": "权重.层🙂",
    "brace": "{0.__class__}",
    "empty": "",
}


def _change_by_layer() -> Series:
    layers = tuple(float(at) for at in range(24))
    return Series(
        key="change_by_layer",
        title="Relative change by layer",
        mark=Mark.LINE,
        curves=(
            Curve("attention", layers, tuple(0.02 + 0.25 * math.exp(-((x - 17) ** 2) / 8) for x in layers)),
            Curve("mlp", layers, tuple(0.03 + 0.31 * math.exp(-((x - 18) ** 2) / 12) for x in layers)),
        ),
        x_label="layer",
        y_label="relative change (ratio)",
        takeaway=Sentence(
            "Relative change by layer: layers {which} change most ({top:.2f}); all layers below 12 stay below {low}.",
            {"which": (17, 18), "top": 0.338, "low": 0.04},
        ),
    )


def _largest_changes() -> Series:
    names = (
        "mlp.up_proj",
        "mlp.down_proj",
        "mlp.gate_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "lm_head",
    )
    return Series(
        key="change_by_role",
        title="Relative change by role",
        mark=Mark.BAR,
        curves=(Curve("relative change", names, (0.338, 0.281, 0.274, 0.121, 0.063, 0.0041)),),
        x_label="",
        y_label="relative change (ratio)",
        takeaway=Sentence(
            "Up projections change most ({top}); the output head hardly at all.", {"top": 0.338}
        ),
    )


def _weights() -> Series:
    edges = tuple(-0.1 + 0.2 * at / 64 for at in range(65))
    middles = [(left + right) / 2 for left, right in itertools.pairwise(edges)]
    return Series(
        key="weights",
        title="Weights of model.layers.17.mlp.up_proj.weight",
        mark=Mark.HISTOGRAM,
        curves=(
            Curve("A", edges, tuple(4000 * math.exp(-((x / 0.020) ** 2) / 2) for x in middles)),
            Curve("B", edges, tuple(3400 * math.exp(-((x / 0.024) ** 2) / 2) for x in middles)),
        ),
        x_label="weight",
        y_label="count",
        takeaway=Sentence(
            "Weights of {name} spread by a fifth.", {"name": Name("model.layers.17.mlp.up_proj.weight")}
        ),
    )


def _change_and_size() -> Series:
    x = tuple(10 ** (3 + 0.02 * at) for at in range(200))
    y = tuple(10 ** (-3.2 + 1.1 * math.sin(at) + 0.006 * at) for at in range(200))
    return Series(
        key="change_and_size",
        title="Relative change against size",
        mark=Mark.SCATTER,
        curves=(Curve("tensors", x, y),),
        x_label="elements",
        y_label="relative change (ratio)",
        takeaway=Sentence("Large tensors change a little more than small ones."),
        is_log=True,
    )


def _similarity() -> Matrix:
    labels = tuple(f"layer {at}" for at in range(8))
    return Matrix(
        key="similarity",
        title="Linear CKA between the layers of A and B",
        rows=labels,
        columns=labels,
        cells=tuple(
            tuple(None if i == j == 7 else math.exp(-abs(i - j) / (3 - 0.2 * i)) for j in range(8))
            for i in range(8)
        ),
        label="linear CKA (ratio)",
        takeaway=Sentence("Each layer of A is most like the same layer of B."),
    )


def _summary() -> Section:
    return Section(
        "summary",
        "Summary",
        (
            Lines(
                ("[CRITICAL] anomaly_detection: type=nan_inf_values, severity=critical, affected=2 layers",)
            ),
            Sentence(
                "Fine-tuning: {changed} of {all} tensors changed, most of all {top}.",
                {"changed": 120, "all": 291, "top": Name("model.layers.17.mlp.up_proj.weight")},
                is_strong=True,
            ),
            Sentence("The remaining {same} tensors hold the same values bit for bit.", {"same": 171}),
            Notice(
                Severity.CRITICAL,
                "{count} values of {name} are not finite.",
                {"count": 3, "name": Name("lm_head.weight")},
            ),
            Notice(Severity.WARNING, "The tokenizers differ, so rows of the embedding are paired by index."),
            Facts(
                (
                    Fact(
                        "relative change",
                        measured(0.0543, "both files"),
                        "{:.4f}",
                        "ratio of Frobenius norms",
                    ),
                    Fact("learning rate", reported((1e-4, 2.5e-5), "trainer_state.json"), "{:.6f}"),
                    Fact("KV cache", derived(268435456, "2,048 tokens, float16"), "{} bytes"),
                    Fact("latency", estimated(1.25, 0.85, "roofline", (1.1, 1.4)), "{:.2f}x"),
                    Fact("loss trend", unknown("NEEDS_LOSS")),
                    Fact("gradient norm", unknown("NEEDS_OPTIM", "no optimizer.pt")),
                ),
                title="The numbers that matter",
            ),
        ),
    )


def _tensors() -> Section:
    rows = [
        (Name("model.layers.17.mlp.up_proj.weight"), "F32", 45088768, 0.33812, -0.00021, True),
        (Name("model.layers.18.mlp.down_proj.weight"), "F32", 45088768, 0.2811, 0.00007, True),
        (Name("model.layers.17.self_attn.v_proj.weight"), "BF16", 16777216, 0.12, -0.0131, False),
        (Name("model.embed_tokens.weight"), "F32", 131072000, 0.0041, 0.0, None),
    ]
    return Section(
        "tensors",
        "Tensors",
        (
            Heading("What differs"),
            Table(
                "Largest changes",
                (
                    Column("tensor", Align.TEXT),
                    Column("dtype", Align.TEXT),
                    Column("elements"),
                    Column("relative change"),
                    Column("mean shift"),
                    Column("trained", Align.TEXT),
                ),
                tuple(rows),
                total=120,
                note="Relative change: norm of B - A over norm of A.",
            ),
            Lines(
                (
                    "~ model.layers.17.mlp.up_proj.weight: mean=0.0001->-0.0001, std=0.0200->0.0240, change=0.3381",
                    "+ score.weight: shape=[2, 4096], dtype=f32, params=8192",
                    "□ lm_head.weight: [32000, 4096] -> [32064, 4096]",
                )
            ),
            _change_by_layer(),
        ),
    )


def _analysis() -> Section:
    return Section(
        "similarity-matrix",
        "Advanced analysis",
        (
            Heading("similarity_matrix"),
            Lines(("similarity_matrix: matrix_dims=8x8, clustering_coeff=0.8456, sparsity=0.1234",)),
            Sentence("Layers kept their places."),
            Heading("How it was computed", 3),
            Table(
                "Every layer",
                (Column("layer", Align.TEXT), Column("linear CKA")),
                tuple((f"layer {at}", 1 / (1 + at)) for at in range(26)),
            ),
            Notice(Severity.INFO, "Random matrices of this shape would give {null}.", {"null": 0.5}),
            _similarity(),
            _largest_changes(),
            _weights(),
            _change_and_size(),
        ),
    )


@pytest.fixture
def document() -> Document:
    """A document with every kind of block."""
    return Document("diffai: before.safetensors → after.safetensors", (_summary(), _tensors(), _analysis()))


def hostile_blocks(name: str) -> tuple[Block, ...]:
    """Every block, with `name` wherever text from a file can stand, and once as plain text."""
    said = Sentence("Largest: {name}", {"name": Name(name)})
    curve = Curve(name, (name, "other"), (1.0, 2.0))
    return (
        Heading("Names"),
        said,
        Notice(Severity.WARNING, "See {name}", {"name": Name(name)}),
        Sentence("Plain {text}", {"text": name}),
        Facts((Fact("top", measured(Name(name), f"file {name}")),)),
        Table(name, (Column("tensor", Align.TEXT), Column(name)), ((Name(name), 1.5), (name, 2))),
        Series("bars", name, Mark.BAR, (curve,), name, name, said),
        Matrix("matrix", name, (name,), (name, "x"), ((1.0, None),), name, said),
        Flow("flow", name, (name,), (name, "x"), (Link(0, 0, 3, True), Link(0, 1, 2)), name, said),
    )


@pytest.fixture(params=HOSTILE)
def hostile(request: pytest.FixtureRequest) -> tuple[str, Document]:
    """A name that means harm, and a document full of it."""
    name = HOSTILE[request.param]
    return name, Document(name, (Section("names", name, hostile_blocks(name)),))


@analysis(
    flag="gradient-analysis",
    group=Group.LEARNING,
    reads=Reads.HEADERS,
    fields=(
        Field("flow_health", "flow", "word", Evidence.DERIVED, "which", words=("healthy", "dead")),
        Field("norm", "norm", "norm", Evidence.MEASURED, "how long", "{:.6f}"),
    ),
    references=("A paper, section 2",),
)
def _gradient_analysis(subject: object, thresholds: object) -> Result:
    """Look at the gradients."""
    raise NotImplementedError


@pytest.fixture
def make_report() -> Callable[[str], Report]:
    """Make a report about a tensor of the given name."""

    def make(name: str = "w", depth: int = 1) -> Report:
        result = Result(
            values={
                "norm": measured(0.123456789012345, "optimizer.pt", (0.1, 0.2)),
                "flow_health": unknown("NEEDS_OPTIM", "nothing found"),
            },
            meaning=Sentence("Gradients of {name} are fine.", {"name": Name(name)}),
            badge="HIGH",
            findings=(
                Finding(Severity.WARNING, "{n} dead rows in {name}", {"n": 3, "name": Name(name)}, "Look."),
            ),
            blocks=(*hostile_blocks(name), _similarity(), _weights(), Lines((f"~ {name}",))),
            assumptions=("steps are equal",),
            unreached=(name,),
        )
        side = Side(f"{name}.safetensors", "safetensors", 2, 20, 80, {"F32": 2, "BF16": 1}, ("a note",))
        return Report(
            a=side,
            b=side,
            change=Change(
                "fine-tune",
                "{n} of {all} changed",
                {"n": 1, "all": 2},
                derived("fine-tune", "norms"),
                False,
                measured(0.0543),
            ),
            coverage=Coverage(1, 2, 10, ((name, "SHAPE_MISMATCH"),), ("warning",)),
            tensors=(
                TensorRow(
                    name, "changed", lambda: f"~ {name}", "", "exact", "q", ((2, 5), (2, 5)), ("F32", "F32"),
                    {"rel": 1 / 3, "max": math.inf, "nan": 3, "mean": math.nan, "min": -math.inf, "none": None},
                ),
                TensorRow(
                    "added", "added", lambda: "+ added", "", "", "", (None, (3,)), (None, "F32"), {"norm": -2.5},
                    "only in B",
                ),
            ),
            analyses=(_gradient_analysis,),
            results={"gradient-analysis": result},
            settings=(Setting("epsilon", 1e-6, "default"), Setting("fail_on", ("a", "b"), "flag")),
            children=(make(name, depth - 1),) if depth else (),
        )  # fmt: skip

    return make
