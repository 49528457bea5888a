"""Live objects without torch."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from diffai_jupyter.checkpoint.model import Checkpoint
from diffai_jupyter.errors import SourceError
from diffai_jupyter.readers import open_checkpoint
from diffai_jupyter.wording import say


def sentences(checkpoint: Checkpoint) -> list[str]:
    return [say(note.template, note.said) for note in checkpoint.notes]


class Foreign:
    """An array of a library that NumPy can ask for its values."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.array


class NumpyOnly:
    """An array of a library that converts on request only."""

    shape = (2,)

    def numpy(self) -> np.ndarray:
        return np.array([1.0, 2.0])


class Module:
    """Anything with a state dict."""

    def __init__(self, **arrays: Any) -> None:
        self.arrays = arrays

    def state_dict(self) -> dict[str, Any]:
        return self.arrays


def test_a_dict_of_arrays() -> None:
    source = {"b": np.arange(6.0).reshape(2, 3), "a": np.arange(3, dtype="i8")}
    checkpoint = open_checkpoint(source, "weights")
    assert list(checkpoint.tensors) == ["a", "b"]
    assert (checkpoint.source, checkpoint.format, checkpoint.files) == ("weights", "live", ())
    assert checkpoint.live is source
    assert np.array_equal(checkpoint.tensors["b"].read_all(), source["b"])
    assert checkpoint.notes == ()
    assert open_checkpoint(source).source == "dict"


def test_arrays_are_not_copied() -> None:
    array = np.zeros((4, 4), "f4")
    tensor = open_checkpoint({"w": array}).tensors["w"]
    assert np.shares_memory(tensor.array, array)  # type: ignore[attr-defined]
    array[1, 2] = 5
    assert tensor.read((1, 2), (2, 3)).tolist() == [[5]]


def test_nested_containers_get_dotted_names() -> None:
    source = {"net": {"dense": {"kernel": np.ones(2)}}, "coefs": [np.zeros(1), np.ones(1)], 3: np.ones(1)}
    assert list(open_checkpoint(source).tensors) == ["3", "coefs.0", "coefs.1", "net.dense.kernel"]


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (ml_dtypes.bfloat16, "bf16"),
        (ml_dtypes.float8_e4m3fn, "f8_e4m3"),
        (ml_dtypes.float8_e5m2, "f8_e5m2"),
        (ml_dtypes.float8_e4m3fnuz, "f8_e4m3fnuz"),
        (ml_dtypes.float8_e5m2fnuz, "f8_e5m2fnuz"),
        (ml_dtypes.float8_e8m0fnu, "f8_e8m0"),
        (ml_dtypes.float4_e2m1fn, "f4"),
        (np.float16, "f16"),
    ],
)
def test_extension_dtypes(kind: Any, name: str) -> None:
    array = np.float32([[0.5, 1, 2, 4], [1, 2, 4, 0.5]]).astype(kind)
    tensor = open_checkpoint({"w": array.T}).tensors["w"]
    assert tensor.dtype.name == name
    assert np.array_equal(tensor.read_all(), array.T.astype("f4"))


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=">f4").reshape(2, 3),
        np.arange(6, dtype=">i8").reshape(2, 3),
        np.asfortranarray(np.eye(3)),
        np.arange(24.0).reshape(4, 6)[::2, ::-2],
        np.array([[True, False]]),
        np.float64(3),
        np.array(2, dtype=">u2"),
        np.zeros((0, 3, 2)),
        np.arange(3) * 1j,
        np.broadcast_to(np.float32(2), (3, 2)),
    ],
)
def test_any_layout_reads_the_same_numbers(array: np.ndarray) -> None:
    tensor = open_checkpoint({"w": array}).tensors["w"]
    assert tensor.shape == np.shape(array)
    assert np.array_equal(tensor.read_all(), np.reshape(array, tensor.grid))


def test_an_array_by_itself_and_foreign_arrays() -> None:
    assert list(open_checkpoint(np.ones(2)).tensors) == ["array"]
    checkpoint = open_checkpoint(
        {"f": Foreign(np.ones(3)), "n": NumpyOnly(), "b": Foreign(np.ones(2, ml_dtypes.bfloat16))}
    )
    assert checkpoint.tensors["n"].read_all().tolist() == [[1, 2]]
    assert checkpoint.tensors["b"].dtype.name == "bf16"


def test_what_is_no_array_is_listed() -> None:
    source: dict[str, Any] = {"w": np.ones(2), "epoch": 3, "name": "net", "sizes": [1, 2], "none": None}
    (said,) = sentences(open_checkpoint(source))
    assert said == "4 entries hold no array and were left aside: epoch, name, sizes, none."


def test_arrays_that_hold_no_numbers_are_a_warning() -> None:
    checkpoint = open_checkpoint({"w": np.ones(2), "t": np.array(["a"]), "o": np.array([None])})
    assert checkpoint.notes[0].is_warning
    assert "t (arrays of dtype <U1 cannot be compared)" in sentences(checkpoint)[0]


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_a_training_checkpoint_is_unwrapped(key: str) -> None:
    source = {
        key: OrderedDict(w=np.ones(2)),
        "optimizer": {"state": {0: np.ones(2)}},
        "epoch": 3,
        "lr_scheduler": {},
    }
    checkpoint = open_checkpoint(source)
    assert list(checkpoint.tensors) == ["w"]
    assert sentences(checkpoint) == [f"{key} was compared; left aside: optimizer, epoch, lr_scheduler."]
    assert checkpoint.live is source


def test_a_part_called_model_beside_other_parts_is_not_the_whole() -> None:
    source = {"model": {"w": np.ones(2)}, "head": {"w": np.ones(2)}}
    assert list(open_checkpoint(source).tensors) == ["head.w", "model.w"]
    assert list(open_checkpoint({"model": np.ones(2), "epoch": 1}).tensors) == ["model"]


def test_objects_with_a_state_dict() -> None:
    assert list(open_checkpoint(Module(w=np.ones(2))).tensors) == ["w"]
    assert list(open_checkpoint({"model": Module(w=np.ones(2)), "epoch": 1}).tensors) == ["w"]
    gan = {"generator": Module(w=np.ones(2)), "critic": Module(w=np.ones(2))}
    assert list(open_checkpoint(gan).tensors) == ["critic.w", "generator.w"]


@pytest.mark.parametrize(
    "source", [{}, None, 3, b"bytes", [1, 2], object(), Module, Module(), {"a": 1}, {"a": {"b": []}}]
)
def test_objects_without_arrays_are_refused(source: object) -> None:
    with pytest.raises(SourceError, match="Give a state dict, a module, a dict of arrays") as caught:
        open_checkpoint(source, "thing")
    assert str(caught.value).startswith("thing: ")


def test_only_unusable_arrays_are_refused_with_the_reason() -> None:
    with pytest.raises(SourceError, match=r"no array in it can be compared: t \(arrays of dtype"):
        open_checkpoint({"t": np.array(["a"])})


def test_two_entries_of_one_name_are_refused() -> None:
    with pytest.raises(SourceError, match=r"two entries are called a\.b"):
        open_checkpoint({"a": {"b": np.ones(1)}, "a.b": np.ones(1)}, "x")


def test_containers_that_hold_themselves_end() -> None:
    source: dict[str, Any] = {"w": np.ones(1)}
    source["again"] = source
    source["list"] = [source, np.ones(1)]
    deep: dict[str, Any] = {"w": np.ones(1)}
    for _ in range(5000):
        deep = {"d": deep}
    source["deep"] = deep
    checkpoint = open_checkpoint(source)
    assert list(checkpoint.tensors) == ["list.1", "w"]
    assert "again" in sentences(checkpoint)[0]


def test_hostile_names_stay_as_they_are() -> None:
    names = ["<script>", "a|b", "$x$", "a\nb", "\x1b[31m", "n" * 10_000, "__proto__", "\ud800"]
    checkpoint = open_checkpoint({name: np.ones(1) for name in names})
    assert set(checkpoint.tensors) == set(names)
    (said,) = sentences(open_checkpoint({"w": np.ones(1), "\x1b[31m\n" + "n" * 10_000: None}))
    assert said.isprintable()
    assert len(said) < 400


class Configuration:
    def __init__(self, **said: Any) -> None:
        self._said = said

    def to_dict(self) -> dict[str, Any]:
        return self._said


class Model:
    """What a model of the transformers library looks like from outside, with an adapter of PEFT."""

    config = Configuration(num_attention_heads=4, torch_dtype=np.float32, rope_scaling={"factor": 2.0})

    def __init__(self) -> None:
        self.peft_config = {"default": Configuration(r=2, lora_alpha=8, target_modules=["q_proj"])}

    def state_dict(self) -> dict[str, np.ndarray]:
        draw = np.random.default_rng(0)
        return {
            "q_proj.lora_A.default.weight": draw.normal(size=(2, 6)).astype("f4"),
            "q_proj.lora_B.default.weight": draw.normal(size=(5, 2)).astype("f4"),
        }


def test_the_configuration_of_a_live_model_is_used() -> None:
    checkpoint = open_checkpoint(Model())
    assert checkpoint.config["num_attention_heads"] == 4
    assert "torch_dtype" not in checkpoint.config
    (tensor,) = checkpoint.tensors.values()
    state = Model().state_dict()
    product = 4 * state["q_proj.lora_B.default.weight"] @ state["q_proj.lora_A.default.weight"]
    assert np.allclose(tensor.read_all(), product, rtol=1e-6)
