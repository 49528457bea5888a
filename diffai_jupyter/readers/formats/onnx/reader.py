"""ONNX models: the tensors in their graphs. Nothing but their place in the file is read.

The onnx package is not needed: it loads a whole model, and cannot load one above 2 GiB.

References
----------
ONNX, ``onnx/onnx.proto``: ModelProto, GraphProto, NodeProto, AttributeProto, FunctionProto.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from diffai_jupyter.checkpoint.dtypes import F32
from diffai_jupyter.checkpoint.model import Note
from diffai_jupyter.checkpoint.storage import Storage
from diffai_jupyter.checkpoint.tensor import FileRange, Tensor
from diffai_jupyter.errors import FormatError
from diffai_jupyter.readers.formats.container import TENSOR_LIMIT, Container
from diffai_jupyter.readers.formats.onnx.tensors import Elements, Typed, read_message
from diffai_jupyter.readers.formats.onnx.wire import RANGE, Wire
from diffai_jupyter.readers.formats.packed import packed
from diffai_jupyter.readers.formats.skipped import Skipped
from diffai_jupyter.readers.sources.arrays import Incomparable
from diffai_jupyter.wording import show_name, some

_DEPTH_LIMIT = 8
_MODEL = {"graph": 7, "training": 20, "function": 25}
_PRODUCER = {2: "producer_name", 3: "producer_version", 4: "domain"}
_INITIALIZER, _SPARSE_INITIALIZER = 5, 15
_FLOATS_FIELD = 7
_ML = "ai.onnx.ml"

Maker = Callable[[str], Tensor]


def read_onnx(file: Storage) -> Container:
    """Read what the initializers and constants of an ONNX model are.

    Those of a graph inside of a node have the name of the node and of its attribute in front, those of a
    function the name of the function; a constant is called like the value that it gives.

    Raises
    ------
    FormatError
        If the file is damaged, or elements lie where they may not be read from.
    """
    model = _Model(Wire(file), Elements(file))
    metadata = model.read()
    model.skipped.refuse_all(file.path, model.tensors)
    notes = model.skipped.notes()
    if model.elements.narrow:
        template = "Integers of 2 or 4 bits are compared as 8-bit integers: {names}."
        notes = (*notes, Note(template, {"names": some(model.elements.narrow)}))
    return Container(file, "onnx", dict(sorted(model.tensors.items())), metadata, notes=notes)


@dataclass(slots=True)
class _Node:
    """A node: what identifies it, and where its attributes are."""

    name: str = ""
    kind: str = ""
    domain: str = ""
    outputs: list[str] = field(default_factory=list)
    attributes: list[tuple[int, int]] = field(default_factory=list)

    @property
    def label(self) -> str:
        return self.name or "".join(self.outputs[:1]) or self.kind


@dataclass
class _Model:
    """Goes through the graphs of a model."""

    wire: Wire
    elements: Elements
    tensors: dict[str, Tensor] = field(default_factory=dict)
    skipped: Skipped = field(default_factory=Skipped)
    _repeats: dict[str, int] = field(default_factory=dict)

    @property
    def _path(self) -> str:
        return self.wire.file.path

    def read(self) -> dict[str, str]:
        """Take everything, and return the text that describes the model."""
        metadata: dict[str, str] = {}
        graphs = trainings = 0
        for number, kind, start, stop in self.wire.fields(0, self.wire.file.size):
            if kind != RANGE:
                continue
            if number == _MODEL["graph"]:
                graphs += 1
                self._graph(start, stop, "", 0)
            elif number == _MODEL["training"]:
                self._training(start, stop, f"training_info.{trainings}/")
                trainings += 1
            elif number == _MODEL["function"]:
                self._function(start, stop)
            elif number in _PRODUCER:
                metadata[_PRODUCER[number]] = self.wire.text(start, stop)
        if graphs != 1:
            raise FormatError(self._path, f"it holds {graphs or 'no'} graphs, where an ONNX model has one", 0)
        return metadata

    def _training(self, start: int, stop: int, prefix: str) -> None:
        for number, kind, begin, end in self.wire.fields(start, stop):
            if number in (1, 2) and kind == RANGE:
                self._graph(begin, end, f"{prefix}{('initialization', 'algorithm')[number - 1]}/", 1)

    def _function(self, start: int, stop: int) -> None:
        """Take the constants of a function; its name may stand behind its nodes."""
        fields = [found for found in self.wire.fields(start, stop) if found[0] in (1, 7, 10, 13)]
        texts = {found[0]: self.wire.text(*found[2:]) for found in fields if found[0] != 7 and found[1] == RANGE}
        name = ".".join(texts[number] for number in (10, 1, 13) if texts.get(number))
        names: set[str] = set()
        for number, kind, begin, end in fields:
            if number == 7 and kind == RANGE:
                self._node(begin, end, f"{name}/", 1, names)

    def _graph(self, start: int, stop: int, prefix: str, depth: int) -> None:
        if depth > _DEPTH_LIMIT:
            self.skipped.add(prefix, f"they lie more than {_DEPTH_LIMIT} graphs deep")
            return
        names: set[str] = set()
        for number, kind, begin, end in self.wire.fields(start, stop):
            if kind != RANGE:
                continue
            if number == 1:
                self._node(begin, end, prefix, depth, names)
            elif number == _INITIALIZER:
                self._tensor(begin, end, prefix, names)
            elif number == _SPARSE_INITIALIZER:
                self._sparse(begin, end, prefix)

    def _node(self, start: int, stop: int, prefix: str, depth: int, names: set[str]) -> None:
        node = _Node()
        for number, kind, begin, end in self.wire.fields(start, stop):
            if kind != RANGE:
                continue
            if number == 2:
                node.outputs.append(self.wire.text(begin, end))
            elif number == 3:
                node.name = self.wire.text(begin, end)
            elif number == 4:
                node.kind = self.wire.text(begin, end)
            elif number == 5:
                node.attributes.append((begin, end))
            elif number == 7:
                node.domain = self.wire.text(begin, end)
        for begin, end in node.attributes:
            self._attribute(begin, end, node, prefix, depth, names)

    def _attribute(
        self, start: int, stop: int, node: _Node, prefix: str, depth: int, names: set[str]
    ) -> None:
        """Take the tensors and graphs of an attribute; its name may stand behind them."""
        name, floats, fields = "", 0, []
        for found in self.wire.fields(start, stop):
            if found[0] == 1 and found[1] == RANGE:
                name = self.wire.text(*found[2:])
            elif found[0] == _FLOATS_FIELD:
                floats += (found[3] - found[2]) // 4
            elif found[0] in (5, 6, 10, 11, 22, 23) and found[1] == RANGE:
                fields.append(found)
        inside = f"{prefix}{node.label}/{name}"
        if floats > 1 and node.domain == _ML:
            # trees and linear models of scikit-learn keep their weights so
            pieces = Typed(self.wire.file, start, stop, _FLOATS_FIELD, "<f4", 4)
            storage = packed(self._path, 4 * floats, pieces)
            self._add(inside, lambda label: FileRange(storage, 0, (floats,), F32, (label,)))
        for i, (number, _, begin, end) in enumerate(fields):
            place = f"{inside}.{i}" if number in (10, 11, 23) else inside
            if number in (5, 10):
                is_constant = node.kind == "Constant" and number == 5
                self._tensor(begin, end, prefix, names, "".join(node.outputs[:1]) if is_constant else None, place)
            elif number in (6, 11):
                self._graph(begin, end, f"{place}/", depth + 1)
            else:
                self.skipped.add(place, "they are sparse")

    def _tensor(
        self, start: int, stop: int, prefix: str, names: set[str], name: str | None = None, place: str = ""
    ) -> None:
        """Take a tensor: an initializer, a constant called `name`, or another attribute at `place`."""
        message = read_message(self.wire, start, stop)
        own = name if name is not None else message.name
        if name is not None or not place:
            if own in names:
                raise FormatError(self._path, f"two tensors of a graph are called '{show_name(own)}'", start)
            names.add(own)
            place = f"{prefix}{own}"
        try:
            self._add(place, lambda label: self.elements.tensor(message, label))
        except Incomparable as reason:
            self.skipped.add(place, reason)

    def _sparse(self, start: int, stop: int, prefix: str) -> None:
        """Leave out a sparse tensor, which is called like the tensor of its values."""
        name = ""
        for number, kind, begin, end in self.wire.fields(start, stop):
            if number == 1 and kind == RANGE:
                name = read_message(self.wire, begin, end).name
        self.skipped.add(f"{prefix}{name}", "they are sparse")

    def _add(self, name: str, make: Maker) -> None:
        """Take a tensor. Nodes of one name in different graphs are told apart by numbers."""
        if len(self.tensors) >= TENSOR_LIMIT:
            raise FormatError(self._path, f"it holds more tensors than the limit of {TENSOR_LIMIT}")
        label = name
        if label in self.tensors:
            self._repeats[name] = self._repeats.get(name, 1) + 1
            label = f"{name}~{self._repeats[name]}"
        if label in self.tensors:
            raise FormatError(self._path, f"two tensors are called '{show_name(label)}'")
        self.tensors[label] = make(label)
