"""The first sentence of a report: what kind of change this is, with the numbers that say so."""

from __future__ import annotations

from collections.abc import Sequence

from diffai_jupyter.contract.report import Change
from diffai_jupyter.evidence import Value, derived, estimated, ladder, measured, unknown
from diffai_jupyter.facts.change.changes import Status, changes, displacement
from diffai_jupyter.facts.change.update_type import Kind, UpdateType, grown_rows, update_type
from diffai_jupyter.scan.pair import Pair, PairedTensor, Rule
from diffai_jupyter.wording import plural

SUB_BLOCK_CONFIDENCE = 0.98
"""Lower 95 % bound on how often the rank of a sub-block equals that of the whole update: see docs/method.md."""

HEADERS_ONLY = "headers only"

_TEMPLATES: dict[Kind, str] = {
    Kind.NOTHING_COMMON: "Nothing in common: no tensor of A ({a}) has a partner in B ({b}).",
    Kind.UNREAD: "Not comparable: {n} with a partner, and none of them could be compared by value.",
    Kind.IDENTICAL: "Identical: {n}, with equal names and equal values.",
    Kind.RENAMED: "Renamed: every value is equal; {n} under another name or in another arrangement.",
    Kind.RESHARDED: "Re-sharded: every value is equal; {files_a} files became {files_b}.",
    Kind.CAST: "Pure cast: the same values in another dtype ({dtypes}) in {n}; {cast}.",
    Kind.STRUCTURE: "Structure only: every compared value is equal; {structure}.",
    Kind.BUFFERS: "Only buffers changed ({n}); every trained tensor is equal.",
    Kind.ROUNDING: "Rounding only: in {n} every changed element moved to a neighbouring number of its dtype.",
    Kind.NONFINITE: "Only NaN or infinity appeared or vanished: {elements} in {n}; every other value is equal.",
    Kind.ZEROED: "Pruned: {zeros} elements became zero in {n}, {rows} whole rows among them; the others stayed.",
    Kind.SCALED: "Scaled: in {n} B is a multiple of A, by {low:.4g} to {high:.4g}.",
    Kind.PERMUTED: "Permuted: in {n} the rows or columns of A stand in another order, bit for bit; {same}.",
    Kind.LOW_RANK: "Low-rank update (LoRA-like): {rank} in {matrices}; {tensors} of {trained} changed.",
    Kind.HEAD: "Only the head changed ({n} of {trained}).",
    Kind.EMBEDDING: "Only embeddings changed ({n} of {trained}).",
    Kind.NORM_BIAS: "Only norms and biases changed ({n} of {trained}).",
    Kind.PART: "Some layers changed: {n} of {trained}, by {magnitude}{frozen}.",
    Kind.FULL: "Everything moved: all {n}, by {magnitude}.",
}
_QUANTIZED_BY_NAME = "Quantized: B packs {packed} that A does not, in a layout that is not decoded."
_QUANTIZED = (
    "Quantized: {matrices} of B packed as {b}, {bits_b:.2f} bits a weight, where A has {a}; off by {error} of "
    "their norm in A (SQNR {sqnr:.1f} dB)"
)
_DEQUANTIZED = (
    "Dequantized: {matrices} of B in {b}, where A packs them as {a}, {bits_a:.2f} bits a weight; off by {error} "
    "of their norm in A (SQNR {sqnr:.1f} dB)"
)
_ROUNDING_OF_FACTORS = "Rounding only: {n} of adapters differ by no more than rounding of their factors explains."
_QUANTIZED_BY_LEVELS = (
    "Looks quantized: in {matrices} sampled matrices of B any {group} neighbours hold at most {levels} distinct "
    "values, in A {levels_a}."
)


def describe_change(pair: Pair) -> Change:
    """Say what kind of change a pair is; this reads both checkpoints once."""
    found = update_type(pair)
    said: dict[str, object] = {**found.numbers, **_numbers(pair, found)}
    template = _template(pair, found)
    structure = str(said["structure"])
    if structure and found.kind not in (Kind.STRUCTURE, Kind.NOTHING_COMMON):
        template = f"{template} Besides, {{structure}}."
    return Change(found.kind.value, template, said, _evidence(pair, found), found.is_equal, _magnitude(pair))


def _are_adapters(pair: Pair) -> bool:
    """Say whether all that changed are updates that adapters add."""
    moved = [change for change in changes(pair) if change.status is Status.ROUNDING]
    return all(change.tensor.part.role == "adapter" for change in moved)


def describe_headers(pair: Pair) -> Change:
    """Say what headers alone tell; reads no tensor."""
    structure = _structure(pair.tensors)
    retyped = sum(t.a is not None and t.b is not None and t.a.dtype != t.b.dtype for t in pair.tensors)
    said: dict[str, object] = {
        "structure": structure,
        "n": plural(len(pair.tensors), "tensor"),
        "retyped": retyped,
    }
    if not any(t.a is not None and t.b is not None for t in pair.tensors):
        said |= _numbers_of_sides(pair)
        template = _TEMPLATES[Kind.NOTHING_COMMON]
    elif structure:
        template = "Headers differ: {structure}. Values were not read."
    elif retyped:
        template = "Headers differ in {retyped} dtypes, names and shapes agree. Values were not read."
    else:
        template = "Headers agree in the {n}. Values were not read."
    return Change(HEADERS_ONLY, template, said, measured(HEADERS_ONLY, "headers"), False, unknown("NOT_READ"))


def _magnitude(pair: Pair) -> Value:
    return ladder(lambda: measured(displacement(pair).relative, "‖B−A‖_F / ‖A‖_F"))


def _template(pair: Pair, found: UpdateType) -> str:
    if found.kind is Kind.ROUNDING and _are_adapters(pair):
        return _ROUNDING_OF_FACTORS
    if found.kind is Kind.QUANTIZED and "sqnr" in found.numbers:
        is_smaller = float(str(found.numbers["bits_b"])) < float(str(found.numbers["bits_a"]))
        others = "; besides, {others} changed." if found.numbers["others"] else "."
        return (_QUANTIZED if is_smaller else _DEQUANTIZED) + others
    if found.kind is Kind.QUANTIZED:
        return _QUANTIZED_BY_NAME if "modules" in found.numbers else _QUANTIZED_BY_LEVELS
    return _TEMPLATES[found.kind]


def _evidence(pair: Pair, found: UpdateType) -> Value:
    source = "elementwise comparison"
    if found.kind is Kind.ROUNDING and _are_adapters(pair):
        return derived(found.kind.value, "each factor was rounded to its dtype on its own", "a bound on ‖B−A‖_F")
    if not found.is_estimated:
        return measured(found.kind.value, source)
    if found.kind is Kind.LOW_RANK:
        return estimated(
            found.kind.value,
            SUB_BLOCK_CONFIDENCE,
            "singular values of sub-blocks of the update",
            assumption="a random 512 x 512 sub-block keeps the rank of the update",
        )
    return derived(
        found.kind.value, "few distinct values among neighbours mean a quantized copy", "64 sampled rows"
    )


def _numbers(pair: Pair, found: UpdateType) -> dict[str, object]:
    """Return the words that the templates need beyond the numbers of the fact."""
    numbers = found.numbers
    magnitude = _magnitude(pair)
    unread = 0 if found.kind is Kind.UNREAD else found.counts.get(Status.UNREAD, 0)
    said: dict[str, object] = {
        **_numbers_of_sides(pair),
        "n": plural(_int(numbers, "tensors"), "tensor"),
        "trained": plural(_int(numbers, "trained"), "trained tensor"),
        "magnitude": f"{magnitude.value:.3%} of the norm of A"
        if magnitude.is_known
        else "an unknown part of A",
        "structure": _structure([change.tensor for change in changes(pair)], unread),
    }
    if found.kind is Kind.QUANTIZED:
        said["packed"] = plural(_int(numbers, "modules"), "module")
        if "sqnr" in numbers:
            said |= {key: numbers[key] for key in ("a", "b")}
            said["matrices"] = plural(_int(numbers, "matrices"), "matrix", "matrices")
            said["others"] = plural(_int(numbers, "others"), "other tensor")
            said["error"] = f"{float(str(numbers['error'])):.3%}"
    if found.kind is Kind.CAST:
        said["cast"] = _cast_words(numbers)
    if found.kind is Kind.LOW_RANK:
        low, high = numbers["low"], numbers["high"]
        said["matrices"] = plural(_int(numbers, "ranks"), "matrix", "matrices")
        said["rank"] = f"rank {low}" if low == high else f"ranks {low} to {high}"
    if found.kind is Kind.PERMUTED:
        said["same"] = (
            "each order of outputs is undone by the same order of inputs, so the function should be the same"
            if numbers["is_undone"]
            else "the orders of rows and columns do not cancel, so unless attention undoes them the function changed"
        )
    if found.kind is Kind.PART:
        frozen = _int(numbers, "frozen_blocks")
        said["frozen"] = f"; the first {plural(frozen, 'block')} are equal" if frozen > 1 else ""
    return said


def _int(numbers: dict[str, object], key: str) -> int:
    value = numbers.get(key, 0)
    return value if isinstance(value, int) else 0


def _numbers_of_sides(pair: Pair) -> dict[str, object]:
    return {"a": plural(len(pair.a.tensors), "tensor"), "b": plural(len(pair.b.tensors), "tensor")}


def _cast_words(numbers: dict[str, object]) -> str:
    elements, rounded = _int(numbers, "elements"), _int(numbers, "rounded")
    if not _int(numbers, "changed"):
        return "every value is equal"
    error = f"relative error {numbers['error']:.2e}"
    if rounded == elements:
        return f"every element is correctly rounded, {error}"
    return f"every element is within the rounding of one common source, {error}"


def _structure(tensors: Sequence[PairedTensor], unread: int = 0) -> str:
    """Say what is added, removed, reshaped and resized, and how many could not be compared."""
    rules = [tensor.rule for tensor in tensors]
    parts = [
        f"{plural(rules.count(rule), 'tensor')} {word}"
        for rule, word in ((Rule.ADDED, "added"), (Rule.REMOVED, "removed"), (Rule.RESHAPED, "reshaped"))
        if rule in rules
    ]
    parts += [
        f"an embedding or head has {abs(rows)} rows {'more' if rows > 0 else 'fewer'}"
        for rows in grown_rows(tensors).values()
    ]
    if unread:
        parts.append(f"{plural(unread, 'tensor')} not comparable by value")
    return ", ".join(parts)
