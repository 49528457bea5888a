"""What a reader hands over: tensors by stored name, and everything that lay beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from diffai_jupyter.checkpoint.optimizer import OptimizerState
from diffai_jupyter.checkpoint.storage import Storage
from diffai_jupyter.checkpoint.tensor import Tensor
from diffai_jupyter.evidence import Value, unknown

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]
History = tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Note:
    """Something about a checkpoint that its reader must be told.

    Parameters
    ----------
    template : str
        Sentence with ``{key}`` fields, see `diffai_jupyter.wording.say`.
    said : mapping
        Its values; text from files as `diffai_jupyter.wording.Name`.
    is_warning : bool
        Whether it lowers the trust in the comparison.
    """

    template: str
    said: Mapping[str, object] = field(default_factory=dict)
    is_warning: bool = False


def _no_step() -> Value:
    return unknown("NEEDS_STEPS")


def _no_log() -> Value:
    return unknown("NEEDS_LOSS")


def _no_rate() -> Value:
    return unknown("NEEDS_LR")


def _no_optimizer() -> Value:
    return unknown("NEEDS_OPTIM")


@dataclass(frozen=True, slots=True)
class Training:
    """What is known about how a checkpoint was trained. Each field is a `Value`.

    Parameters
    ----------
    step : Value of int
        Optimizer steps done.
    losses : Value of History
        Training loss by step.
    metrics : Value of dict of str to History
        Evaluation metrics by step, as a log holds them, such as ``eval_loss``.
    final : Value of dict of str to float
        Evaluation metrics that were stated for this very checkpoint.
    grad_norms : Value of History
        Gradient norm by step, before clipping.
    lr : Value of History
        Learning rate by step.
    schedule : Value of str
        Name of the learning-rate schedule.
    batch : Value of int
        Samples per optimizer step.
    optimizer : Value of str
        Name of the optimizer.
    progress : Value of dict
        How far it came, by the names of its source: epoch, tokens seen, best metric so far.
    hyperparameters : Value of dict
        Everything else that was set, by its own name.
    """

    step: Value = field(default_factory=_no_step)
    losses: Value = field(default_factory=_no_log)
    metrics: Value = field(default_factory=_no_log)
    final: Value = field(default_factory=_no_log)
    grad_norms: Value = field(default_factory=_no_optimizer)
    lr: Value = field(default_factory=_no_rate)
    schedule: Value = field(default_factory=_no_rate)
    batch: Value = field(default_factory=lambda: unknown("NEEDS_SETTINGS"))
    optimizer: Value = field(default_factory=_no_optimizer)
    progress: Value = field(default_factory=_no_step)
    hyperparameters: Value = field(default_factory=lambda: unknown("NEEDS_SETTINGS"))


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """The tokenizer that lies beside the weights.

    Parameters
    ----------
    digest : str
        SHA-256 of its content: equal digests mean the same tokenizer.
    size : int, optional
        Entries of its vocabulary, added tokens included.
    files : tuple of str
        The files that were read.
    words : callable
        Reads the tokens by id, as they are stored, for those who ask; empty where the files do not tell.
    """

    digest: str
    size: int | None
    files: tuple[str, ...]
    words: Callable[[], Mapping[int, str]] = field(default=dict, compare=False, repr=False)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint, opened: headers are read, tensors are not.

    Parameters
    ----------
    source : str
        What the user gave: a path or the name of a variable.
    format : str
        Container format, such as ``"safetensors"``.
    tensors : mapping of str to Tensor
        By stored name, in sorted order.
    files : tuple of Storage
        Where the bytes are; empty for live objects.
    config : mapping
        ``config.json`` and its like; empty where none was found.
    metadata : mapping of str to str
        Metadata inside the container.
    training : Training
        What side-cars say of the training.
    optimizer_state : OptimizerState, optional
        What the optimizer kept for each parameter, where it was saved.
    tokenizer : Tokenizer, optional
        The tokenizer beside the weights.
    notes : tuple of Note
        What the reader must be told: missing shards, ignored files.
    missing : tuple of str
        Tensor names that an index promises and no file holds.
    live : object, optional
        The object in memory that was given, if it was one.
    words : callable
        Reads the tokens by row out of the files of the weights; empty where these list none.
    """

    source: str
    format: str
    tensors: Mapping[str, Tensor]
    files: tuple[Storage, ...] = ()
    config: Mapping[str, Json] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    training: Training = field(default_factory=Training)
    optimizer_state: OptimizerState | None = None
    tokenizer: Tokenizer | None = None
    notes: tuple[Note, ...] = ()
    missing: tuple[str, ...] = ()
    live: object | None = None
    words: Callable[[], Mapping[int, str]] = field(default=dict, repr=False)

    @cached_property
    def repeated(self) -> frozenset[str]:
        """Names whose elements are stored under a name before them already: tied weights."""
        seen, found = set(), set()
        for name, tensor in self.tensors.items():
            place = tensor.place
            if place is not None and place in seen:
                found.add(name)
            seen.add(place)
        return frozenset(found)

    @cached_property
    def nbytes(self) -> int:
        """Payload bytes, each storage counted once."""
        return sum(tensor.nbytes for name, tensor in self.tensors.items() if name not in self.repeated)

    @cached_property
    def size(self) -> int:
        """Number of elements, each storage counted once."""
        return sum(tensor.size for name, tensor in self.tensors.items() if name not in self.repeated)
