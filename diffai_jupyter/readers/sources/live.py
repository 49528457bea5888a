"""Objects in memory: state dicts, modules, dicts of arrays, single arrays."""

from __future__ import annotations

from collections.abc import Mapping

from diffai_jupyter.checkpoint.model import Checkpoint, Json
from diffai_jupyter.checkpoint.tensor import ArrayTensor, Tensor
from diffai_jupyter.errors import SourceError
from diffai_jupyter.readers.formats.pytorch.training import training_of
from diffai_jupyter.readers.layouts import grouped
from diffai_jupyter.readers.nesting import Contents, Nesting, unwrapped
from diffai_jupyter.readers.sidecars.graph import Graph
from diffai_jupyter.readers.sidecars.optimizer.names import with_names
from diffai_jupyter.readers.sidecars.optimizer.training import with_optimizer
from diffai_jupyter.readers.sources.arrays import codes_of, is_array
from diffai_jupyter.wording import show_name

_PLAIN = (bool, int, float, str, list, dict, type(None))
_EXPECTED = "Give a state dict, a module, a dict of arrays, or the path of a file or folder"


def open_live(source: object, name: str = "") -> Checkpoint:
    """Open an object in memory; its arrays are not copied where that can be avoided.

    Parameters
    ----------
    source : object
        A mapping of names to arrays, nested or not; an object with a ``state_dict()`` method; an array.
    name : str
        Name of the variable.

    Raises
    ------
    SourceError
        If it holds no arrays.
    """
    title = name or type(source).__name__
    whole = _mapping_of(source, title)
    found, aside = unwrapped(whole, _CONTENTS)
    nesting = Nesting(title, _CONTENTS)
    nesting.take("", found)
    if not nesting.tensors:
        raise SourceError(_nothing_found(title, nesting))
    config = _config_of(source)
    training, state, notes = training_of(Graph(title, whole, _CONTENTS))
    state, unnamed = with_names(state, nesting.tensors, tuple(nesting.tensors), config)
    return Checkpoint(
        source=title,
        format="live",
        tensors=grouped(nesting.tensors, config, {}),
        config=config,
        training=with_optimizer(training, state),
        optimizer_state=state,
        notes=(*aside, *nesting.notes(), *notes, *unnamed),
        live=source,
    )


def _config_of(source: object) -> dict[str, Json]:
    """Return the configuration that a model of the transformers library carries, and that of its adapter."""
    found: dict[str, Json] = {}
    method = getattr(getattr(source, "config", None), "to_dict", None)
    if callable(method) and isinstance(content := method(), dict):
        found |= {key: value for key, value in content.items() if isinstance(value, _PLAIN)}
    adapters = getattr(source, "peft_config", None)
    for adapter in list(adapters.values())[:1] if isinstance(adapters, Mapping) else ():
        method = getattr(adapter, "to_dict", None)
        if callable(method) and isinstance(content := method(), dict):
            found["adapter_config"] = {key: value for key, value in content.items() if isinstance(value, _PLAIN)}
    return found


def _mapping_of(source: object, title: str) -> Mapping[object, object]:
    if is_array(source):
        return {"array": source}
    entries = _entries(source)
    if entries is None:
        msg = f"{show_name(title)}: a {type(source).__name__} holds no named arrays. {_EXPECTED}."
        raise SourceError(msg)
    return entries


def _entries(found: object) -> Mapping[object, object] | None:
    """Return what is inside of a container: a mapping, a module, a sequence of arrays."""
    if isinstance(found, Mapping):
        return found
    if isinstance(found, (list, tuple)):
        holds_some = any(is_array(entry) or isinstance(entry, Mapping) for entry in found)
        return dict(enumerate(found)) if holds_some else None
    method = getattr(found, "state_dict", None)
    if not callable(method) or isinstance(found, type):
        return None
    inside = method()
    return inside if isinstance(inside, Mapping) else None


def _tensor(found: object, name: str) -> Tensor:
    codes, dtype = codes_of(found)
    return ArrayTensor(codes, dtype, (name,))


_CONTENTS = Contents(is_array, _entries, _tensor)


def _nothing_found(title: str, nesting: Nesting) -> str:
    if failures := nesting.failures():
        return f"{show_name(title)}: no array in it can be compared: {failures}. Give dense arrays of numbers."
    return f"{show_name(title)}: there are no arrays in it. {_EXPECTED}."
