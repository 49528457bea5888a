"""Files and folders as machine-learning libraries write them."""

from __future__ import annotations

import os

from diffai_jupyter.checkpoint.model import Checkpoint, Note
from diffai_jupyter.checkpoint.storage import Storage
from diffai_jupyter.errors import SourceError
from diffai_jupyter.readers.documents import read_document
from diffai_jupyter.readers.formats.detection import READS, known_by_name, open_container, read_by_name
from diffai_jupyter.readers.layouts import grouped
from diffai_jupyter.readers.sidecars.beside import Inside, read_sidecars
from diffai_jupyter.readers.sidecars.optimizer.names import with_names
from diffai_jupyter.readers.sidecars.steps import step_in_name
from diffai_jupyter.readers.sources.links import is_plain
from diffai_jupyter.readers.sources.places import LocalPlace, Place
from diffai_jupyter.readers.sources.shards import Shards, read_index, shard_note
from diffai_jupyter.readers.sources.weights import (
    LOOKED_FOR,
    index_pattern,
    read_weights,
    readable,
    unrelated,
)
from diffai_jupyter.wording import Name, listed, some

_PIPELINE = "model_index.json"


class NoWeights(SourceError):  # noqa: N818  (it is an answer as well)
    """A folder is no checkpoint by itself; there may be checkpoints in it."""


def open_file(file: Storage, place: Place, name: str, source: str) -> Checkpoint:
    """Open one file, or the shards of one index, with the side-cars beside it.

    Parameters
    ----------
    file : Storage
        The file; it was named by the user, so that it may be a link to anywhere.
    place : Place
        The folder it lies in.
    name : str
        Its name there.
    source : str
        What the user gave.

    Raises
    ------
    SourceError
        If it is no checkpoint, or damaged.
    """
    if index_pattern().fullmatch(name):
        return _assemble(read_index(place, name), place, source)
    shards = Shards()
    container = open_container(file)
    shards.add(container, container.tensors)
    if note := shard_note(name):
        shards.notes.append(note)
    return _assemble(shards, place, source, only=name)


def open_folder(place: Place, source: str) -> Checkpoint:
    """Open a folder that holds a checkpoint.

    Raises
    ------
    NoWeights
        If nothing in it is a checkpoint of the folder as a whole.
    SourceError
        If what it holds is damaged.
    """
    names = place.names()
    shards = read_weights(place, names)
    if shards is None and _PIPELINE in names:
        shards = _read_pipeline(place)
    if shards is None:
        raise NoWeights(_nothing_found(place, names))
    # Elsewhere a look into every folder costs a request each.
    folders = place.folders() if isinstance(place, LocalPlace) and _PIPELINE not in names else []
    if others := [name for name in folders if _holds_some(place, name)]:
        template = "Its folders {folders} hold checkpoints as well, which were not compared."
        shards.notes.append(Note(template, {"folders": some(others)}))
    return _assemble(shards, place, source)


def _assemble(shards: Shards, place: Place, source: str, only: str = "") -> Checkpoint:
    """Put weights and side-cars together; `only` is the file that was given by itself."""
    inside = Inside(shards.training, shards.optimizer, shards.metadata)
    folder = os.path.abspath(place.path) if isinstance(place, LocalPlace) else place.path  # noqa: PTH100
    others = unrelated(only, _listed(place)) if only else ()
    beside = read_sidecars(place, inside, step_in_name(folder, only), only, others)
    config = {**shards.config, **beside.config}
    order = shards.order if len(shards.order) == len(shards.tensors) else None
    optimizer, notes = with_names(beside.optimizer, shards.tensors, order, config)
    return Checkpoint(
        source=source,
        format=" and ".join(dict.fromkeys(shards.formats)),
        tensors=grouped(shards.tensors, config, shards.metadata),
        files=tuple(sorted(shards.files, key=lambda file: file.path)),
        config=config,
        metadata=shards.metadata,
        training=beside.training,
        optimizer_state=optimizer,
        tokenizer=beside.tokenizer,
        notes=(*shards.notes, *beside.notes, *notes),
        missing=tuple(sorted(shards.missing)),
        words=shards.words or dict,
    )


def _listed(place: Place) -> list[str]:
    """Return the names in a folder; none where only single files of it may be read."""
    try:
        return place.names()
    except SourceError:
        return []


def _read_pipeline(place: Place) -> Shards | None:
    """Read the components that a diffusers ``model_index.json`` names."""
    pipeline, folders = Shards(), place.folders()
    for component, classes in sorted(read_document(place.file(_PIPELINE)).items()):
        # [library, class]; both are null where the pipeline goes without this component
        if not isinstance(classes, list) or len(classes) != 2 or None in classes or component.startswith("_"):
            continue
        if not is_plain(component) or component not in folders:
            said = {"index": Name(_PIPELINE), "name": Name(component)}
            pipeline.warn("{index} names the component {name}, which is not there.", **said)
            continue
        inside = place.inside(component)
        names = inside.names()
        if part := read_weights(inside, names):
            pipeline.add_component(component, part)
        elif foreign := [name for name in names if known_by_name(name)]:
            pipeline.warn(
                "Component {name} was not compared: nothing tells how to read {files}.",
                name=Name(component), files=some(foreign),
            )
    return pipeline if pipeline.tensors else None


def _nothing_found(place: Place, names: list[str]) -> str:
    """Say what was looked for, and what is there instead."""
    message = f"{place.path}: there are no weights to read in this folder; looked for {LOOKED_FOR}."
    if several := [name for name in names if read_by_name(name)]:
        return f"{message} It holds {listed(several)}: give one of them."
    if foreign := [name for name in names if known_by_name(name)]:
        return f"{message} It holds {listed(foreign)}. {READS}; convert them to safetensors."
    inside = [name for name in place.folders() if _holds_some(place, name)]
    if inside:
        return f"{message} Its folders {listed(inside)} hold some: give one of them."
    return f"{message} Give a folder that holds one of these."


def _holds_some(place: Place, folder: str) -> bool:
    try:
        return bool(readable(place.inside(folder).names()))
    except SourceError:  # it may not be listed
        return False
