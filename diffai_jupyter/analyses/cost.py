"""What it costs to hold the model: memory of weights, cache and activations."""

from __future__ import annotations

from collections import Counter

from diffai_jupyter.analyses.limits import MEMORY_LIMIT
from diffai_jupyter.contract.blocks import Align, Block, Column, Sentence, Severity, Table
from diffai_jupyter.contract.declaration import Field, Group, Reads, Thresholds, analysis
from diffai_jupyter.contract.result import Finding, Result
from diffai_jupyter.evidence import Evidence, Value, ladder, measured
from diffai_jupyter.facts.network.cost import (
    ACTIVATION_BYTES,
    ADAM_BYTES,
    CACHE_BYTES,
    MIB,
    RULE_OF_THUMB,
    Memory,
    in_use,
    memory_a,
    memory_b,
    parameters_per_byte,
)
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.wording import Name, plural, write_bytes

CONTEXTS = (2048, 8192, 32768)
LARGER_BATCH = 8
WHAT_IF = (("f32", 32), ("f16 or bf16", 16), ("8 bit", 8), ("4 bit", 4))
UNKNOWN = "unknown"


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
    thresholds=(MEMORY_LIMIT,),
    references=(
        "Pope et al. 2023, Efficiently Scaling Transformer Inference (key/value cache).",
        "Anthony, Biderman & Schoelkopf 2023, Transformer Math 101 (1.2 times the weights).",
        "Rajbhandari et al. 2020, ZeRO (16 bytes a parameter for mixed-precision Adam).",
        "Korthikanti et al. 2023, Reducing Activation Recomputation (activations in training).",
    ),
)
def memory_analysis(pair: Pair, thresholds: Thresholds) -> Result:
    """Compare memory: payload, cache and activations.

    Sizes come from headers. The cache is exact from the shapes of the key and value projections, layer
    by layer: one with a sliding window keeps no more than that. Activations are those of one layer,
    plus the logits of one token. ``--context`` and ``--batch`` say for how much; without them it is 2,048
    tokens, or the longest context where that is shorter, and one sequence. The 0.3 to 2 GB that a CUDA
    context takes are not included.
    """
    a, b = memory_a(pair), memory_b(pair)
    values = {
        "delta": measured((b.weights - a.weights) / MIB, "payload bytes in the headers"),
        "gpu_est": in_use(b, pair.deployment),
        "efficiency": ladder(lambda: measured(parameters_per_byte(pair.b, pair.anatomy_b), "headers")),
    }
    return Result(
        values,
        _meaning(pair, a, b, values["gpu_est"]),
        findings=(*_over_limit(values["gpu_est"], thresholds[MEMORY_LIMIT.key]), *_beyond_context(pair, b)),
        blocks=_blocks(pair, a, b, values["gpu_est"]),
        assumptions=_assumptions(b),
    )


def _meaning(pair: Pair, a: Memory, b: Memory, use: Value) -> Sentence:
    said = {
        "a": write_bytes(a.weights),
        "b": write_bytes(b.weights),
        "share": (b.weights - a.weights) / a.weights if a.weights else 0.0,
        "use": write_bytes(use.value * MIB),
        "tokens": b.tokens(pair.deployment.context),
        "n": plural(pair.deployment.batch, "sequence"),
    }
    stored = "Both take {a}." if a.weights == b.weights else "B takes {b} where A takes {a} ({share:+.1%})."
    if not a.weights and b.weights:
        stored = "B takes {b} where A stores nothing."
    if not b.weights:
        return Sentence(stored, said)
    run = (
        " In use, B takes about {use}: weights, cache and activations of {n} of {tokens} tokens."
        if b.is_transformer
        else " In use, B takes about {use}, by the rule of thumb of 1.2 times the weights."
    )
    return Sentence(stored + run, said)


def _over_limit(use: Value, limit: float) -> tuple[Finding, ...]:
    if not limit or not use.is_known or use.value <= limit:
        return ()
    return (
        Finding(
            Severity.WARNING,
            "B needs {use:.1f} MiB, above the limit of {limit:.0f} MiB.",
            {"use": use.value, "limit": limit},
            "Use a smaller dtype, context or batch, or raise memory_limit_mb.",
        ),
    )


def _beyond_context(pair: Pair, b: Memory) -> tuple[Finding, ...]:
    asked = pair.deployment.context
    if asked is None or b.context is None or asked <= b.context:
        return ()
    said = {"asked": asked, "longest": b.context}
    return (Finding(Severity.NOTICE, "The longest context of B is {longest} tokens; {asked} were asked for.", said),)


def _assumptions(b: Memory) -> tuple[str, ...]:
    found = ["a CUDA context (0.3 to 2 GB) is not included"]
    if any(layer.window for layer in b.cached):
        found.append("a layer with a sliding window keeps the last tokens of its window, the newest among them")
    if any(layer.is_cross for layer in b.cached):
        read = f"{b.source} tokens" if b.source else "as many tokens as the decoder has written"
        found.append(f"the encoder has read {read}")
    if b.state is None:
        found.append("the recurrent state is left out: neither shapes nor a configuration tell its size")
    return tuple(found)


def _blocks(pair: Pair, a: Memory, b: Memory, use: Value) -> tuple[Block, ...]:
    blocks: list[Block] = [_sum_table(pair, a, b, use)]
    if a.cache(1) or b.cache(1):
        blocks += [_cache_table(pair, a, b), *_sharing(pair, b)]
    blocks += [
        _training_table(pair, a, b),
        Table(
            "Weights of B in other dtypes",
            (Column("dtype", Align.TEXT), Column("weights")),
            tuple((name, write_bytes(b.parameters * bits / 8)) for name, bits in WHAT_IF),
            note="Without the scales that 8- and 4-bit layouts add.",
        ),
        *_remarks(pair),
    ]
    return tuple(blocks)


def _sum_table(pair: Pair, a: Memory, b: Memory, use: Value) -> Table:
    """Show how the estimate adds up, with the formulas below."""
    tokens, batch = b.tokens(pair.deployment.context), pair.deployment.batch
    rows: list[tuple[str, ...]] = [("weights", write_bytes(a.weights), write_bytes(b.weights))]
    note = f"In use: {RULE_OF_THUMB} × weights."
    if b.is_transformer:
        rows += [
            ("keys, values and states", *(write_bytes(side.cache(tokens, batch)) for side in (a, b))),
            ("activations", *(write_bytes(side.activations(tokens, batch)) for side in (a, b))),
        ]
        note = (
            f"B: keys, values and states {_cache_formula(b, tokens, batch)}; activations "
            f"{_activation_formula(b, tokens, batch)}: those of one layer, and the logits of one token a sequence."
        )
    of_a = in_use(a, pair.deployment)
    rows.append(("in use", write_bytes(of_a.value * MIB), write_bytes(use.value * MIB)))
    columns = (Column("part", Align.TEXT), Column("A"), Column("B"))
    return Table(f"Memory in use, {tokens} tokens, batch {batch}", columns, tuple(rows), note=note)


def _cache_formula(b: Memory, tokens: int, batch: int) -> str:
    """Write what is kept, layers that keep alike together."""
    alike = Counter((layer.numbers, layer.window, layer.is_cross) for layer in b.cached)
    terms = []
    for (numbers, window, is_cross), count in alike.items():
        seen = str((b.source or tokens) if is_cross else tokens)
        kept = f"min({seen}, {window})" if window else f"{seen} of the encoder" if is_cross else seen
        terms.append(f"{plural(count, 'layer')} × {numbers} × {kept}")
    if b.state:
        terms.append(f"{b.state} of state")
    return f"{batch} × {CACHE_BYTES} bytes × ({' + '.join(terms)})" if terms else "nothing is kept"


def _activation_formula(b: Memory, tokens: int, batch: int) -> str:
    layer = f"{batch} × {tokens} × {ACTIVATION_BYTES} bytes × (4 × {b.hidden} + 2 × {b.inner})"
    return f"{layer} + {batch} × 4 bytes × {b.vocabulary}"


def _cache_table(pair: Pair, a: Memory, b: Memory) -> Table:
    batch = pair.deployment.batch
    batches = (1, batch if batch > 1 else LARGER_BATCH)
    contexts = sorted({*CONTEXTS, *(n for n in (a.context, b.context, pair.deployment.context) if n)})
    longest = {"A": a.context, "B": b.context}
    known = ", ".join(f"{side} {n}" for side, n in longest.items() if n)
    return Table(
        "Key/value cache by context, 16 bit",
        (
            Column("tokens"),
            *(Column(side if n == 1 else f"{side}, batch {n}") for n in batches for side in ("A", "B")),
        ),
        tuple(
            (tokens, *(_cache_cell(side, tokens, n) for n in batches for side in (a, b))) for tokens in contexts
        ),
        note=f"Longest context in tokens: {known}." if known else "",
    )


def _cache_cell(memory: Memory, tokens: int, batch: int) -> str:
    return UNKNOWN if memory.state is None else write_bytes(memory.cache(tokens, batch))


def _sharing(pair: Pair, b: Memory) -> tuple[Block, ...]:
    """Tell what shared keys and values save."""
    tokens, batch = b.tokens(pair.deployment.context), pair.deployment.batch
    saved = b.saved_by_sharing(tokens, batch)
    if saved <= 0:
        return ()
    said = {"saved": write_bytes(saved), "tokens": tokens, "times": 1 + saved / b.cache(tokens, batch)}
    template = (
        "Keys and values of B are shared by heads or compressed: with a pair for every head its cache would be "
        "{times:.3g} times as large, {saved} more at {tokens} tokens."
    )
    return (Sentence(template, said),)


def _training_table(pair: Pair, a: Memory, b: Memory) -> Table:
    tokens, batch = b.tokens(pair.deployment.context), pair.deployment.batch
    overhead = [sum(f.size for f in side.files) - side.nbytes if side.files else 0 for side in (pair.a, pair.b)]
    activations = [side.training_activations(tokens, batch) for side in (a, b)]
    rows = [
        (
            "weights, gradients and Adam",
            f"{ADAM_BYTES} bytes a parameter",
            *(write_bytes(ADAM_BYTES * side.parameters) for side in (a, b)),
        ),
    ]
    if a.is_transformer or b.is_transformer:
        rows.append(
            (
                "activations of all layers",
                "s b h L (34 + 5 a s / h) bytes",
                *(UNKNOWN if n is None else write_bytes(n) for n in activations),
            )
        )
    rows.append(("headers and padding of the files", "size of the files − weights", *map(write_bytes, overhead)))
    note = (
        f"s = {tokens} tokens, b = {batch}, h width, L blocks, a heads; nothing recomputed."
        if len(rows) > 2
        else ""
    )
    columns = (Column("part", Align.TEXT), Column("formula", Align.TEXT), Column("A"), Column("B"))
    return Table("Memory in training, mixed precision, and on disk", columns, tuple(rows), note=note)


def _remarks(pair: Pair) -> list[Block]:
    found: list[Block] = []
    largest = max(pair.b.tensors.items(), key=lambda item: (item[1].nbytes, item[0]), default=None)
    if largest is not None:
        found.append(
            Sentence(
                "Largest tensor of B: {name}, {size}.",
                {"name": Name(largest[0]), "size": write_bytes(largest[1].nbytes)},
            )
        )
    heads = [name for name in pair.anatomy_b.names("head") if len(pair.b.tensors[name].shape) == 2]
    places = {pair.b.tensors[name].place for name in pair.anatomy_b.names("embedding")} - {None}
    apart = [name for name in heads if pair.b.tensors[name].place not in places]
    if pair.b.config.get("tie_word_embeddings") is True and apart:
        saved = sum(pair.b.tensors[name].nbytes for name in apart)
        found.append(
            Sentence(
                "The configuration ties the head to the embedding, yet both are stored: {size} could be saved.",
                {"size": write_bytes(saved)},
            )
        )
    return found
