"""Which files of a folder are its weights, in the order of preference of the libraries that write them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePath

from diffai_jupyter.checkpoint.model import Note
from diffai_jupyter.readers.formats.detection import read_by_name
from diffai_jupyter.readers.sources.places import Place
from diffai_jupyter.readers.sources.shards import Shards, read_files, read_index, shards_of
from diffai_jupyter.wording import Name, some

LOOKED_FOR = (
    "an index (*.safetensors.index.json, *.bin.index.json), model.safetensors, adapter_model.safetensors, any "
    "other *.safetensors file, model_index.json, pytorch_model.bin, and one file of another format"
)
_STEMS = ("model", "diffusion_pytorch_model", "pytorch_model", "adapter_model", "tf_model", "flax_model")
_VARIANT = r"(?:fp|bf|int)\d+|(?:non_)?ema"
_ADAPTER = "adapter_config.json"
_SAFE, _OLD = "safetensors", "bin"
# What trainers write beside the weights: state of the run, not the model.
_STATE = re.compile(
    r"(?:optimizer|scheduler|scaler|training_args|rng_state.*|random_states.*|trainer_state|.*optim_states)"
    r"\.(?:pt|pth|bin|pkl)"
)


def index_pattern(suffix: str = rf"(?:{_SAFE}|{_OLD})") -> re.Pattern[str]:
    """Return what names of indexes look like.

    The variant stands before or behind ``.safetensors.index``, depending on the library that wrote it.
    """
    return re.compile(
        rf"(?P<stem>.+?)(\.(?P<a>{_VARIANT}))?\.{suffix}\.index(\.(?P<b>{_VARIANT}))?\.json"
    )


def _single_pattern(suffix: str) -> re.Pattern[str]:
    return re.compile(rf"(?P<stem>{'|'.join(_STEMS)})(\.(?P<a>{_VARIANT}))?(?P<b>)\.{suffix}")


def is_state(name: str) -> bool:
    """Say whether a file holds the state of a training run, not weights.

    Examples
    --------
    >>> is_state("optimizer.pt"), is_state("pytorch_model.bin")
    (True, False)
    """
    return _STATE.fullmatch(name) is not None


def read_weights(place: Place, names: Sequence[str]) -> Shards | None:
    """Read the weights of one folder, or return None where there are none or nothing tells which."""
    for suffix in (_SAFE, _OLD):
        weights = [name for name in names if name.endswith(f".{suffix}") and not is_state(name)]
        indexes = _preferred(names, index_pattern(suffix))
        if indexes:
            return _from_index(place, indexes, weights)
        if weights:
            taken = _without_index(names, weights, suffix)
            return _from_files(place, taken, weights)
    weights = readable(names)
    if weights and weights == (taken := shards_of(weights[0], weights)):
        return _from_files(place, taken, weights)
    return None


def unrelated(name: str, names: Sequence[str]) -> tuple[str, ...]:
    """Return the other checkpoints beside a file: no shards of its set, and not the same weights in another format.

    Examples
    --------
    >>> unrelated("a.safetensors", ["a.safetensors", "b.safetensors"])
    ('b.safetensors',)
    >>> unrelated("model.safetensors", ["model.safetensors", "pytorch_model.bin", "optimizer.pt"])
    ()
    """
    if is_state(name):
        return ()
    own = {name, *shards_of(name, names)}
    if _single_pattern(r"\w+").fullmatch(name):
        own |= {other for other in names if _single_pattern(r"\w+").fullmatch(other)}
    return tuple(other for other in readable(names) if other not in own)


def readable(names: Sequence[str]) -> list[str]:
    """Return the names that belong to formats that are read, state of the run left out."""
    return [name for name in names if read_by_name(name) and not is_state(name)]


def _from_index(place: Place, indexes: list[str], weights: list[str]) -> Shards:
    shards = read_index(place, indexes[0])
    used = {PurePath(file.path).name for file in shards.files}
    aside = [*indexes[1:], *(name for name in weights if name not in used)]
    return _with_notes(shards, indexes[0], aside)


def _from_files(place: Place, taken: list[str], weights: list[str]) -> Shards:
    return _with_notes(read_files(place, taken), taken[0], [name for name in weights if name not in taken])


def _with_notes(shards: Shards, chosen: str, aside: list[str]) -> Shards:
    """Say which files were left aside."""
    if consolidated := [name for name in aside if name.startswith("consolidated")]:
        template = "{files} was left aside: it usually holds the same weights as {chosen} under other names."
        shards.notes.append(Note(template, {"files": some(consolidated), "chosen": Name(chosen)}))
    if others := [name for name in aside if name not in consolidated]:
        template = "{chosen} was read; {files} beside it was left aside. Give a file by itself to read it."
        shards.notes.append(Note(template, {"files": some(others), "chosen": Name(chosen)}))
    return shards


def _without_index(names: Sequence[str], weights: list[str], suffix: str) -> list[str]:
    """Choose the files to read where no index says it."""
    adapter = f"adapter_model.{suffix}"
    singles = [name for name in _preferred(weights, _single_pattern(suffix)) if name != adapter]
    if singles:
        return singles[:1]
    if _ADAPTER in names and adapter in names:
        return [adapter]
    plain = [name for name in weights if not name.startswith("consolidated")] or weights
    # Safetensors files without an index are shards of one checkpoint; others only if they are numbered so.
    return plain if suffix == _SAFE else shards_of(plain[0], plain)


def _preferred(names: Sequence[str], pattern: re.Pattern[str]) -> list[str]:
    """Return the matching names: full precision before variants, then by the order of `_STEMS`."""

    def preference(match: re.Match[str]) -> tuple[bool, int, str]:
        stem, variant = match["stem"], match["a"] or match["b"]
        return bool(variant), _STEMS.index(stem) if stem in _STEMS else len(_STEMS), match.string

    return [match.string for match in sorted(filter(None, map(pattern.fullmatch, names)), key=preference)]
