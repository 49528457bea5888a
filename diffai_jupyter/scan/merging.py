"""An adapter against the model it was made for: the model with the adapter merged in takes the adapter's place.

Names are matched as the libraries that load adapters match them: PEFT puts ``base_model.model.`` before the name of the
module, diffusers the component, and kohya's scripts a prefix for the component and underscores for dots.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePath

from diffai_jupyter.checkpoint.model import Checkpoint, Note
from diffai_jupyter.checkpoint.names import bare_name
from diffai_jupyter.checkpoint.quantized import Merged, Product, Undecoded
from diffai_jupyter.checkpoint.tensor import Tensor
from diffai_jupyter.checkpoint.views import Transposed
from diffai_jupyter.wording import Name, plural, some

_SUFFIX = ".lora"
_PEFT = "base_model.model."
_KOHYA = re.compile(r"lora_(?P<part>unet|te\d?|transformer|prior_unet|prior_te)_(?P<path>.+)")
_DIFFUSERS = re.compile(r"(?P<component>unet|transformer|transformer_2|prior|text_encoder(?:_\d)?)\.(?P<path>.+)")
_COMPONENTS = {
    "unet": ("unet", "transformer"),
    "te": ("text_encoder",),
    "te1": ("text_encoder",),
    "te2": ("text_encoder_2",),
    "te3": ("text_encoder_3",),
    "transformer": ("transformer",),
    "prior_unet": ("prior", "unet"),
    "prior_te": ("text_encoder",),
}
_WRAPPED = re.compile(r"\.modules_to_save(?:\.[^.]+)?(?=\.(?:weight|bias)$)|\.base_layer(?=\.)")
_REPLACED = ".original_module."
_ADAPTER_PART = re.compile(r"(?:^|[._])lora[._]|hada_|lokr_|ia3_|dora_scale|\.alpha$")
# These begin with a decomposition of the base weight, and take it out of the base that they are trained on.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_ADAPTER_FILE = "adapter_model"


def reconcile(a: Checkpoint, b: Checkpoint) -> tuple[Checkpoint, Checkpoint]:
    """Make an adapter comparable with a model; two of a kind stay as they are.

    Parameters
    ----------
    a, b : Checkpoint
        As they were opened.

    Returns
    -------
    tuple of Checkpoint
        The same, but an adapter that faces a model replaced by that model with the adapter merged in, and a model
        that carries an adapter of its own by the model with it merged in. Notes say so.
    """
    a, b = _with_own_adapter(a, "A"), _with_own_adapter(b, "B")
    if is_adapter(a) and is_adapter(b):
        return _with_notes(a, _scale_notes(a)), _with_notes(b, _scale_notes(b))
    if is_adapter(a):
        return with_adapter(b, a, ("B", "A")), b
    if is_adapter(b):
        return a, with_adapter(a, b, ("A", "B"))
    return _with_notes(a, _undecoded_notes(a, b)), _with_notes(b, _undecoded_notes(b, a))


def is_adapter(checkpoint: Checkpoint) -> bool:
    """Say whether a checkpoint is a LoRA adapter: it has its configuration, or mostly updates and no weights."""
    tensors = checkpoint.tensors
    products = sum(isinstance(tensor, Product) for tensor in tensors.values())
    return products > 0 and ("adapter_config" in checkpoint.config or 2 * products > len(tensors))


def with_adapter(base: Checkpoint, adapter: Checkpoint, sides: tuple[str, str] = ("A", "B")) -> Checkpoint:
    """Merge an adapter into its base, tensor by tensor as they are read.

    Parameters
    ----------
    base, adapter : Checkpoint
        The model and the adapter.
    sides : tuple of str
        What the two are called.

    Returns
    -------
    Checkpoint
        All tensors of the base under its names, the adapted ones as `Merged`, those that the adapter stores whole
        as the adapter has them; all others are the base's own objects. The adapter with a warning where none of
        its modules has a place in the base.
    """
    merging = _Merging(dict(base.tensors), _Index(base.tensors), _turns(adapter))
    merging.take(adapter.tensors)
    if not merging.merged:
        template = "This is an adapter ({adapter}), and none of its modules has a place in {base}: {names}."
        said = {"adapter": _described(adapter.tensors), "base": sides[0], "names": some(merging.homeless)}
        return _with_notes(adapter, [Note(template, said, is_warning=True)])
    template = "This is an adapter ({adapter}); it was compared as {base} with the adapter merged in."
    said = {"base": sides[0], "adapter": _described(merging.merged)}
    return replace(
        adapter,
        tensors=dict(sorted(merging.tensors.items())),
        files=tuple(dict.fromkeys((*base.files, *adapter.files))),
        config={**base.config, **adapter.config},
        notes=(*adapter.notes, Note(template, said), *merging.notes(sides[0]), *_scale_notes(adapter)),
    )


class _Index:
    """Finds the tensor of a model that an adapter's name means."""

    def __init__(self, tensors: Iterable[str]) -> None:
        self._names: dict[str, set[str]] = {}
        self._has_components = False
        for name in tensors:
            component, slash, path = name.rpartition("/")
            self._has_components = self._has_components or bool(slash)
            plain = path.removesuffix(".weight")
            bare = bare_name(plain).removeprefix("diffusion_model.")
            for key in {plain, bare, plain.replace(".", "_"), bare.replace(".", "_")}:
                self._names.setdefault(key, set()).add(name)
                if slash:
                    self._names.setdefault(f"{component}/{key}", set()).add(name)

    def find(self, name: str) -> str | None:
        """Return the one name that fits best, or None where none or several do."""
        for key in self._keys(name):
            found = self._names.get(key, set())
            if len(found) == 1:
                return next(iter(found))
        return None

    def _keys(self, name: str) -> Iterator[str]:
        """Yield what the name of a module may be called in the model, the most exact first."""
        plain = name.removeprefix(_PEFT)
        if named := _KOHYA.fullmatch(plain) or _DIFFUSERS.fullmatch(plain):
            groups = named.groupdict()
            components = _COMPONENTS[groups["part"]] if "part" in groups else (groups["component"],)
            yield from (f"{component}/{named['path']}" for component in components)
            if not self._has_components:
                yield named["path"]
                yield bare_name(named["path"])
        yield plain
        yield bare_name(plain).removeprefix("diffusion_model.")


@dataclass
class _Merging:
    """The tensors of a model while an adapter is merged into them.

    Parameters
    ----------
    tensors : dict of str to Tensor
        Of the model, by name.
    index : _Index
        Finds them.
    turns : bool
        Whether square updates are turned as well, because the model stores inputs before outputs.
    """

    tensors: dict[str, Tensor]
    index: _Index
    turns: bool
    merged: dict[str, Product] = field(default_factory=dict)
    homeless: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    added: list[str] = field(default_factory=list)

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Take whole tensors of an adapter first, then its updates, which may be meant for these."""
        for name, tensor in tensors.items():
            if not isinstance(tensor, Product) and _REPLACED not in name:
                self._take_whole(name, tensor)
        for name, tensor in tensors.items():
            if isinstance(tensor, Product) and not self._merge(name, tensor):
                self.homeless.append(name.removesuffix(_SUFFIX))

    def _take_whole(self, name: str, tensor: Tensor) -> None:
        if isinstance(tensor, Undecoded) or _ADAPTER_PART.search(name):
            self.others.append(name)
            return
        plain = _WRAPPED.sub("", name)
        place = self.index.find(plain.removesuffix(".weight"))
        (self.added if place is None else self.replaced).append(name)
        self.tensors[place or plain.removeprefix(_PEFT)] = tensor

    def _merge(self, name: str, update: Product) -> bool:
        place = self.index.find(name.removesuffix(_SUFFIX)) if name.endswith(_SUFFIX) else None
        if place is None or place in self.merged:
            return False
        base = self.tensors[place]
        is_table = isinstance(update.up, Transposed)
        fits, fits_turned = base.grid == update.grid, len(base.shape) == 2 and base.grid == update.grid[::-1]
        if base.dtype.opaque or base.dtype.kind != "float" or not (fits or fits_turned):
            return False
        is_turned = fits_turned and (not fits or (self.turns and not is_table))
        self.tensors[place] = Merged(base, Transposed(update) if is_turned else update)
        self.merged[place] = update
        return True

    def notes(self, base: str) -> Iterator[Note]:
        """Yield what was not merged, and what was replaced."""
        for names, template, is_warning in (
            (self.homeless, "{n} of the adapter found no place in {base} and were left out: {names}.", True),
            (self.others, "{n} of the adapter are no LoRA factors and were left out: {names}.", True),
            (self.replaced, "{n} of {base} were replaced by those that the adapter stores whole: {names}.", False),
            (self.added, "{n} of the adapter are stored whole and have no counterpart in {base}: {names}.", False),
        ):
            if names:
                word = "module" if names is self.homeless else "tensor"
                said = {"n": plural(len(names), word), "base": base, "names": some(names)}
                yield Note(template, said, is_warning=is_warning)


def _turns(adapter: Checkpoint) -> bool:
    """Say whether the configuration tells that the model stores inputs before outputs, as GPT-2 does."""
    config = adapter.config.get("adapter_config")
    return isinstance(config, dict) and config.get("fan_in_fan_out") is True


def _with_own_adapter(checkpoint: Checkpoint, side: str) -> Checkpoint:
    """Merge the adapter that a model carries beside each adapted weight, as PEFT keeps it in memory."""
    tensors = checkpoint.tensors
    updates = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, Product)}
    modules = [name.removesuffix(_SUFFIX) for name in updates]
    carried = [f"{module}.base_layer.weight" in tensors for module in modules]
    # An adapter file holds the weights of the embeddings that it adapts, too.
    if not updates or not all(carried) or any(_ADAPTER_FILE in PurePath(file.path).name for file in checkpoint.files):
        return checkpoint
    kept = {name: tensor for name, tensor in tensors.items() if name not in updates and _REPLACED not in name}
    own = {_WRAPPED.sub("", name): tensor for name, tensor in kept.items()}
    merging = _Merging(own, _Index(own), _turns(checkpoint))
    merging.take(updates)
    template = "{side} is a model with an adapter ({adapter}); it was compared with the adapter merged in."
    said = {"side": side, "adapter": _described(merging.merged)}
    notes = [Note(template, said), *merging.notes("the model"), *_scale_notes(checkpoint)]
    return _with_notes(replace(checkpoint, tensors=dict(sorted(merging.tensors.items()))), notes)


def _described(tensors: Mapping[str, Tensor]) -> str:
    """Return kind, rank and number of modules, such as ``"LoRA, rank 8, 64 modules"``."""
    ranks = sorted({tensor.rank for tensor in tensors.values() if isinstance(tensor, Product)})
    count = sum(isinstance(tensor, Product) for tensor in tensors.values())
    words = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}" if ranks else "no rank"
    return f"LoRA, {words}, {plural(count, 'module')}"


def _scale_notes(adapter: Checkpoint) -> list[Note]:
    """Return what makes the size of an adapter's update uncertain."""
    notes = []
    products = [tensor for tensor in adapter.tensors.values() if isinstance(tensor, Product)]
    if unstated := sum(not product.is_stated for product in products):
        template = (
            "Nothing says the scale (alpha over rank) of {n} of {all} modules of the adapter; 1 was taken. Put "
            "adapter_config.json beside the weights."
        )
        notes.append(Note(template, {"n": unstated, "all": len(products)}, is_warning=True))
    config = adapter.config.get("adapter_config")
    start = config.get("init_lora_weights") if isinstance(config, dict) else None
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        template = (
            "The adapter was initialized with {start}, which changes the weights of the base as well; merged into a "
            "base without that change it is not the model that was trained."
        )
        notes.append(Note(template, {"start": Name(start)}, is_warning=True))
    return notes


def _undecoded_notes(checkpoint: Checkpoint, other: Checkpoint) -> list[Note]:
    """Return what to say of an adapter whose updates are not decoded, and that faces a model."""
    kinds = _undecoded_kinds(checkpoint)
    if not kinds or _undecoded_kinds(other):
        return []
    template = "This is an adapter of a kind that is not merged ({kinds}), so that it was not compared."
    return [Note(template, {"kinds": kinds}, is_warning=True)]


def _undecoded_kinds(checkpoint: Checkpoint) -> list[str]:
    """Return the kinds of adapter in a checkpoint that is mostly adapters which are not decoded."""
    kinds = Counter(
        tensor.dtype.opaque.partition(":")[0]
        for name, tensor in checkpoint.tensors.items()
        if isinstance(tensor, Undecoded) and name.endswith(_SUFFIX)
    )
    return list(kinds) if 2 * kinds.total() > len(checkpoint.tensors) else []


def _with_notes(checkpoint: Checkpoint, notes: list[Note]) -> Checkpoint:
    return replace(checkpoint, notes=(*checkpoint.notes, *notes)) if notes else checkpoint
