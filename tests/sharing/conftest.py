"""The notebook of the matrix, run once in each process that asks for it."""

from __future__ import annotations

import copy
from typing import Any

import nbformat
import pytest
from sharing.notebook import run_here, run_in_kernel
from sharing.places import Told

from diffai_jupyter.contract.blocks import Document
from diffai_jupyter.render import charts

# One transparent pixel: drawing takes longer than everything else, and where it is shown is not what it shows.
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c6360000000000005000178f5b86b0000000049454e44ae426082"
)


@pytest.fixture(scope="session")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Document]]:
    """The notebook, its charts drawn as one pixel each, with the documents behind its outputs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(charts, "_encode", lambda _, alt: charts.Png(PIXEL, 640, 480, alt))
        return run_here(tmp_path_factory.mktemp("ipython"))


@pytest.fixture
def notebook(ran: tuple[dict[str, Any], dict[str, Document]]) -> Any:
    """The notebook, as `nbformat` reads it."""
    return nbformat.from_dict(copy.deepcopy(ran[0]))


@pytest.fixture(scope="session")
def told(ran: tuple[dict[str, Any], dict[str, Document]]) -> Told:
    """What has to be seen of the notebook."""
    everything = Told()
    for document in ran[1].values():
        everything.add(document)
    return everything


@pytest.fixture(scope="session")
def kernel_notebook() -> dict[str, Any]:
    """The notebook run by a real kernel, its charts drawn."""
    return run_in_kernel()
