"""What one file holds, whatever its format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from diffai_jupyter.checkpoint.model import Json, Note, Training
from diffai_jupyter.checkpoint.optimizer import OptimizerState
from diffai_jupyter.checkpoint.storage import Storage
from diffai_jupyter.checkpoint.tensor import Tensor

TENSOR_LIMIT = 500_000
RANK_LIMIT = 32


@dataclass(frozen=True)
class Container:
    """What a file says of itself; no tensor is read yet.

    Parameters
    ----------
    file : Storage
        The file.
    format : str
        Name of the format, such as ``"safetensors"``.
    tensors : dict of str to Tensor
        By stored name, in sorted order.
    metadata : mapping of str to str
        Text inside the file; empty where there is none.
    config : mapping
        Model configuration inside the file, under the names that ``config.json`` uses.
    training : Training
        What the file says of the training.
    optimizer : OptimizerState, optional
        What the optimizer kept, where the file holds it.
    order : tuple of str
        Names of the tensors in the order of the model; empty where the file does not keep it.
    notes : tuple of Note
        What the reader must be told.
    words : callable, optional
        Reads the tokens by row, where the file lists them.
    """

    file: Storage
    format: str
    tensors: dict[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Json] = field(default_factory=dict)
    training: Training = field(default_factory=Training)
    optimizer: OptimizerState | None = None
    order: tuple[str, ...] = ()
    notes: tuple[Note, ...] = ()
    words: Callable[[], Mapping[int, str]] | None = None
