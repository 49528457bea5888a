"""A network as what has to be computed: matrices, attention and state updates, from headers and configuration.

Matrices that engines multiply at once are one module, whether they are stored apart or fused: queries, keys and
values; gate and up; the experts of a block. So one model stored in two ways costs the same.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from diffai_jupyter.checkpoint.anatomy import Anatomy
from diffai_jupyter.checkpoint.model import Checkpoint
from diffai_jupyter.checkpoint.quantized import Merged
from diffai_jupyter.evidence import Unknowable
from diffai_jupyter.facts import fact
from diffai_jupyter.facts.network.architecture import Structure, known_int, structure_a, structure_b
from diffai_jupyter.facts.network.attention import attention_widths, window_of
from diffai_jupyter.facts.network.behavior import language_config
from diffai_jupyter.facts.network.matrices import Matrix, active_experts, is_table, joined_width, matrices
from diffai_jupyter.facts.network.passage import CROSS, IMAGE, Passes, Setting, Unit, passes_of, setting_of
from diffai_jupyter.facts.network.states import leaves_out_state, state_of
from diffai_jupyter.scan.pair import Pair

_SHARED = re.compile(r"albert_layer_groups\.")
_WORDS = re.compile(r"CausalLM|LMHead|MaskedLM|ConditionalGeneration|Seq2Seq|DoubleHeads")
_WORD_TRANSFORM = re.compile(r"(?:^|\.)predictions\.(?:transform|dense)\.|vocab_transform\.|lm_head\.dense\.")
_SCAN = 3
"""Half of the operations that one element of a state takes at one position: decay, input and output, two each."""


class Caveat(Enum):
    """What a count rests on that the checkpoint does not say itself."""

    DENSE_BOUND = "all experts"
    TIED_HEAD = "tied head"
    IMAGE_SIZE = "image size"
    STRIDES = "strides"
    STATE = "state update"
    MERGED = "merged adapter"


@dataclass(frozen=True, slots=True)
class Module:
    """Matrices that one kernel multiplies with.

    Parameters
    ----------
    name : str
        Stored name of the module that holds them.
    role : str
        What it does: ``"attention in"``, ``"feed-forward out"``, ``"head"``, …
    block : int, optional
        Index of its block.
    elements : int
        Elements that one position is multiplied with; of experts, all of them.
    stored : int
        Bytes of the matrices as stored.
    width : int
        Numbers that go in and come out at one position.
    passes : Passes
        What passes through.
    positions : float
        How many positions there are for each of them, or in one image or sequence where the network fixes it.
    experts, active : int
        How many experts there are and how many of them one position passes through.
    dtype : str
        The dtype that most of its bytes are stored in.
    repeats : int
        How often it is used in turn.
    """

    name: str
    role: str
    block: int | None
    elements: int
    stored: int
    width: int
    passes: Passes
    positions: float = 1.0
    experts: int = 1
    active: int = 1
    dtype: str = ""
    repeats: int = 1


@dataclass(frozen=True, slots=True)
class Attention:
    """Scores and weighted values of one attention layer.

    Parameters
    ----------
    name : str
        Stored name of the layer.
    block : int, optional
        Index of its block.
    scored : int
        Numbers that one query is multiplied with for one key and its value, over all heads.
    cached : int
        Numbers of one key and its value.
    window : int, optional
        Keys that a query sees at most.
    queries, keys : Passes
        What asks and what is looked at.
    positions : float
        Queries for each of them, or of one image where the network fixes them.
    repeats : int
        How often it is used in turn.
    """

    name: str
    block: int | None
    scored: int
    cached: int
    window: int | None
    queries: Passes
    keys: Passes
    positions: float = 1.0
    repeats: int = 1


@dataclass(frozen=True, slots=True)
class Network:
    """A network as what has to be computed.

    Parameters
    ----------
    unit : Unit
        What it is asked for.
    modules : tuple of Module
        In the order of their names.
    attentions : tuple of Attention
        Likewise.
    longest : int, optional
        Longest context in tokens.
    source : int, optional
        Positions of an encoder that always reads the same length, such as 30 seconds of sound.
    caveats : frozenset of Caveat
        What the counts rest on.
    side : int, optional
        Side of an image in pixels, where positions follow from it.
    """

    unit: Unit
    modules: tuple[Module, ...]
    attentions: tuple[Attention, ...]
    longest: int | None
    source: int | None
    caveats: frozenset[Caveat]
    side: int | None = None


@fact
def network_a(pair: Pair) -> Network:
    """Return what A computes."""
    return network(pair.a, pair.anatomy_a, structure_a(pair))


@fact
def network_b(pair: Pair) -> Network:
    """Return what B computes."""
    return network(pair.b, pair.anatomy_b, structure_b(pair))


def network(checkpoint: Checkpoint, anatomy: Anatomy, structure: Structure) -> Network:
    """Read a network off its names, shapes and configuration. Reads no tensor.

    Raises
    ------
    Unknowable
        ``NO_TARGET`` where nothing is multiplied with or the network is of no known kind; ``NEEDS_CONFIG`` where
        neither shapes nor configuration say how often a matrix is used; ``NOT_DEQUANTIZABLE`` where packed codes
        hide the shape of a matrix.
    """
    found = matrices(checkpoint, anatomy, structure.kind == "rnn")
    if not found:
        raise Unknowable("NO_TARGET", matrices=0)
    setting = setting_of(checkpoint, anatomy, structure, found)
    used = tuple(m for m in found if not (setting.unit is Unit.TOKEN and IMAGE.search(m.name)))
    modules, is_dense = _modules(used, setting, checkpoint)
    tied, is_assumed = _tied_head(checkpoint, anatomy, setting, used)
    is_scored = setting.unit is not Unit.ADAPTER and structure.kind != "rnn"
    attentions = _attentions(used, anatomy, checkpoint, setting) if is_scored else ()
    if structure.kind == "transformer" and is_scored and not attentions:
        raise Unknowable("NO_TARGET", known_layout=False)
    caveats = {
        Caveat.DENSE_BOUND: is_dense,
        Caveat.TIED_HEAD: is_assumed,
        Caveat.IMAGE_SIZE: setting.grid is not None and not setting.grid.is_stated and setting.grid.is_family_known,
        Caveat.STRIDES: setting.grid is not None and not setting.grid.is_family_known,
        Caveat.STATE: leaves_out_state(checkpoint),
        Caveat.MERGED: any(isinstance(matrix.tensor, Merged) for matrix in used),
    }
    return Network(
        setting.unit,
        (*modules, *_scans(checkpoint, anatomy), *tied),
        attentions,
        known_int(structure.attributes["context"]),
        setting.source,
        frozenset(caveat for caveat, holds in caveats.items() if holds),
        setting.grid.side if setting.grid else None,
    )


def _modules(
    found: tuple[Matrix, ...], setting: Setting, checkpoint: Checkpoint
) -> tuple[tuple[Module, ...], bool]:
    """Join the matrices that one kernel takes; say whether all experts count for want of a configuration."""
    groups: dict[tuple[str, str, Passes, float], list[Matrix]] = {}
    for matrix in found:
        groups.setdefault((matrix.group, matrix.role, *passes_of(matrix, setting)), []).append(matrix)
    modules, is_dense = [], False
    for (name, role, passes, positions), group in groups.items():
        indices = {matrix.expert for matrix in group if matrix.expert is not None}
        experts = max(len(indices), *(matrix.experts for matrix in group))
        active = active_experts(language_config(checkpoint.config), experts) if experts > 1 else 1
        is_dense = is_dense or active is None
        largest = max(group, key=lambda matrix: matrix.stored)
        modules.append(
            Module(
                name.rstrip("."),
                role,
                group[0].block,
                sum(matrix.elements for matrix in group),
                sum(matrix.stored for matrix in group),
                joined_width(tuple(m for m in group if m.expert == group[0].expert)),
                passes,
                positions,
                experts,
                active or experts,
                largest.tensor.dtype.name,
                _repeats(group[0].name, checkpoint),
            )
        )
    return tuple(modules), is_dense


def _repeats(name: str, checkpoint: Checkpoint) -> int:
    """Return how often a module is used in turn: ALBERT shares its layers.

    Raises
    ------
    Unknowable
        ``NEEDS_CONFIG`` where the configuration does not say how many layers there are.
    """
    if not _SHARED.search(name):
        return 1
    layers, groups = (checkpoint.config.get(key) for key in ("num_hidden_layers", "num_hidden_groups"))
    if not isinstance(layers, int):
        raise Unknowable("NEEDS_CONFIG", missing="num_hidden_layers")
    return max(1, layers // groups if isinstance(groups, int) and groups > 0 else layers)


def _attentions(
    matrices_used: tuple[Matrix, ...], anatomy: Anatomy, checkpoint: Checkpoint, setting: Setting
) -> tuple[Attention, ...]:
    by_name = {matrix.name: matrix for matrix in matrices_used}
    tensors = {name: matrix.tensor for name, matrix in by_name.items()}
    config = language_config(checkpoint.config)
    found = []
    for widths in attention_widths(tensors, anatomy, config):
        queries, positions = passes_of(by_name[widths.first], setting)
        is_image = queries is Passes.FIXED
        is_crossed = setting.is_two_stacks and CROSS.search(widths.path) is not None
        windows = setting.grid.windows if setting.grid else {}
        window = next((count for prefix, count in windows.items() if widths.first.startswith(prefix)), None)
        found.append(
            Attention(
                widths.path,
                widths.block,
                widths.scored,
                widths.cached,
                window if is_image or is_crossed else window_of(config, widths.block),
                queries,
                Passes.SOURCE if is_crossed else queries,
                positions,
                _repeats(widths.first, checkpoint),
            )
        )
    return tuple(found)


def _tied_head(
    checkpoint: Checkpoint, anatomy: Anatomy, setting: Setting, found: tuple[Matrix, ...]
) -> tuple[tuple[Module, ...], bool]:
    """Return the head that is the table of words itself, and whether that it is there had to be assumed."""
    tables = [
        (name, checkpoint.tensors[name]) for name, part in anatomy.parts.items()
        if is_table(name, part) and checkpoint.tensors[name].shape[:1] == (setting.vocabulary,)
    ]  # fmt: skip
    if not tables or any(matrix.role == "head" and setting.gives_words(matrix) for matrix in found):
        return (), False
    is_tied = checkpoint.config.get("tie_word_embeddings")
    has_transform = any(_WORD_TRANSFORM.search(matrix.name) for matrix in found)
    is_assumed = False
    if setting.architecture:
        is_pretraining = "PreTraining" in setting.architecture and has_transform
        has_head = is_pretraining or _WORDS.search(setting.architecture) is not None
    else:
        has_head = setting.unit is Unit.TOKEN or setting.is_two_stacks or has_transform
        has_head = has_head and is_tied is not False
        is_assumed = has_head and is_tied is not True
    if not has_head:
        return (), False
    name, table = max(tables, key=lambda item: (item[1].size, item[0]))
    head = Module(
        name.rpartition(".")[0], "head", None, table.size, table.nbytes, sum(table.shape), Passes.WORDS,
        dtype=table.dtype.name,
    )  # fmt: skip
    return (head,), is_assumed


def _scans(checkpoint: Checkpoint, anatomy: Anatomy) -> tuple[Module, ...]:
    """Return the state updates of state-space layers, as far as the size of their state is known."""
    found = []
    for name, tensor in checkpoint.tensors.items():
        state = state_of(name, checkpoint)
        if state:
            module, block = name.rpartition(".")[0], anatomy.parts[name].block
            width, dtype = 2 * tensor.shape[0], tensor.dtype.name
            found.append(
                Module(module, "scan", block, _SCAN * state, tensor.nbytes, width, Passes.TOKENS, dtype=dtype)
            )
    return tuple(found)
