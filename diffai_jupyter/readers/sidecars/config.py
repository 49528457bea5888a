"""The configuration of the model and of its like."""

from __future__ import annotations

from diffai_jupyter.checkpoint.model import Json
from diffai_jupyter.readers.sidecars.folder import SidecarFolder

_QUANTIZATION = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")


def read_config(files: SidecarFolder) -> dict[str, Json]:
    """Read ``config.json``; the other configurations get a key of their own.

    A ``quantization_config`` inside ``config.json`` is preferred to the older separate files.
    """
    config = files.read("config.json")
    for key in ("generation_config", "adapter_config"):
        if content := files.read(f"{key}.json"):
            config[key] = content
    for name in _QUANTIZATION:
        if "quantization_config" not in config and (content := files.read(name)):
            config["quantization_config"] = content
    return config
