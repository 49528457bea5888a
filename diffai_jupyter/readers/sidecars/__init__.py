"""Side-cars: what lies beside the weights and says how they came about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from diffai_jupyter.checkpoint.model import Json, Note, Training
from diffai_jupyter.readers.sidecars.config import read_config
from diffai_jupyter.readers.sidecars.folder import SidecarFolder
from diffai_jupyter.readers.sidecars.kohya import read_kohya
from diffai_jupyter.readers.sidecars.results import read_results
from diffai_jupyter.readers.sidecars.trainer import read_trainer
from diffai_jupyter.readers.sidecars.training import strongest
from diffai_jupyter.readers.sources.places import Place


@dataclass(frozen=True, slots=True)
class Sidecars:
    """What was found beside the weights.

    Parameters
    ----------
    config : mapping
        ``config.json``, with its like under keys of their own.
    training : Training
        What the logs say.
    logs : tuple of str
        The files that `training` rests on; metadata inside the weights do not count.
    notes : tuple of Note
        Which side-cars could not be read.
    """

    config: Mapping[str, Json]
    training: Training
    logs: tuple[str, ...]
    notes: tuple[Note, ...]


def read_sidecars(place: Place, metadata: Mapping[str, str]) -> Sidecars:
    """Read the side-cars of a folder; a damaged one becomes a note.

    Parameters
    ----------
    place : Place
        Where the weights lie.
    metadata : mapping of str to str
        Metadata inside the weights, which may hold training facts as well.
    """
    files = SidecarFolder(place)
    config = read_config(files)
    # within a field the trainer's own log is believed before what was copied into metadata
    training = strongest(read_trainer(files), read_kohya(metadata))
    training = strongest(training, read_results(files, training.step))
    logs = tuple(name for name in files.found if name.endswith(("_state.json", "_results.json")))
    return Sidecars(config, training, logs, tuple(files.notes))
