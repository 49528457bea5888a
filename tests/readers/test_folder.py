"""Folders: which files count, which links are followed, what is missing."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from diffai_jupyter.checkpoint.model import Checkpoint
from diffai_jupyter.errors import FormatError, SourceError
from diffai_jupyter.readers import open_checkpoint
from diffai_jupyter.readers.sources.links import is_plain
from diffai_jupyter.wording import say

Save = Callable[..., Path]
INDEX = "model.safetensors.index.json"
ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def values(checkpoint: Checkpoint) -> dict[str, float]:
    return {name: float(tensor.read_all()[0, 0]) for name, tensor in checkpoint.tensors.items()}


def sentences(checkpoint: Checkpoint) -> list[str]:
    return [say(note.template, note.said) for note in checkpoint.notes]


def names(checkpoint: Checkpoint) -> list[str]:
    return [Path(file.path).name for file in checkpoint.files]


@pytest.fixture
def sharded(tmp_path: Path, save: Save, write_json: Save) -> Path:
    folder = tmp_path / "sharded"
    save(folder / ONE, {"b": 1, "d": 2}, {"format": "pt"})
    save(folder / TWO, {"a": 3, "c": 4})
    write_json(folder / INDEX, {"metadata": {}, "weight_map": {"a": TWO, "b": ONE, "c": TWO, "d": ONE}})
    return folder


def test_shards_of_an_index(sharded: Path) -> None:
    for given in (sharded, str(sharded), sharded / INDEX):
        checkpoint = open_checkpoint(given)
        assert list(values(checkpoint).items()) == [("a", 3), ("b", 1), ("c", 4), ("d", 2)]
        assert names(checkpoint) == [ONE, TWO]
        assert checkpoint.metadata == {"format": "pt"}
        assert (checkpoint.notes, checkpoint.missing) == ((), ())
        assert checkpoint.source == str(given)


def test_a_missing_shard_is_a_warning(sharded: Path) -> None:
    (sharded / ONE).unlink()
    checkpoint = open_checkpoint(sharded)
    assert list(checkpoint.tensors) == ["a", "c"]
    assert checkpoint.missing == ("b", "d")
    assert checkpoint.notes[0].is_warning
    assert f"1 of 2 shards named by {INDEX} are missing: {ONE}" in sentences(checkpoint)[0]


def test_a_link_to_a_shard_that_was_not_downloaded_counts_as_missing(sharded: Path) -> None:
    (sharded / ONE).unlink()
    (sharded / ONE).symlink_to("gone")
    assert open_checkpoint(sharded).missing == ("b", "d")


def test_a_name_that_no_file_can_have_counts_as_missing(sharded: Path, write_json: Save) -> None:
    write_json(sharded / INDEX, {"weight_map": {"a": TWO, "c": TWO, "x": "x" * 400}})
    assert open_checkpoint(sharded).missing == ("x",)


def test_no_shard_at_all_is_an_error(sharded: Path) -> None:
    (sharded / ONE).unlink()
    (sharded / TWO).unlink()
    with pytest.raises(SourceError, match="none of its 2 shards"):
        open_checkpoint(sharded)


def test_an_index_key_absent_from_its_shard(sharded: Path, write_json: Save) -> None:
    write_json(sharded / INDEX, {"weight_map": {"a": TWO, "b": ONE, "c": TWO, "d": ONE, "e": ONE}})
    checkpoint = open_checkpoint(sharded)
    assert checkpoint.missing == ("e",)
    assert list(checkpoint.tensors) == ["a", "b", "c", "d"]
    assert "not in the shard" in sentences(checkpoint)[0]


def test_a_tensor_that_the_index_does_not_mention_is_read_and_said(sharded: Path, write_json: Save) -> None:
    write_json(sharded / INDEX, {"weight_map": {"a": TWO, "b": ONE, "c": TWO}})
    checkpoint = open_checkpoint(sharded)
    assert values(checkpoint)["d"] == 2
    assert "not in the index" in sentences(checkpoint)[0]


def test_the_index_decides_between_duplicates(sharded: Path, save: Save) -> None:
    save(sharded / TWO, {"a": 3, "c": 4, "b": 99})
    assert values(open_checkpoint(sharded))["b"] == 1


def test_duplicates_without_an_index_are_refused(sharded: Path, save: Save) -> None:
    (sharded / INDEX).unlink()
    assert list(open_checkpoint(sharded).tensors) == ["a", "b", "c", "d"]
    save(sharded / TWO, {"b": 5})
    with pytest.raises(FormatError, match=f"tensor 'b' is in {ONE} as well"):
        open_checkpoint(sharded)


def test_numbering_tells_of_missing_shards_without_an_index(sharded: Path) -> None:
    (sharded / INDEX).unlink()
    (sharded / ONE).unlink()
    checkpoint = open_checkpoint(sharded)
    assert "1 of 2 shards of model are missing" in sentences(checkpoint)[0]
    assert checkpoint.notes[0].is_warning


def test_one_shard_by_itself_says_so(sharded: Path) -> None:
    checkpoint = open_checkpoint(sharded / TWO)
    assert list(checkpoint.tensors) == ["a", "c"]
    assert "one of 2 shards" in sentences(checkpoint)[0]


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "{}",
        '{"weight_map": []}',
        '{"weight_map": {}}',
        '{"weight_map": {"a": 1}}',
        "\xff",
        '{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}',
        "[" * 100_000,
    ],
)
def test_damaged_indexes(sharded: Path, content: str) -> None:
    (sharded / INDEX).write_text(content, encoding="latin-1")
    with pytest.raises(FormatError) as caught:
        open_checkpoint(sharded)
    assert caught.value.path.endswith(INDEX)


def test_a_damaged_shard_is_named(sharded: Path) -> None:
    (sharded / TWO).write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(SourceError, match=rf"{TWO}: this is a Git LFS pointer"):
        open_checkpoint(sharded)


@pytest.mark.parametrize(
    ("present", "chosen"),
    [
        (["model.safetensors", "other.safetensors"], ["model.safetensors"]),
        (
            ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"],
            ["diffusion_pytorch_model.safetensors"],
        ),
        (["model.fp16.safetensors", "zz.safetensors"], ["model.fp16.safetensors"]),
        (["b.safetensors", "a.safetensors"], ["a.safetensors", "b.safetensors"]),
        (["consolidated.safetensors", "model.safetensors"], ["model.safetensors"]),
        (["consolidated.safetensors", ONE, TWO], [ONE, TWO]),
        (["consolidated.safetensors"], ["consolidated.safetensors"]),
        (["adapter_model.safetensors"], ["adapter_model.safetensors"]),
        (
            ["adapter_model.safetensors", "emb.safetensors", "adapter_config.json"],
            ["adapter_model.safetensors"],
        ),
        (["model.safetensors", "pytorch_model.bin", ".hidden.safetensors"], ["model.safetensors"]),
    ],
)
def test_which_files_count(tmp_path: Path, save: Save, present: list[str], chosen: list[str]) -> None:
    for name in present:
        if name.endswith(".json"):
            (tmp_path / name).write_text("{}")
        else:
            save(tmp_path / name, {name: 1})
    checkpoint = open_checkpoint(tmp_path)
    assert names(checkpoint) == chosen
    aside = [
        name for name in present if name.endswith(".safetensors") and name not in chosen and name[0] != "."
    ]
    assert all(any(name in sentence for sentence in sentences(checkpoint)) for name in aside)
    assert bool(checkpoint.notes) == bool(aside)


@pytest.mark.parametrize(
    "order",
    [
        [INDEX, "model.safetensors.index.fp16.json"],
        [INDEX, "diffusion_pytorch_model.safetensors.index.json"],
        [
            "diffusion_pytorch_model.safetensors.index.json",
            "diffusion_pytorch_model.fp16.safetensors.index.json",
        ],
        ["diffusion_pytorch_model.safetensors.index.json", "model.fp16.safetensors.index.json"],
        ["zz.safetensors.index.json", "model.safetensors.index.bf16.json"],
    ],
)
def test_which_index_counts(tmp_path: Path, save: Save, write_json: Save, order: list[str]) -> None:
    for i, name in enumerate(order):
        save(tmp_path / f"part{i}.safetensors", {f"t{i}": i})
        write_json(tmp_path / name, {"weight_map": {f"t{i}": f"part{i}.safetensors"}})
    checkpoint = open_checkpoint(tmp_path)
    assert list(checkpoint.tensors) == ["t0"]
    assert order[1] in " ".join(sentences(checkpoint))


def test_an_index_is_preferred_to_consolidated_weights(sharded: Path, save: Save) -> None:
    save(sharded / "consolidated.safetensors", {"other": 1})
    checkpoint = open_checkpoint(sharded)
    assert list(checkpoint.tensors) == ["a", "b", "c", "d"]
    assert "consolidated.safetensors was left aside" in sentences(checkpoint)[0]
    assert INDEX in sentences(checkpoint)[0]
    assert not checkpoint.notes[0].is_warning


def test_a_diffusers_pipeline(tmp_path: Path, save: Save, write_json: Save) -> None:
    write_json(
        tmp_path / "model_index.json",
        {
            "_class_name": "Pipeline",
            "unet": ["diffusers", "UNet"],
            "vae": ["diffusers", "VAE"],
            "te": ["t", "T"],
            "scheduler": ["diffusers", "S"],
            "safety_checker": [None, None],
            "gone": ["t", "T"],
            "../up": ["t", "T"],
        },
    )
    (tmp_path / "scheduler").mkdir()
    save(tmp_path / "unet" / ONE, {"w": 1})
    write_json(
        tmp_path / "unet" / "diffusion_pytorch_model.safetensors.index.json",
        {"weight_map": {"w": ONE, "x": TWO}},
    )
    save(tmp_path / "vae" / "diffusion_pytorch_model.safetensors", {"w": 2})
    (tmp_path / "te").mkdir()
    (tmp_path / "te" / "flax_model.msgpack").write_bytes(b"PK")
    checkpoint = open_checkpoint(tmp_path)
    assert values(checkpoint) == {"unet/w": 1, "vae/w": 2}
    assert checkpoint.tensors["unet/w"].parts == ("unet/w",)
    assert checkpoint.missing == ("unet/x",)
    said = " ".join(sentences(checkpoint))
    assert "component gone, which is not there" in said
    assert "../up" in said
    assert "te was not compared: nothing tells how to read flax_model.msgpack" in said
    assert "safety_checker" not in said
    assert "scheduler" not in said


@pytest.mark.parametrize(
    ("present", "said"),
    [
        ([], "Give a folder that holds one"),
        (["flax_model.msgpack", "config.json"], "It holds flax_model.msgpack. Safetensors, PyTorch"),
        (["x.gguf", "y.onnx"], "It holds x.gguf, y.onnx: give one of them"),
        (["optimizer.pt", "scheduler.pt"], "It holds optimizer.pt"),
        (["checkpoint-500/model.safetensors"], "Its folders checkpoint-500 hold some: give one of them"),
    ],
)
def test_folders_without_weights(tmp_path: Path, present: list[str], said: str) -> None:
    for name in present:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"{}")
    with pytest.raises(SourceError) as caught:
        open_checkpoint(tmp_path)
    assert "looked for an index (*.safetensors.index.json, *.bin.index.json), model.safetensors" in str(caught.value)
    assert said in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0)
    with pytest.raises(SourceError, match="permissions"):
        open_checkpoint(tmp_path / "locked")
    with pytest.raises(SourceError, match="Permission denied"):
        open_checkpoint(tmp_path / "locked" / "a.safetensors")


@pytest.mark.parametrize(
    "name",
    [
        "../out.safetensors",
        "/etc/passwd",
        "a/../../out.safetensors",
        "a//b",
        "./a",
        "a\\b",
        "C:a",
        "a\0b",
        "a" * 513,
        "",
        "a/",
    ],
)
def test_names_in_an_index_cannot_lead_out(sharded: Path, save: Save, write_json: Save, name: str) -> None:
    save(sharded.parent / "out.safetensors", {"secret": 1})
    assert not is_plain(name)
    write_json(sharded / INDEX, {"weight_map": {"a": TWO, "secret": name}})
    with pytest.raises(FormatError, match="not a plain path inside the folder"):
        open_checkpoint(sharded)


def test_an_index_may_name_a_folder_below(sharded: Path, save: Save, write_json: Save) -> None:
    save(sharded / "sub" / "x.safetensors", {"x": 7})
    write_json(sharded / INDEX, {"weight_map": {"x": "sub/x.safetensors"}})
    assert values(open_checkpoint(sharded)) == {"x": 7}


def test_links_out_of_the_folder_are_not_followed(tmp_path: Path, save: Save) -> None:
    target = save(tmp_path / "elsewhere" / "a.safetensors", {"a": 1})
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "model.safetensors").symlink_to(target)
    with pytest.raises(SourceError, match="leads out of its folder"):
        open_checkpoint(folder)
    # named by the user himself, it is meant
    assert list(open_checkpoint(folder / "model.safetensors").tensors) == ["a"]
    (tmp_path / "alias").symlink_to(target.parent)
    assert list(open_checkpoint(tmp_path / "alias").tensors) == ["a"]


@pytest.mark.parametrize("target", ["/dev/zero", "model.safetensors", "pipe", "sub"])
def test_links_to_what_is_no_file(tmp_path: Path, target: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "sub").mkdir()
    (tmp_path / "model.safetensors").symlink_to(target)
    with pytest.raises(SourceError, match=r"leads out|not a regular file|links|no weights"):
        open_checkpoint(tmp_path)


@pytest.fixture
def cached(tmp_path: Path, save: Save, write_json: Save) -> Path:
    """Return a snapshot in a Hugging Face cache, all links."""
    model = tmp_path / "hub" / "models--org--name"
    snapshot = model / "snapshots" / ("0" * 40)
    (snapshot / "unet").mkdir(parents=True)
    save(model / "blobs" / "aaa", {"w": 1})
    write_json(model / "blobs" / "bbb", {"num_attention_heads": 4})
    (snapshot / "model.safetensors").symlink_to("../../blobs/aaa")
    (snapshot / "config.json").symlink_to("../../blobs/bbb")
    (snapshot / "unet" / "model.safetensors").symlink_to("../../../blobs/aaa")
    return snapshot


def test_a_hugging_face_cache_is_read(cached: Path) -> None:
    for given in (cached, cached / "model.safetensors"):
        checkpoint = open_checkpoint(given)
        assert values(checkpoint) == {"w": 1}
        assert checkpoint.config == {"num_attention_heads": 4}
        assert names(checkpoint) == ["model.safetensors"]
    assert values(open_checkpoint(cached / "unet")) == {"w": 1}


def test_the_cache_of_another_model_is_out_of_bounds(cached: Path, save: Save) -> None:
    other = save(cached.parents[2] / "models--org--other" / "blobs" / "ccc", {"w": 1})
    (cached / "model.safetensors").unlink()
    (cached / "model.safetensors").symlink_to(other)
    with pytest.raises(SourceError, match="leads out of its folder"):
        open_checkpoint(cached)


def test_checkpoints_in_folders_of_a_checkpoint_are_told(tmp_path: Path, save: Save) -> None:
    save(tmp_path / "model.safetensors", {"w": 1})
    save(tmp_path / "checkpoint-5" / "model.safetensors", {"w": 2})
    (tmp_path / "logs").mkdir()
    checkpoint = open_checkpoint(tmp_path)
    assert values(checkpoint) == {"w": 1}
    assert sentences(checkpoint) == ["Its folders checkpoint-5 hold checkpoints as well, which were not compared."]
