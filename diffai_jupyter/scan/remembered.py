"""Records of the pass that an earlier run has kept: only what is new is read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from diffai_jupyter.checkpoint.storage import Storage
from diffai_jupyter.scan.identity import Homes
from diffai_jupyter.scan.keeping import STAGE, Shelf, identities_of, shelf_of
from diffai_jupyter.scan.pair import Pair, PairedTensor
from diffai_jupyter.scan.readings import settled
from diffai_jupyter.scan.records import TOKEN, pack, unpack
from diffai_jupyter.scan.stats import TensorStats
from diffai_jupyter.store.fingerprint import Unkeepable

Scan = Callable[[Pair], tuple[TensorStats, ...]]


@dataclass
class _Group:
    """The tensors that lie in the same files of A and of B: they are kept together, and lost together.

    So a checkpoint of which one shard has changed finds the records of all others.

    Attributes
    ----------
    key : str
        Of the entry.
    files : mapping of str to Storage
        The files.
    tokens : dict of int to bytes
        What the record of each tensor is found by; by place among the tensors.
    records : dict of bytes to TensorStats
        The records that are known.
    """

    key: str
    files: Mapping[str, Storage]
    tokens: dict[int, bytes] = field(default_factory=dict)
    records: dict[bytes, TensorStats] = field(default_factory=dict)


def remembered(pair: Pair, scan: Scan) -> tuple[TensorStats, ...]:
    """Return the record of every tensor of a pair; those that were kept are not computed again.

    Parameters
    ----------
    pair : Pair
        Two checkpoints.
    scan : callable
        Computes the records of all tensors of a pair.
    """
    shelf = shelf_of(pair)
    if shelf is None:
        return scan(pair)
    tensors = settled(pair)
    with pair.run.watch.stage(STAGE):
        groups = _groups(pair, tensors, shelf)
        for group in groups:
            group.records = _kept(shelf, group)
        found = {i: group.records[t] for group in groups for i, t in group.tokens.items() if t in group.records}
    missing = [i for i in range(len(tensors)) if i not in found]
    if not missing:
        return tuple(found[i] for i in range(len(tensors)))
    try:
        found |= zip(missing, _scanned(pair, tensors, missing, scan), strict=True)
    except KeyboardInterrupt:
        found |= _so_far(pair, missing)
        _keep(pair, shelf, groups, found)
        raise
    _keep(pair, shelf, groups, found)
    return tuple(found[i] for i in range(len(tensors)))


def _keep(pair: Pair, shelf: Shelf, groups: list[_Group], found: Mapping[int, TensorStats]) -> None:
    with pair.run.watch.stage(STAGE):
        for group in groups:
            new = {t: found[i] for i, t in group.tokens.items() if i in found and t not in group.records}
            if new:
                shelf.put(group.key, group.files, partial(pack, group.records | new))


def _so_far(pair: Pair, missing: list[int]) -> dict[int, TensorStats]:
    """Return the records of the tensors that an interrupted pass has finished."""
    rest: Pair = pair.memory.get(("rest", tuple(missing)), pair)
    places = missing if rest is not pair else range(len(pair.tensors))
    return {places[i]: record for i, record in rest.memory.get("scanned", {}).items()}


def _scanned(
    pair: Pair, tensors: tuple[PairedTensor, ...], missing: list[int], scan: Scan
) -> tuple[TensorStats, ...]:
    if len(missing) == len(tensors):
        return scan(pair)
    some = tuple(tensors[i] for i in missing)
    # It stays on the pair until the pass is through, as does what an interrupted pass has read.
    rest: Pair = pair.remember(("rest", tuple(missing)), lambda: replace(pair, tensors=some, memory={"settled": some}))
    records = scan(rest)
    del pair.memory["rest", tuple(missing)]
    return records


def _groups(pair: Pair, tensors: tuple[PairedTensor, ...], shelf: Shelf) -> list[_Group]:
    """Return the tensors by the files they lie in; what lies elsewhere is in no group."""
    identities = identities_of(pair)
    groups: dict[tuple[Homes, Homes], _Group] = {}
    for i, tensor in enumerate(tensors):
        try:
            (a, homes_a), (b, homes_b) = (
                (b"-", ()) if side is None else identities.tensor(side) for side in (tensor.a, tensor.b)
            )
        except Unkeepable:
            continue
        homes = homes_a, homes_b
        if homes not in groups:
            files = {key: identities.files[key] for key in (*homes_a, *homes_b)}
            groups[homes] = _Group(shelf.key("records", pair.epsilon, homes_a, homes_b), files)
        # The name chooses the sample.
        name = tensor.name.encode("utf-8", "surrogatepass")
        groups[homes].tokens[i] = hashlib.blake2b(a + b + name, digest_size=TOKEN).digest()
    return list(groups.values())


def _kept(shelf: Shelf, group: _Group) -> dict[bytes, TensorStats]:
    payload = shelf.get(group.key, group.files)
    try:
        return {} if payload is None else unpack(payload)
    except ValueError:
        return {}
