"""What a checkpoint file says of its training beside the weights: step, settings, the state of the optimizer."""

from __future__ import annotations

from diffai_jupyter.checkpoint.model import Note, Training
from diffai_jupyter.checkpoint.optimizer import OptimizerState
from diffai_jupyter.errors import SourceError
from diffai_jupyter.readers.sidecars.graph import Graph
from diffai_jupyter.readers.sidecars.lightning import read_inside
from diffai_jupyter.readers.sidecars.optimizer.state import read_optimizer
from diffai_jupyter.wording import Name


def training_of(graph: Graph) -> tuple[Training, OptimizerState | None, list[Note]]:
    """Return what a file says of the training, what its optimizer kept, and what of that could not be read."""
    try:
        training = read_inside(graph)
    except SourceError as error:
        template = "What {file} says of the training could not be read and was left aside: {error}"
        return Training(), None, [Note(template, {"file": Name(graph.name), "error": Name(error)}, is_warning=True)]
    return training, *read_optimizer(graph)
