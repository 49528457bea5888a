"""Whether B can stand where A stood: interface, architecture, ties, and whether B agrees with itself."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from diffai_jupyter.checkpoint.anatomy import Anatomy
from diffai_jupyter.checkpoint.model import Checkpoint, Note
from diffai_jupyter.checkpoint.tensor import Tensor
from diffai_jupyter.facts import fact
from diffai_jupyter.facts.change.changes import Status, changes
from diffai_jupyter.facts.change.content import same_bytes
from diffai_jupyter.facts.network.architecture import (
    Structure,
    differences,
    known_int,
    structure_a,
    structure_b,
)
from diffai_jupyter.scan.pair import Pair, PairedTensor, Rule

_STACKED = ("transformer", "ssm", "hybrid")
_WIDTHS = ("hidden size", "feed-forward size", "experts")
_INNER = ("q", "k", "v", "qkv", "router")
_CLASSIFIER = re.compile(r"^(?:\w+\.)?fc\.weight$")
_RECURRENT = re.compile(r"weight_(?P<side>[ih])h_l\d+")
_COUNTS = {"num_labels": "labels", "num_classes": "classes", "num_channels": "channels", "in_channels": "channels"}
_SHARDS = re.compile(r"shards? (?:of|named)|not in the shard")
_VOCABULARY_KEY, _LABELS_KEY = "vocab_size", "id2label"
_HIDDEN_KEYS = ("hidden_size", "n_embd", "d_model")
_FACTORED_KEYS = ("embedding_size", "word_embed_proj_dim", "emb_dim", "d_embed")
_DEPTH_KEYS = ("num_hidden_layers", "n_layer", "n_layers")
_NESTED = re.compile(r"_config$|^(?:encoder|decoder|text|vision|audio)(?:_layers)?$|decoder_layers|encoder_layers")


@dataclass(frozen=True, slots=True)
class Incompatibility:
    """One point in which two checkpoints, or a checkpoint and its configuration, do not agree.

    Parameters
    ----------
    what : str
        What it is, in words.
    name : str
        The stored name or the key of the configuration that shows it; empty where there is none.
    a, b : str
        What stands on either side.
    """

    what: str
    name: str
    a: str
    b: str

    @property
    def words(self) -> str:
        """The point as a phrase, such as ``vocabulary 96 → 104``."""
        sides = f"{self.a} → {self.b}" if self.b else self.a
        return f"{self.what} {sides}".rstrip() + (f" ({self.name})" if self.name else "")


@dataclass(frozen=True, slots=True)
class _Reshaped:
    """A trained tensor with another shape in B: how many outputs and inputs it has on either side."""

    name: str
    role: str
    outputs: tuple[int, int]
    inputs: tuple[int, int]
    is_ragged: bool

    @property
    def changed(self) -> set[tuple[int, int]]:
        return {sizes for sizes in (self.outputs, self.inputs) if sizes[0] != sizes[1]}


@fact
def interface_changes(pair: Pair) -> tuple[Incompatibility, ...]:
    """Return what changed of what goes in and what comes out: vocabulary, labels, channels, output size.

    Widths come from shapes. An end of the network is a width that changed where no other tensor changed by the same
    factor on the side that it would be joined with. In transformers and state-space models, and where the depth
    changed, only heads, embeddings and convolutions that take an image count as ends.
    """
    found = [*_vocabulary(pair)]
    reshaped = _reshaped(pair)
    vocabulary = {(int(end.a), int(end.b)) for end in found if end.a.isdigit() and end.b.isdigit()}
    for what, ends in (("output size", _ends(pair, reshaped, True)), ("input size", _ends(pair, reshaped, False))):
        for name, (a, b) in ends.items():
            if (a, b) not in vocabulary:
                found.append(Incompatibility(what, name, str(a), str(b)))
    found += _heads(pair)
    found += _configured_counts(pair)
    return tuple(found)


@fact
def architecture_changes(pair: Pair) -> tuple[Incompatibility, ...]:
    """Return what changed of type, depth and width, and which trained tensors came or went inside the network."""
    a, b = structure_a(pair), structure_b(pair)
    found = []
    is_whole = not (is_incomplete(pair.a) or is_incomplete(pair.b))
    if is_whole and a.kind != b.kind:
        found.append(Incompatibility("type", "", a.kind, b.kind))
    if is_whole and a.depth != b.depth:
        found.append(Incompatibility("depth", "", str(a.depth), str(b.depth)))
    for label in _WIDTHS:
        left, right = a.attributes[label], b.attributes[label]
        if left.is_known and right.is_known and left.value != right.value:
            found.append(Incompatibility(label, "", str(left.value), str(right.value)))
    if not found and (inner := _inner_shapes(pair)):
        before, after = min(inner[0].changed, default=inner[0].outputs)
        found.append(Incompatibility("width", inner[0].name, str(before), str(after)))
    for side, count in zip("AB", came_and_went(pair) if is_whole else (0, 0), strict=True):
        if count:
            found.append(Incompatibility(f"trained tensors only in {side}:", "", str(count), ""))
    return tuple(found)


def shards_missing(checkpoint: Checkpoint) -> tuple[Note, ...]:
    """Return what its reader said of missing shards."""
    return tuple(note for note in checkpoint.notes if note.is_warning and _SHARDS.search(note.template))


def is_incomplete(checkpoint: Checkpoint) -> bool:
    """Say whether shards are missing: what these hold did not come or go."""
    return bool(checkpoint.missing or shards_missing(checkpoint))


def config_changes(pair: Pair) -> tuple[Incompatibility, ...]:
    """Return the settings that changed and change what the network computes; empty without two configurations."""
    return tuple(Incompatibility("setting", d.what, d.a, d.b) for d in differences(pair) if d.how == "config")


def _vocabulary(pair: Pair) -> list[Incompatibility]:
    a, b = structure_a(pair), structure_b(pair)
    rows = known_int(a.attributes["vocabulary"]), known_int(b.attributes["vocabulary"])
    if rows[0] == rows[1] or (None in rows and a.kind == b.kind):
        return []
    return [Incompatibility("vocabulary", "", *("none" if n is None else str(n) for n in rows))]


def _heads(pair: Pair) -> list[Incompatibility]:
    """Return heads that only one side has, where nothing says that the embedding stands for them."""
    found = []
    for change in () if is_incomplete(pair.a) or is_incomplete(pair.b) else changes(pair):
        tensor = change.tensor
        if tensor.part.role == "head" and tensor.rule in (Rule.ADDED, Rule.REMOVED) and _is_matrix(tensor):
            sides = ("none", "present") if tensor.rule is Rule.ADDED else ("present", "none")
            found.append(Incompatibility("head", tensor.shown_name, *sides))
    return found


def _is_matrix(tensor: PairedTensor) -> bool:
    one = tensor.a or tensor.b
    return one is not None and len(one.shape) >= 2


def _configured_counts(pair: Pair) -> list[Incompatibility]:
    found = []
    for key, what in _COUNTS.items():
        left, right = pair.a.config.get(key), pair.b.config.get(key)
        if isinstance(left, int) and isinstance(right, int) and left != right:
            found.append(Incompatibility(what, key, str(left), str(right)))
    labels = [side.config.get(_LABELS_KEY) for side in (pair.a, pair.b)]
    counts = [len(label) for label in labels if isinstance(label, dict)]
    if len(counts) == 2 and counts[0] != counts[1]:
        found.append(Incompatibility("labels", _LABELS_KEY, *map(str, counts)))
    return found


def _reshaped(pair: Pair) -> list[_Reshaped]:
    found = []
    for tensor in pair.tensors:
        if tensor.rule not in (Rule.RESHAPED, Rule.ROWS) or not tensor.part.is_trained:
            continue
        a, b = pair.a.tensors.get(tensor.name_a), pair.b.tensors.get(tensor.name_b)
        if a is not None and b is not None and a.shape != b.shape and not (a.dtype.opaque or b.dtype.opaque):
            found.append(_as_reshaped(tensor, a, b))
    return found


def _as_reshaped(tensor: PairedTensor, a: Tensor, b: Tensor) -> _Reshaped:
    ends = [(_length(a, axis), _length(b, axis)) for axis in (0, 1)]
    if tensor.part.role in ("embedding", "position"):
        ends.reverse()
    is_ragged = len(a.shape) != len(b.shape) or a.shape[2:] != b.shape[2:]
    return _Reshaped(tensor.shown_name, tensor.part.role, ends[0], ends[1], is_ragged)


def _length(tensor: Tensor, axis: int) -> int:
    return tensor.shape[axis] if axis < len(tensor.shape) else 1


def _ends(pair: Pair, reshaped: Sequence[_Reshaped], is_output: bool) -> dict[str, tuple[int, int]]:
    """Return the widths at one end of the network that changed, by the matrix that shows it."""
    a, b = structure_a(pair), structure_b(pair)
    # With another depth, layers that are numbered stand elsewhere under the same name.
    by_role = bool({a.kind, b.kind} & {*_STACKED}) or a.depth != b.depth
    others = [tensor.inputs if is_output else tensor.outputs for tensor in reshaped if tensor.role != "vector"]
    found = {}
    for tensor in reshaped:
        if by_role:
            is_head = tensor.role == "head" or _CLASSIFIER.search(tensor.name) is not None
            is_end = is_head if is_output else tensor.role == "convolution"
        else:
            is_end = tensor.role not in (*_INNER, "vector", "norm", "embedding", "position")
            recurrent = _RECURRENT.search(tensor.name)
            is_end = is_end and (recurrent is None or (recurrent["side"] == "i" and not is_output))
        width = tensor.outputs if is_output else tensor.inputs
        if is_end and width[0] != width[1] and not any(_are_joined(width, other) for other in others):
            found[tensor.name] = width
    return found


def _are_joined(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Say whether two widths changed by the same factor, as those of a layer and of the next one do."""
    if other[0] == other[1]:
        return False
    for small, large in ((one, other), (other, one)):
        if small[0] and small[1] and large[0] % small[0] == 0 and large[0] // small[0] * small[1] == large[1]:
            return True
    return False


def _inner_shapes(pair: Pair) -> list[_Reshaped]:
    """Return the tensors whose new shape no end of the network explains."""
    reshaped = _reshaped(pair)
    ends = {*_ends(pair, reshaped, True).values(), *_ends(pair, reshaped, False).values()}
    ends |= {(int(found.a), int(found.b)) for found in _vocabulary(pair) if found.a.isdigit() and found.b.isdigit()}
    return [tensor for tensor in reshaped if tensor.is_ragged or not tensor.changed <= ends]


def came_and_went(pair: Pair) -> tuple[int, int]:
    """Count the trained tensors that only A and only B has; heads, rows of a vocabulary and adapters are none."""
    is_gguf = "gguf" in (pair.a.format, pair.b.format)
    alone = [
        change.status
        for change in changes(pair)
        if change.tensor.rule in (Rule.ADDED, Rule.REMOVED)
        and change.tensor.is_parameter
        and change.tensor.part.role not in ("head", "adapter")
        # GGUF files hold vectors that other formats compute, such as rope_freqs.
        and not (is_gguf and change.tensor.part.role == "vector")
    ]
    return alone.count(Status.REMOVED), alone.count(Status.ADDED)


@fact
def contradictions(pair: Pair) -> tuple[Incompatibility, ...]:
    """Return where the shapes of B contradict its own configuration.

    Only what holds in every family is looked at: rows and columns of the embedding and the number of blocks. Where A
    contradicts its configuration in the same way, the family counts otherwise, and nothing is said.
    """
    in_a = {found.what for found in _contradictions(pair.a, pair.anatomy_a, structure_a(pair))}
    in_b = _contradictions(pair.b, pair.anatomy_b, structure_b(pair))
    return tuple(found for found in in_b if found.what not in in_a)


def _contradictions(checkpoint: Checkpoint, anatomy: Anatomy, structure: Structure) -> list[Incompatibility]:
    config = checkpoint.config
    # GGUF configurations are partial, adapters carry that of their base, composed models one for each part.
    if not config or checkpoint.format == "gguf" or anatomy.names("adapter") or any(map(_NESTED.search, config)):
        return []
    tables = [checkpoint.tensors[name] for name in anatomy.names("embedding")]
    tables = [table for table in tables if len(table.shape) == 2 and not table.dtype.opaque]
    found = []
    for what, axis, keys in (("vocabulary", 0, (_VOCABULARY_KEY,)), ("hidden size", 1, _HIDDEN_KEYS)):
        key, stated = _stated(config.items(), keys)
        is_factored = axis == 1 and any(factored in config for factored in _FACTORED_KEYS)
        if tables and stated is not None and not is_factored and stated not in {t.shape[axis] for t in tables}:
            sizes = sorted({table.shape[axis] for table in tables})
            found.append(Incompatibility(what, key, str(stated), ", ".join(map(str, sizes))))
    key, stated = _stated(config.items(), _DEPTH_KEYS)
    blocks = {part.block for part in anatomy.parts.values() if part.block is not None}
    if stated is not None and blocks and len(blocks) < stated and structure.kind in _STACKED:
        found.append(Incompatibility("blocks", key, str(stated), str(len(blocks))))
    return found


def _stated(config: Iterable[tuple[str, object]], keys: tuple[str, ...]) -> tuple[str, int | None]:
    known = {key: value for key, value in config if isinstance(value, int) and not isinstance(value, bool)}
    return next(((key, known[key]) for key in keys if key in known), ("", None))


@fact
def ties(pair: Pair) -> tuple[Incompatibility, ...]:
    """Return the heads of B that should be its embedding and hold other numbers.

    They should be where B's configuration says so, where both hold the same bytes in A, and where A stores no head of
    its own and its configuration says that the embedding is the head. Compared by bytes.
    """
    told_b = pair.b.config.get("tie_word_embeddings") is True
    tied_a = bool(_tied(pair.a, pair.anatomy_a)) or (
        pair.a.config.get("tie_word_embeddings") is True and not pair.anatomy_a.names("head")
    )
    if not told_b and not tied_a:
        return ()
    tied_b = _tied(pair.b, pair.anatomy_b)
    return tuple(
        Incompatibility("tie", head, embedding, head)
        for embedding, head in _couples(pair.b, pair.anatomy_b)
        if (embedding, head) not in tied_b
    )


def has_ties(pair: Pair) -> bool:
    """Say whether there is a head that could be the embedding, in A or in B."""
    said = any(side.config.get("tie_word_embeddings") is True for side in (pair.a, pair.b))
    return said or bool(_couples(pair.a, pair.anatomy_a) or _couples(pair.b, pair.anatomy_b))


def _couples(checkpoint: Checkpoint, anatomy: Anatomy) -> list[tuple[str, str]]:
    """Return embeddings and heads of one shape whose codes can be compared."""

    def of(role: str) -> dict[str, Tensor]:
        tensors = {name: checkpoint.tensors[name] for name in anatomy.names(role)}
        return {name: t for name, t in tensors.items() if len(t.shape) == 2 and not t.dtype.packing}

    embeddings, heads = of("embedding"), of("head")
    return [(e, h) for e, table in embeddings.items() for h, head in heads.items() if table.shape == head.shape]


def _tied(checkpoint: Checkpoint, anatomy: Anatomy) -> set[tuple[str, str]]:
    couples = {(e, h): (checkpoint.tensors[e], checkpoint.tensors[h]) for e, h in _couples(checkpoint, anatomy)}
    return {names for names, (table, head) in couples.items() if _is_one(table, head) or same_bytes(table, head)}


def _is_one(table: Tensor, head: Tensor) -> bool:
    return table.place is not None and table.place == head.place
