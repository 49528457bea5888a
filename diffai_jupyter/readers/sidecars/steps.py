"""The step in the name of a folder or file: the weakest word for it."""

from __future__ import annotations

import re
from pathlib import PurePath

from diffai_jupyter.checkpoint.model import Training
from diffai_jupyter.readers.sidecars.training import known_fields

_FOLDER = re.compile(r"checkpoint-(\d{1,18})", re.IGNORECASE)
_EITHER = re.compile(r"(?:.*[-_=.])?(?:global[-_]?)?steps?[-_=]?(\d{1,18})(?:[-_=.]\D.*)?", re.IGNORECASE)


def step_in_name(folder: str, file: str = "") -> Training:
    """Return the step that a file is named after, or the folder it lies in.

    Examples
    --------
    >>> step_in_name("checkpoint-500").step.value, step_in_name("run", "epoch=3-step=90.ckpt").step.value
    (500, 90)
    >>> step_in_name("run-7", "model.safetensors").step.is_known
    False
    """
    stem = PurePath(file).name.rpartition(".")[0]
    if stem and (found := _EITHER.fullmatch(stem)):
        return Training(**known_fields("name of the file", step=int(found[1])))
    name = PurePath(folder).name
    if found := _FOLDER.fullmatch(name) or _EITHER.fullmatch(name):
        return Training(**known_fields("name of the folder", step=int(found[1])))
    return Training()
