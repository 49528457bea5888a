"""Files and folders as Hugging Face libraries write them."""

from __future__ import annotations

import re
from pathlib import Path

from diffai_jupyter.checkpoint.model import Checkpoint, Note
from diffai_jupyter.errors import SourceError
from diffai_jupyter.readers.documents import read_document
from diffai_jupyter.readers.formats.detection import READS, known_by_name, open_weights
from diffai_jupyter.readers.sidecars import read_sidecars
from diffai_jupyter.readers.sources.links import is_folder, is_plain, locate
from diffai_jupyter.readers.sources.shards import Shards, read_files, read_index, shard_note, some
from diffai_jupyter.wording import Name, show_name

_PIPELINE = "model_index.json"
_ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
_LOOKED_FOR = (
    "an index (*.safetensors.index.json), model.safetensors, adapter_model.safetensors, any other "
    "*.safetensors file, and model_index.json"
)
_STEMS = ("model", "diffusion_pytorch_model")
_VARIANT = r"(?:fp|bf|int)\d+|(?:non_)?ema"
# The variant stands before or behind ".safetensors.index", depending on the library that wrote it.
_INDEX = re.compile(rf"(?P<stem>.+?)(\.(?P<a>{_VARIANT}))?\.safetensors\.index(\.(?P<b>{_VARIANT}))?\.json")
_SINGLE = re.compile(rf"(?P<stem>{'|'.join(_STEMS)})(\.(?P<a>{_VARIANT}))?(?P<b>)\.safetensors")


def open_file(path: Path, source: str) -> Checkpoint:
    """Open one safetensors file, or the shards of one index, with the side-cars beside it.

    Raises
    ------
    SourceError
        If it is something else, or damaged.
    """
    if _INDEX.fullmatch(path.name):
        return _assemble(read_index(path.parent, path.name), path.parent, source)
    shards = Shards()
    header = open_weights(path)
    shards.add(header, header.tensors)
    if note := shard_note(path.name):
        shards.notes.append(note)
    return _assemble(shards, path.parent, source, only=path.name)


def open_folder(folder: Path, source: str) -> Checkpoint:
    """Open a folder that holds a checkpoint.

    Raises
    ------
    SourceError
        If there are no weights in it that this version reads, or they are damaged.
    """
    names = _names(folder)
    shards = _read_weights(folder, names)
    if shards is None and _PIPELINE in names:
        shards = _read_pipeline(folder)
    if shards is None:
        raise SourceError(_nothing_found(folder, names))
    return _assemble(shards, folder, source)


def _assemble(shards: Shards, folder: Path, source: str, only: str = "") -> Checkpoint:
    """Put weights and side-cars together; `only` is the file that was given by itself."""
    beside = read_sidecars(folder, shards.metadata)
    notes = [*shards.notes, *beside.notes]
    if only and beside.logs and (others := _unrelated(folder, only)):
        template = "{logs} lies beside several checkpoints ({others}), and is taken to describe {file}."
        said = {"logs": some(beside.logs), "others": some(others), "file": Name(only)}
        notes.append(Note(template, said, is_warning=True))
    return Checkpoint(
        source=source,
        format="safetensors",
        tensors=dict(sorted(shards.tensors.items())),
        files=tuple(sorted(shards.files, key=lambda file: file.path)),
        config=beside.config,
        metadata=shards.metadata,
        training=beside.training,
        notes=tuple(notes),
        missing=tuple(sorted(shards.missing)),
    )


def _unrelated(folder: Path, name: str) -> list[str]:
    """Return the other weights in a folder that are no shards of the same set."""
    weights = [other for other in _names(folder) if other.endswith(".safetensors") and other != name]
    return [] if shard_note(name) else weights


def _names(folder: Path) -> list[str]:
    """Return the names in a folder that are not folders, nor hidden, in order."""
    try:
        inside = sorted(folder.iterdir())
    except OSError as error:
        msg = f"{folder}: {error.strerror or error}. Check the path and its permissions."
        raise SourceError(msg) from None
    return [path.name for path in inside if path.name[0] != "." and not is_folder(path)]


def _read_weights(folder: Path, names: list[str]) -> Shards | None:
    """Read the weights of one folder, or return None where there are none."""
    weights = [name for name in names if name.endswith(".safetensors")]
    indexes = _preferred(names, _INDEX)
    if indexes:
        chosen, shards = indexes[0], read_index(folder, indexes[0])
        used = {file.path for file in shards.files}
        aside = [*indexes[1:], *(name for name in weights if str(folder / name) not in used)]
    elif weights:
        taken = _without_index(names, weights)
        chosen, shards = taken[0], read_files(folder, taken)
        aside = [name for name in weights if name not in taken]
    else:
        return None
    if consolidated := [name for name in aside if name.startswith("consolidated")]:
        template = "{files} was left aside: it usually holds the same weights as {chosen} under other names."
        shards.notes.append(Note(template, {"files": some(consolidated), "chosen": Name(chosen)}))
    if others := [name for name in aside if name not in consolidated]:
        template = "{chosen} was read; {files} beside it was left aside. Give a file by itself to read it."
        shards.notes.append(Note(template, {"files": some(others), "chosen": Name(chosen)}))
    return shards


def _without_index(names: list[str], weights: list[str]) -> list[str]:
    """Choose the files to read where no index says it."""
    if singles := _preferred(weights, _SINGLE):
        return singles[:1]
    if all(name in names for name in _ADAPTER):
        return [_ADAPTER[1]]
    return [name for name in weights if not name.startswith("consolidated")] or weights


def _preferred(names: list[str], pattern: re.Pattern[str]) -> list[str]:
    """Return the matching names: full precision before variants, then by the order of `_STEMS`."""

    def preference(match: re.Match[str]) -> tuple[bool, int, str]:
        stem, variant = match["stem"], match["a"] or match["b"]
        return bool(variant), _STEMS.index(stem) if stem in _STEMS else len(_STEMS), match.string

    return [match.string for match in sorted(filter(None, map(pattern.fullmatch, names)), key=preference)]


def _read_pipeline(folder: Path) -> Shards | None:
    """Read the components that a diffusers ``model_index.json`` names."""
    pipeline = Shards()
    for component, classes in sorted(read_document(locate(folder, _PIPELINE)).items()):
        # [library, class]; both are null where the pipeline goes without this component
        if not isinstance(classes, list) or len(classes) != 2 or None in classes or component.startswith("_"):
            continue
        if not is_plain(component) or "/" in component or not is_folder(locate(folder, component)):
            said = {"index": Name(_PIPELINE), "name": Name(component)}
            pipeline.warn("{index} names the component {name}, which is not there.", **said)
            continue
        names = _names(folder / component)
        if part := _read_weights(folder / component, names):
            pipeline.add_component(component, part)
        elif foreign := [name for name in names if known_by_name(name)]:
            pipeline.warn(
                "Component {name} was not compared: it holds only {files}, which this version does not read.",
                name=Name(component), files=some(foreign),
            )
    return pipeline if pipeline.tensors else None


def _nothing_found(folder: Path, names: list[str]) -> str:
    """Say what was looked for, and what is there instead."""
    message = f"{folder}: there are no weights to read in this folder; looked for {_LOOKED_FOR}."
    foreign = [name for name in names if known_by_name(name)]
    if foreign:
        return f"{message} It holds {_listed(foreign)}. {READS}; convert them to safetensors."
    inside = sorted({path.parent.name for path in folder.glob("*/*.safetensors")})
    if inside:
        return f"{message} Its folders {_listed(inside)} hold some: give one of them."
    return f"{message} Give a folder that holds one of these."


def _listed(names: list[str]) -> str:
    return ", ".join(show_name(name) for name in some(names))
