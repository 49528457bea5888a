"""What a network is asked for, and what passes through each of its matrices."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from diffai_jupyter.checkpoint.anatomy import Anatomy
from diffai_jupyter.checkpoint.model import Checkpoint
from diffai_jupyter.evidence import Unknowable
from diffai_jupyter.facts.network.architecture import Structure
from diffai_jupyter.facts.network.cost import is_encoder_only
from diffai_jupyter.facts.network.matrices import Matrix, is_output, is_table
from diffai_jupyter.facts.network.resolution import Resolution, is_kernel, resolution
from diffai_jupyter.facts.network.states import has_states

_ONCE = re.compile(
    r"(?:^|\.)(?:pooler|pre_classifier|classifier\w*|seq_relationship|score|head\w*|fc|text_projection|visual_projection)\."
)
_POOLER = re.compile(r"(?:^|\.)(?:pooler|seq_relationship)\.")
_ENCODER = re.compile(r"(?:^|\.)(?:encoder|enc)\.")
CROSS = re.compile(r"cross_?att|encoder_attn|EncDecAttention|crossattention")
IMAGE = re.compile(r"(?:^|\.)(?:vision\w*|visual|image_encoder|multi_modal_projector|mm_projector|connector)\.")
_QUERY_ENDS = ("q", "q_proj", "query", "wq", "to_q", "_q")
_GENERATES = re.compile(r"CausalLM|LMHead|DoubleHeads")
_EACH_TOKEN = re.compile(r"TokenClassification|QuestionAnswering|MaskedLM|PreTraining")
_ONE_FORWARD = re.compile(r"MaskedLM|SequenceClassification|TokenClassification|QuestionAnswering|PreTraining")
_ATTENTION = re.compile(r"(?:^|[._])attn|attention")
_SOUND = re.compile(r"(?:^|\.)feature_extractor\.conv_layers\.(?P<index>\d+)\.conv\.")


class Unit(Enum):
    """What a network is asked for: the unit of work that its speed is told for."""

    TOKEN = "token"
    SEQUENCE = "sequence"
    IMAGE = "image"
    STEP = "step"
    ROW = "row"
    ADAPTER = "position of an adapter"


class Passes(Enum):
    """What passes through a module."""

    TOKENS = "every token"
    SOURCE = "every token that an encoder reads"
    WORDS = "every token whose next word is predicted"
    FIXED = "a number of positions that the network fixes"


@dataclass(frozen=True, slots=True)
class Setting:
    """What the passage through a network depends on as a whole."""

    unit: Unit
    is_two_stacks: bool
    is_each_token: bool
    vocabulary: int
    source: int | None
    grid: Resolution | None
    architecture: str

    def gives_words(self, matrix: Matrix) -> bool:
        """Say whether a matrix has about as many outputs as there are words."""
        return self.vocabulary > 0 and max(matrix.sides) >= 0.9 * self.vocabulary


def setting_of(
    checkpoint: Checkpoint, anatomy: Anatomy, structure: Structure, found: tuple[Matrix, ...]
) -> Setting:
    """Read off a checkpoint what the passage through its network depends on.

    Raises
    ------
    Unknowable
        ``NO_TARGET`` for networks of no known layout, ``NEEDS_CONFIG`` where an image size is missing.
    """
    architectures = checkpoint.config.get("architectures")
    architecture = str(architectures[0]) if isinstance(architectures, list) and architectures else ""
    is_two_stacks = structure.kind == "transformer" and "encoder and decoder" in structure.sub_labels
    tables = [
        checkpoint.tensors[name] for name, part in anatomy.parts.items()
        if len(checkpoint.tensors[name].shape) == 2 and part.role != "position" and is_table(name, part)
    ]  # fmt: skip
    unit = _unit(checkpoint, anatomy, structure, found, architecture, bool(tables), is_two_stacks)
    has_image = unit is Unit.IMAGE or any(IMAGE.search(m.name) for m in found)
    has_kernels = structure.kind in ("cnn", "mlp") and any(is_kernel(m.tensor) for m in found)
    needs_grid = (unit is Unit.IMAGE or has_kernels or has_image) and unit is not Unit.TOKEN
    return Setting(
        unit,
        is_two_stacks,
        _EACH_TOKEN.search(architecture) is not None,
        max((table.shape[0] for table in tables), default=0),
        _fixed_source(found, anatomy, checkpoint) if is_two_stacks else None,
        resolution(checkpoint, anatomy) if needs_grid else None,
        architecture,
    )


def _unit(
    checkpoint: Checkpoint, anatomy: Anatomy, structure: Structure, found: tuple[Matrix, ...],
    architecture: str, has_words: bool, is_two_stacks: bool,
) -> Unit:
    kind = structure.kind
    if all(matrix.role == "adapter" for matrix in found):
        return Unit.ADAPTER
    is_odd = kind in ("cnn", "mlp") and has_words and any(_ATTENTION.search(m.name) for m in found)
    is_mixed = kind == "hybrid" and not has_states(checkpoint) and not any(_SOUND.search(m.name) for m in found)
    if is_odd or is_mixed or structure.is_diffusion or kind == "unknown":
        raise Unknowable("NO_TARGET", known_layout=False)
    if kind in ("cnn", "mlp"):
        return Unit.IMAGE if any(len(m.tensor.shape) == 4 for m in found) else Unit.ROW
    if kind == "rnn":
        return Unit.TOKEN if any("receptance" in m.name for m in found) else Unit.STEP
    if not has_words and any(len(m.tensor.shape) >= 4 for m in found):
        return Unit.IMAGE
    if is_two_stacks:
        return Unit.SEQUENCE
    if _GENERATES.search(architecture):
        return Unit.TOKEN
    is_scored = any(is_output(m.name, anatomy.parts[m.name]) and re.search(r"score|classifier", m.name) for m in found)
    if _ONE_FORWARD.search(architecture) or is_scored or is_encoder_only(checkpoint, anatomy):
        return Unit.SEQUENCE
    return Unit.TOKEN


def passes_of(matrix: Matrix, setting: Setting) -> tuple[Passes, float]:
    """Return what passes through a matrix, and at how many positions for each of them."""
    name, grid = matrix.name, setting.grid
    is_once = matrix.block is None and _ONCE.search(name) is not None
    if setting.unit in (Unit.ROW, Unit.STEP):
        return Passes.FIXED, grid.positions.get(name, 1.0) if grid else 1.0
    if grid and (setting.unit is Unit.IMAGE or IMAGE.search(name)):
        usual = float(grid.rows) if grid.rows and not is_once else 1.0
        return Passes.FIXED, grid.positions.get(name, usual)
    if matrix.role == "head" and setting.gives_words(matrix):
        return Passes.WORDS, 1.0
    if is_once or matrix.role == "head":
        is_each = setting.is_each_token and not _POOLER.search(name)
        return (Passes.WORDS, 1.0) if is_each or setting.unit is Unit.TOKEN else (Passes.FIXED, 1.0)
    each = _sound_positions(name, matrix)
    is_query = name.rpartition(".")[0].endswith(_QUERY_ENDS)
    is_crossed = matrix.role == "attention in" and CROSS.search(name) is not None and not is_query
    if setting.is_two_stacks and (is_crossed or _ENCODER.search(name)):
        return Passes.SOURCE, each
    return Passes.TOKENS, each


def _sound_positions(name: str, matrix: Matrix) -> float:
    """Return how many positions of sound a kernel sees for each token behind it: later kernels leave out every other.

    Whisper has a stride of two in the second of two, wav2vec 2.0 in the last six of seven.
    """
    if matrix.role != "convolution":
        return 1.0
    if name.endswith("encoder.conv1.weight"):
        return 2.0
    found = _SOUND.search(name)
    return 2.0 ** max(0, 6 - int(found["index"])) if found else 1.0


def _fixed_source(found: tuple[Matrix, ...], anatomy: Anatomy, checkpoint: Checkpoint) -> int | None:
    """Return the rows of the position table of an encoder that begins with kernels: it reads no words."""
    if not any(is_kernel(matrix.tensor) and _ENCODER.search(matrix.name) for matrix in found):
        return None
    tables = [checkpoint.tensors[name] for name in anatomy.names("position") if _ENCODER.search(name)]
    return max((table.shape[-2] for table in tables if len(table.shape) >= 2), default=None)
