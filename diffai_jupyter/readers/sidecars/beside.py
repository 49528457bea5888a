"""Everything that lies beside the weights, put together by how far each source is believed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial, reduce

from diffai_jupyter.checkpoint.model import Json, Note, Tokenizer, Training
from diffai_jupyter.checkpoint.optimizer import OptimizerState
from diffai_jupyter.readers.sidecars.arguments import read_arguments
from diffai_jupyter.readers.sidecars.card import read_card
from diffai_jupyter.readers.sidecars.config import read_config
from diffai_jupyter.readers.sidecars.folder import SidecarFolder
from diffai_jupyter.readers.sidecars.kohya import read_kohya
from diffai_jupyter.readers.sidecars.optimizer.state import read_optimizer
from diffai_jupyter.readers.sidecars.optimizer.training import with_optimizer
from diffai_jupyter.readers.sidecars.results import read_results
from diffai_jupyter.readers.sidecars.scheduler import read_scheduler, scheduler_in
from diffai_jupyter.readers.sidecars.tokenizer import read_tokenizer
from diffai_jupyter.readers.sidecars.trainer import read_trainer
from diffai_jupyter.readers.sidecars.training import strongest, with_rate
from diffai_jupyter.readers.sources.places import Place
from diffai_jupyter.wording import Name, some

_OPTIMIZERS = ("optimizer.pt", "optimizer.bin")
_SCHEDULERS = ("scheduler.pt", "scheduler.bin")
_ARGUMENTS = "training_args.bin"
OF_ONE_RUN = (
    "trainer_state.json", *_OPTIMIZERS, *_SCHEDULERS, _ARGUMENTS, "eval_results.json", "test_results.json",
    "all_results.json", "train_results.json",
)  # fmt: skip
"""Side-cars that describe one checkpoint of one run, and no other in their folder."""


@dataclass(frozen=True, slots=True)
class Inside:
    """What the files of the weights say of themselves.

    Parameters
    ----------
    training : Training
        Of the training.
    optimizer : OptimizerState, optional
        The state of the optimizer, where it was saved with the weights.
    metadata : mapping of str to str
        Text inside the files.
    """

    training: Training
    optimizer: OptimizerState | None
    metadata: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Sidecars:
    """What is known besides the weights.

    Parameters
    ----------
    config : mapping
        ``config.json``, with its like under keys of their own.
    training : Training
        What side-cars and the files themselves say of the training.
    optimizer : OptimizerState, optional
        The state of the optimizer, without the names of the weights.
    tokenizer : Tokenizer, optional
        The tokenizer.
    notes : tuple of Note
        Which side-cars could not be read, and which were left aside.
    """

    config: Mapping[str, Json]
    training: Training
    optimizer: OptimizerState | None
    tokenizer: Tokenizer | None
    notes: tuple[Note, ...]


def read_sidecars(
    place: Place, inside: Inside, named: Training, file: str = "", others: tuple[str, ...] = ()
) -> Sidecars:
    """Read the side-cars of a folder; a damaged one becomes a note.

    Within a field the first source that knows it is believed: the optimizer, its scheduler, the log of the trainer,
    the file of the weights, what the trainer was told, metadata of an adapter, results at the end of the run, the
    card of the model, and last the names of file and folder.

    Parameters
    ----------
    place : Place
        Where the weights lie.
    inside : Inside
        What the weights themselves say.
    named : Training
        What the names of file and folder say.
    file : str
        The file that was given by itself; empty for the folder as a whole.
    others : tuple of str
        Other checkpoints in the folder: whose the side-cars are cannot be told then, and none is read.
    """
    files = SidecarFolder(place)
    config, tokenizer = read_config(files), read_tokenizer(files)
    own = strongest(inside.training, read_kohya(inside.metadata))
    if others:
        if shared := files.present(OF_ONE_RUN):
            files.notes.append(_left_aside(shared, others, file))
        found = _dated(own, inside.optimizer, named)
        return Sidecars(config, found, inside.optimizer, tokenizer, tuple(files.notes))
    optimizer = inside.optimizer or _optimizer(files)
    log = read_trainer(files)
    step = _dated(strongest(log, own), optimizer, named).step
    scheduler = _scheduler(files, step.value if step.is_known else None)
    found = reduce(strongest, (with_rate(scheduler, log), inside.training, _arguments(files), own))
    found = reduce(strongest, (found, read_results(files, step), read_card(files)))
    return Sidecars(config, _dated(found, optimizer, named), optimizer, tokenizer, tuple(files.notes))


def _dated(training: Training, optimizer: OptimizerState | None, named: Training) -> Training:
    """Complete what is known by the optimizer; the step in a name counts where nothing else tells it."""
    known = with_optimizer(training, optimizer)
    return known if known.step.is_known else with_optimizer(strongest(training, named), optimizer)


def _left_aside(shared: list[str], others: tuple[str, ...], file: str) -> Note:
    template = (
        "{logs} lies beside several checkpoints ({others}), and was not read: nothing tells that it describes "
        "{file}. Put each checkpoint into a folder of its own."
    )
    return Note(template, {"logs": some(shared), "others": some(others), "file": Name(file)}, is_warning=True)


def _optimizer(files: SidecarFolder) -> OptimizerState | None:
    for name in _OPTIMIZERS:
        if (graph := files.graph(name)) is not None:
            state, notes = read_optimizer(graph)
            files.notes += notes
            if state is not None:
                return state
    return None


def _scheduler(files: SidecarFolder, step: int | None) -> Training:
    for name in _SCHEDULERS:
        graph = files.graph(name)
        found = None if graph is None else scheduler_in(graph)
        if graph is not None and found is not None:
            return files.guarded(name, partial(read_scheduler, graph, found, name, step))
    return Training()


def _arguments(files: SidecarFolder) -> Training:
    graph = files.graph(_ARGUMENTS)
    return Training() if graph is None else files.guarded(_ARGUMENTS, partial(read_arguments, graph))
