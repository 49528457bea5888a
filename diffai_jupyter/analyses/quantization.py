"""What quantization costs and gains: bytes, speed, and the error of the weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from diffai_jupyter.analyses.limits import SQNR_FAIR, SQNR_FAITHFUL, SQNR_POOR
from diffai_jupyter.analyses.shown.quantization_pictures import sqnr_by_tensor
from diffai_jupyter.analyses.shown.quantization_tables import (
    by_part,
    error_value,
    layouts,
    left_plain,
    mixed_precision,
    promised,
    stands_out,
    totals,
    worst_tensors,
)
from diffai_jupyter.contract.blocks import Block, Sentence, Severity
from diffai_jupyter.contract.declaration import Field, Group, Reads, Threshold, Thresholds, analysis
from diffai_jupyter.contract.result import Finding, Result
from diffai_jupyter.evidence import (
    Evidence,
    Unknowable,
    Value,
    derived,
    estimated,
    if_known,
    ladder,
    measured,
    unknown,
)
from diffai_jupyter.facts.change.quantization import (
    Rounded,
    RoundingError,
    TensorError,
    hidden_by_layout,
    rounding_error,
)
from diffai_jupyter.facts.change.rounding_detail import beyond_rounding, keep_worst
from diffai_jupyter.facts.change.update_type import Kind, update_type
from diffai_jupyter.facts.network.roofline import forecast, is_same_build
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.wording import Name, listed, plural, some, write_bytes

CLASSES = ("excellent", "good", "fair", "poor")
_LIMITS = dict(zip(CLASSES, (SQNR_FAITHFUL, SQNR_FAIR, SQNR_POOR), strict=False))
_WORST = Threshold("sqnr_worst", 6.0, 0.0, 200.0, "dB", "half of the norm is lost; a choice")
_COLUMN = Threshold(
    "outlier_column", 3.0, 1.0, 1e6, "times the median norm", "a choice: of normal numbers it is 1.3 in 100 rows"
)
_BEYOND = Threshold("beyond_rounding", 12.0, 0.0, 200.0, "dB", "two bits worse than rounding normal numbers; a choice")
_FUSED = 0.5
"""Confidence of a speed that only kernels reach which decode the codes while they multiply."""
_EVEN = 0.05
"""A speed that differs by less is told as none."""
_ALIKE = "the same operations on as many bytes take the same time"
_PEAK = "peak rates of the device, batch 1"
_KERNELS = f"{_PEAK}; needs fused kernels, which decode the codes while they multiply in 16 bits"
_JUDGED = "limits of SQNR from rounding small language models: an error of weights is no error of answers"
_TRAINED = (Kind.LOW_RANK, Kind.HEAD, Kind.EMBEDDING, Kind.NORM_BIAS, Kind.PART, Kind.FULL)
_WHY = {
    "NOT_DEQUANTIZABLE": "the layout of the codes is not decoded",
    "CONFOUNDED": "B is stored in another way and holds other values: quantized and trained, or another model",
    "ZERO_REFERENCE": "the quantized tensors of A hold zeros alone",
    "ALL_NONFINITE": "most elements of the rounded tensors are not finite",
}


@analysis(
    flag="quantization-analysis",
    group=Group.ADDITIONAL,
    reads=Reads.MATRICES,
    fields=(
        Field(
            "compression", "Compression", "%", Evidence.MEASURED,
            "100 (1 − bytes of B / bytes of A), scales and zero points included; negative where B is larger",
            form="{:.1f}%; below 1: {:.2g}%",
        ),
        Field(
            "speedup", "Speed of B over A", "ratio", Evidence.DERIVED,
            "Predicted time of A over that of B at batch 1: the next token of a language model, one forward pass of "
            "others",
            form="{:.1f}x; below 1: {:.2g}x",
        ),
        Field(
            "precision_loss", "Loss of precision", "%", Evidence.MEASURED,
            "100 ‖B−A‖_F / ‖A‖_F over the tensors that were quantized or cast, decoded",
            form="{:.1f}%; below 0.1: {:.3g}%",
        ),
        Field(
            "suitability", "Suitability", "word", Evidence.DERIVED,
            "By SQNR = 20 log10(‖A‖ / ‖B−A‖): excellent from sqnr_faithful, good from sqnr_fair, fair from sqnr_poor, "
            "else poor; one class less where a tensor is below sqnr_worst",
            words=CLASSES,
        ),
    ),
    thresholds=(SQNR_FAITHFUL, SQNR_FAIR, SQNR_POOR, _WORST, _COLUMN, _BEYOND),
    references=(
        "Widrow & Kollar 2008, Quantization Noise (error of rounding).",
        "Dettmers et al. 2022, LLM.int8 (outlier columns); Dettmers et al. 2023, QLoRA (NF4).",
        "Frantar et al. 2023, GPTQ; Lin et al. 2024, AWQ (4-bit weights).",
        "Williams, Waterman & Patterson 2009, Roofline; Pope et al. 2023, Efficiently Scaling Transformer Inference.",
        "The project's study on copies of four language models of 0.8 million parameters in 8 to 2 bits (E8).",
    ),
)  # fmt: skip
def quantization_analysis(pair: Pair, thresholds: Thresholds) -> Result:
    """Measure the error and gain of quantization.

    Codes of GGUF, GPTQ, AWQ, bitsandbytes, FP8, MLX, HQQ, compressed-tensors, torchao and Quanto are decoded and
    compared with the numbers of A, in whatever format these are; a cast counts as rounding, too. Where B differs by
    training, there is no loss of precision to tell. Speed is the roofline of inference-speed-estimate at batch 1.
    """
    found = if_known(lambda: rounding_error(pair))
    loss = ladder(lambda: _loss(pair))
    values = {
        "compression": ladder(lambda: _compression(pair)),
        "speedup": ladder(lambda: _speedup(pair, found), lambda: _same_speed(pair)),
        "precision_loss": loss,
        "suitability": _suitability(loss, found, thresholds),
    }
    return Result(
        values,
        _meaning(pair, values, found),
        findings=() if found is None else tuple(_findings(found, thresholds)),
        blocks=tuple(_blocks(pair, found, thresholds)),
        unreached=_unreached(pair, found),
    )


def _compression(pair: Pair) -> Value:
    if not pair.a.nbytes:
        raise Unknowable("NO_TARGET", bytes_a=0)
    return measured(100.0 * (1.0 - pair.b.nbytes / pair.a.nbytes), "payload bytes in the headers")


def _speedup(pair: Pair, found: RoundingError | None) -> Value:
    told = forecast(pair, pair.deployment.hardware, 1)
    if told.is_same:
        return derived(told.speed_ratio, _ALIKE, "roofline")
    if found is not None and found.how is Rounded.PACKED:
        return estimated(told.speed_ratio, min(_FUSED, told.confidence), "roofline", assumption=_KERNELS)
    return estimated(told.speed_ratio, told.confidence, "roofline", assumption=_PEAK)


def _same_speed(pair: Pair) -> Value:
    if not is_same_build(pair):
        raise Unknowable("NO_TARGET")
    return derived(1.0, _ALIKE, "headers")


def _loss(pair: Pair) -> Value:
    """Return the loss of precision; zero where every value is equal."""
    kind = update_type(pair)
    if kind.is_equal and pair.b.tensors:
        return measured(0.0, "every value is equal")
    try:
        found = rounding_error(pair)
    except Unknowable as miss:
        if kind.kind in (Kind.NOTHING_COMMON, Kind.IDENTICAL):
            return unknown("NO_COMMON")
        if miss.reason == "NO_TARGET":
            seen = "the difference is training, not rounding" if kind.kind in _TRAINED else kind.kind.value
            return unknown("NO_TARGET", f"no quantization detected: {seen}")
        return unknown(miss.reason, _WHY.get(miss.reason, miss.detail))
    return error_value(found, 100.0 * found.error)


def class_of(sqnr: float, worst: float, thresholds: Thresholds) -> tuple[str, str]:
    """Return the class that the SQNR of all tensors gives, and the one that is left after the worst of them.

    Parameters
    ----------
    sqnr, worst : float
        In dB, of all together and of the worst.
    thresholds : mapping of str to float
        Those of the analysis.

    Examples
    --------
    >>> limits = {"sqnr_faithful": 40.0, "sqnr_fair": 18.0, "sqnr_poor": 12.0, "sqnr_worst": 6.0}
    >>> class_of(20.0, 15.0, limits), class_of(20.0, 5.0, limits), class_of(11.9, 5.0, limits)
    (('good', 'good'), ('good', 'fair'), ('poor', 'poor'))
    """
    whole = next((word for word, limit in _LIMITS.items() if sqnr >= thresholds[limit.key]), CLASSES[-1])
    lower = CLASSES[min(CLASSES.index(whole) + 1, len(CLASSES) - 1)]
    return whole, lower if worst < thresholds[_WORST.key] else whole


def _suitability(loss: Value, found: RoundingError | None, thresholds: Thresholds) -> Value:
    if not loss.is_known:
        return unknown(loss.reason or "NO_TARGET", loss.detail)
    if found is None:
        return derived(CLASSES[0], _JUDGED, "every value is equal")
    _, word = class_of(found.sqnr, found.worst.sqnr, thresholds)
    return derived(word, _JUDGED, f"SQNR {found.sqnr:.1f} dB, worst tensor {found.worst.sqnr:.1f} dB")


def _meaning(pair: Pair, values: dict[str, Value], found: RoundingError | None) -> Sentence:
    loss, said = values["precision_loss"], _sizes(pair, values)
    if found is not None and loss.is_known:
        said |= {
            "loss": f"{loss.value:.3g} %", "sqnr": found.sqnr, "word": values["suitability"].value,
            "worst": Name(found.worst.name), "low": found.worst.sqnr,
        }  # fmt: skip
        cost = (
            "Rounding took {loss} of the norm of A (SQNR {sqnr:.1f} dB): {word}."
            if found.is_coarser
            else "A is the coarser of the two; B is off by {loss} of its norm (SQNR {sqnr:.1f} dB): {word}."
        )
        worst = " Worst is {worst} with {low:.1f} dB." if len(found.tensors) > 1 else ""
        return Sentence(f"{{sizes}} {cost}{worst}", said)
    if loss.is_known:
        return Sentence("Nothing is lost: every value of B is that of A. {sizes}", said)
    templates = {
        "NOT_DEQUANTIZABLE": "Quantized codes are not decoded here, so that their error stays unknown. {sizes}",
        "NO_COMMON": "A and B share no tensor to compare. {sizes}",
    }
    return Sentence(templates.get(loss.reason or "", "{why} {sizes}"), {**said, "why": _sentence(loss.detail)})


def _sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:]}."


def _sizes(pair: Pair, values: dict[str, Value]) -> dict[str, object]:
    """Return what is said of bytes and speed, as a sentence."""
    share, speed = values["compression"].value, values["speedup"]
    a, b = write_bytes(pair.a.nbytes), write_bytes(pair.b.nbytes)
    if not share:
        size = "Both take as many bytes" if pair.a.nbytes == pair.b.nbytes else f"B takes {b}, A stores nothing"
    else:
        size = f"B takes {b} instead of {a}, {abs(share):.1f} % {'less' if share > 0 else 'more'}"
    fast = ""
    if speed.evidence is Evidence.ESTIMATED:
        kernels = ", with fused kernels" if speed.assumption == _KERNELS else ""
        is_even = abs(speed.value - 1) < _EVEN
        fast = f", and is predicted to run {'as' if is_even else f'{speed.value:.2f} times as'} fast{kernels}"
    return {"sizes": f"{size}{fast if share else ''}."}


def _findings(found: RoundingError, thresholds: Thresholds) -> Iterator[Finding]:
    whole, _ = class_of(found.sqnr, found.worst.sqnr, thresholds)
    if found.is_coarser and whole in ("fair", "poor"):
        yield Finding(
            Severity.WARNING if whole == "poor" else Severity.NOTICE,
            "B is off by {error:.1%} of the norm of A (SQNR {sqnr:.1f} dB): {word}.",
            {"error": found.error, "sqnr": found.sqnr, "word": whole},
            "Measure the answers of B before using it, or quantize with more bits.",
        )
    coarse = [tensor for tensor in found.tensors if tensor.sqnr < thresholds[_WORST.key]]
    if found.is_coarser and coarse:
        yield Finding(
            Severity.WARNING,
            "{n} below {limit:g} dB, which costs a class: {names}.",
            {
                "n": plural(len(coarse), "tensor is", "tensors are"), "limit": thresholds[_WORST.key],
                "names": _names(coarse),
            },
            "Keep them as A has them, or give them more bits.",
        )
    yield from _doubts(found, thresholds)


def _doubts(found: RoundingError, thresholds: Thresholds) -> Iterator[Finding]:
    """Yield what speaks against reading the error as that of rounding A alone."""
    beyond = beyond_rounding(found.tensors, thresholds[_BEYOND.key])
    if beyond:
        yield Finding(
            Severity.NOTICE,
            "{n} off by more than rounding to as many bits usually is: {names}.",
            {"n": plural(len(beyond), "tensor is", "tensors are"), "names": _names(beyond)},
            "Outliers do that, and so does a B that was made from another version of A.",
        )
    if found.others:
        yield Finding(
            Severity.NOTICE,
            f"Besides, {{n}} changed that {'was' if found.others == 1 else 'were'} not rounded.",
            {"n": plural(found.others, "trained tensor")},
            "The error may hold training, or scales that AWQ and SmoothQuant move from one layer to the next.",
        )
    if found.tensors[0].a.dtype.packing and found.tensors[0].b.dtype.packing:
        yield Finding(Severity.NOTICE, "A is quantized as well: the error is that of both together.")
    if found.how is Rounded.LEVELS:
        yield Finding(
            Severity.NOTICE, "B holds rounded numbers in a plain dtype, which saves nothing.", {},
            "Store codes and scales to gain by it.",
        )  # fmt: skip


def _names(tensors: Sequence[TensorError]) -> tuple[str, ...]:
    return some((tensor.name for tensor in tensors), 3, len(tensors))


def _blocks(pair: Pair, found: RoundingError | None, thresholds: Thresholds) -> Iterator[Block]:
    if not (pair.a.tensors or pair.b.tensors):
        return
    yield totals(pair)
    if found is not None:
        yield worst_tensors(pair, found)
        yield from stands_out(pair, found, thresholds[_COLUMN.key])
        yield from filter(None, (sqnr_by_tensor(found.tensors), by_part(found)))
        yield from _to_keep(found, thresholds)
        yield from promised(pair, found)
    yield layouts(pair)
    yield from left_plain(pair)
    if found is not None and found.how is Rounded.PACKED:
        yield Sentence("The key/value cache stays as it is: weights alone are quantized.")


def _to_keep(found: RoundingError, thresholds: Thresholds) -> Iterator[Block]:
    """Yield what to keep as A has it for the next better class."""
    _, word = class_of(found.sqnr, found.worst.sqnr, thresholds)
    if word == CLASSES[0] or not found.is_coarser:
        return
    better = CLASSES[CLASSES.index(word) - 1]
    kept = keep_worst(found.tensors, thresholds[_LIMITS[better].key], thresholds[_WORST.key])
    if kept is not None:
        yield from mixed_precision(found, kept, better)


def _unreached(pair: Pair, found: RoundingError | None) -> tuple[str, ...]:
    hidden = {
        side: len(hidden_by_layout(checkpoint, named))
        for side, checkpoint, named in (("A", pair.a, pair.anatomy_a), ("B", pair.b, pair.anatomy_b))
    }
    left = [f"{plural(n, 'tensor')} of {side} in a layout that is not decoded" for side, n in hidden.items() if n]
    if found is not None and found.masked:
        left.append(f"{plural(len(found.masked), 'tensor')} with hardly a finite number: {listed(found.masked)}")
    return tuple(left)
