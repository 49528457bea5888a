"""Names of stored tensors that belong to one module, and what dtypes they may have."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from diffai_jupyter.checkpoint.tensor import Tensor

FLOATS = frozenset({"f16", "bf16", "f32"})
FLOATS8 = frozenset({"f8_e4m3", "f8_e5m2", "f8_e4m3fnuz", "f8_e5m2fnuz"})


def named(tensors: Mapping[str, Tensor], end: str) -> Iterator[str]:
    """Yield the names that end so; each of them is still there when it is yielded.

    Examples
    --------
    >>> list(named({"a_blocks": None, "a_scales": None}, "_blocks"))
    ['a_blocks']
    """
    for name in [name for name in tensors if name.endswith(end)]:
        if name in tensors:
            yield name


def prefixes(tensors: Mapping[str, Tensor], last: str) -> Iterator[str]:
    """Yield what stands before `last` in the names that end with it, the dot included.

    Examples
    --------
    >>> list(prefixes({"h.0.qweight": None, "qweight": None, "my_qweight": None}, "qweight"))
    ['h.0.', '']
    """
    for name in named(tensors, last):
        prefix = name[: len(name) - len(last)]
        if not prefix or prefix.endswith("."):
            yield prefix


def has(tensor: Tensor | None, dtypes: Iterable[str], shape: tuple[int, ...]) -> bool:
    """Say whether a tensor is there with one of these dtypes and this shape."""
    return tensor is not None and tensor.dtype.name in dtypes and tensor.shape == shape


def present(tensors: Mapping[str, Tensor], prefix: str, lasts: Iterable[str]) -> tuple[str, ...]:
    """Return the names below a prefix that are there, in the order given."""
    return tuple(prefix + last for last in lasts if prefix + last in tensors)
