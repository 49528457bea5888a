"""What it costs to hold the model: memory of weights, cache and activations."""

from __future__ import annotations

from diffai_jupyter.contract.blocks import Align, Block, Column, Sentence, Severity, Table
from diffai_jupyter.contract.declaration import Field, Group, Reads, Threshold, Thresholds, analysis
from diffai_jupyter.contract.result import Finding, Result
from diffai_jupyter.evidence import Evidence, Value, derived, estimated, ladder, measured
from diffai_jupyter.facts.cost import ADAM_BYTES, Memory, memory_a, memory_b, parameters_per_byte
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.wording import Name, write_bytes

MIB = 1 << 20
RULE_OF_THUMB = 1.2
THUMB_CONFIDENCE = 0.6
CONTEXTS = (2048, 8192, 32768)
WHAT_IF = (("f32", 32), ("f16 or bf16", 16), ("8 bit", 8), ("4 bit", 4))


@analysis(
    flag="memory-analysis",
    group=Group.ARCHITECTURE,
    reads=Reads.HEADERS,
    fields=(
        Field(
            "delta",
            "Difference of payload",
            "MB (2^20 bytes)",
            Evidence.MEASURED,
            "Payload bytes of B minus those of A",
            form="{:+.1f}MB",
        ),
        Field(
            "gpu_est",
            "Memory in use, B",
            "MB (2^20 bytes)",
            Evidence.DERIVED,
            "Weights + key/value cache + activations of B; 1.2 times the weights where it is no transformer",
            form="{:.1f}MB",
        ),
        Field(
            "efficiency",
            "Parameters per byte, B",
            "parameters/byte",
            Evidence.MEASURED,
            "Elements of B over its payload bytes: 0.25 in f32, 0.5 in bf16",
            form="{:.2f}",
        ),
    ),
    thresholds=(
        Threshold("memory_limit_mb", 0.0, 0.0, 1e9, "MB", "off at 0; the original tool suggests 1024"),
    ),
    references=(
        "Pope et al. 2023, Efficiently Scaling Transformer Inference (key/value cache).",
        "Anthony, Biderman & Schoelkopf 2023, Transformer Math 101 (1.2 times the weights).",
        "Rajbhandari et al. 2020, ZeRO (16 bytes a parameter for mixed-precision Adam).",
        "Korthikanti et al. 2023, Reducing Activation Recomputation (activations in training).",
    ),
)
def memory_analysis(pair: Pair, thresholds: Thresholds) -> Result:
    """Compare memory: payload, cache and activations.

    Sizes come from headers. The cache is exact from the shapes of the key and value projections;
    activations are those of one layer, plus the logits of one token. The 0.3 to 2 GB that a CUDA
    context takes are not included.
    """
    a, b = memory_a(pair), memory_b(pair)
    delta = (b.weights - a.weights) / MIB
    values = {
        "delta": measured(delta, "payload bytes in the headers"),
        "gpu_est": _in_use(b),
        "efficiency": ladder(lambda: _efficiency(pair)),
    }
    said = {
        "a": write_bytes(a.weights),
        "b": write_bytes(b.weights),
        "share": (b.weights - a.weights) / a.weights if a.weights else 0.0,
        "use": write_bytes(values["gpu_est"].value * MIB),
        "tokens": b.tokens(),
    }
    meaning = (
        Sentence("Both take {a}.", said)
        if a.weights == b.weights
        else Sentence("B takes {b} where A takes {a} ({share:+.1%}).", said)
    )
    return Result(
        values,
        meaning,
        findings=_over_limit(values["gpu_est"], thresholds["memory_limit_mb"]),
        blocks=_memory_blocks(pair, a, b),
        assumptions=("a CUDA context (0.3 to 2 GB) is not included",),
    )


def _in_use(b: Memory) -> Value:
    if not b.is_transformer:
        return estimated(
            RULE_OF_THUMB * b.weights / MIB,
            THUMB_CONFIDENCE,
            "1.2 times the weights",
            assumption="not a transformer of known width",
        )
    tokens = b.tokens()
    total = b.weights + b.cache(tokens) + b.activations(tokens)
    return derived(
        total / MIB,
        f"{tokens} tokens, batch 1, 16-bit cache and activations",
        "weights + cache + activations",
    )


def _efficiency(pair: Pair) -> Value:
    return measured(parameters_per_byte(pair.b, pair.anatomy_b), "headers")


def _over_limit(use: Value, limit: float) -> tuple[Finding, ...]:
    if not limit or not use.is_known or use.value <= limit:
        return ()
    return (
        Finding(
            Severity.WARNING,
            "B needs {use:.1f} MiB, above the limit of {limit:.0f} MiB.",
            {"use": use.value, "limit": limit},
            "Use a smaller dtype or raise memory_limit_mb.",
        ),
    )


def _memory_blocks(pair: Pair, a: Memory, b: Memory) -> tuple[Block, ...]:
    largest = max(pair.b.tensors.items(), key=lambda item: (item[1].nbytes, item[0]), default=None)
    overhead = [
        sum(f.size for f in side.files) - side.nbytes if side.files else 0 for side in (pair.a, pair.b)
    ]
    rows: list[tuple[str, str, str]] = [
        ("weights", write_bytes(a.weights), write_bytes(b.weights)),
        ("headers and padding of the files", write_bytes(overhead[0]), write_bytes(overhead[1])),
        (
            "training with Adam, 16 bytes a parameter",
            write_bytes(ADAM_BYTES * a.parameters),
            write_bytes(ADAM_BYTES * b.parameters),
        ),
    ]
    if a.is_transformer or b.is_transformer:
        rows.append(
            (
                f"activations of one layer, {b.tokens()} tokens",
                write_bytes(a.activations(b.tokens())),
                write_bytes(b.activations(b.tokens())),
            )
        )
    blocks: list[Block] = [
        Table("Memory", (Column("part", Align.TEXT), Column("A"), Column("B")), tuple(rows))
    ]
    if a.cache(1) or b.cache(1):
        contexts = sorted({*CONTEXTS, *(n for n in (b.context,) if n)})
        blocks.append(
            Table(
                "Key/value cache by context, one sequence, 16 bit",
                (Column("tokens"), Column("A"), Column("B")),
                tuple((n, write_bytes(a.cache(n)), write_bytes(b.cache(n))) for n in contexts),
            )
        )
    blocks.append(
        Table(
            "Weights of B in other dtypes",
            (Column("dtype", Align.TEXT), Column("weights")),
            tuple((name, write_bytes(b.parameters * bits / 8)) for name, bits in WHAT_IF),
            note="Without the scales that 8- and 4-bit layouts add.",
        )
    )
    if largest is not None:
        blocks.append(
            Sentence(
                "Largest tensor of B: {name}, {size}.",
                {"name": Name(largest[0]), "size": write_bytes(largest[1].nbytes)},
            )
        )
    if pair.b.config.get("tie_word_embeddings") is True and pair.anatomy_b.names("head"):
        saved = sum(pair.b.tensors[name].nbytes for name in pair.anatomy_b.names("head"))
        blocks.append(
            Sentence(
                "The configuration ties the head to the embedding, yet both are stored: {size} could be saved.",
                {"size": write_bytes(saved)},
            )
        )
    return tuple(blocks)
