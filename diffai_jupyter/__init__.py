"""diffai-jupyter: what really changed between two ML checkpoints.

Names are imported when they are first used, so that ``import diffai_jupyter`` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffai_jupyter.comparison import Comparison, compare
    from diffai_jupyter.errors import (
        ArgumentError,
        DiffaiError,
        ExecutorError,
        GateError,
        MissingPackageError,
        SettingError,
        SourceError,
    )
    from diffai_jupyter.readers import open_checkpoint

__version__ = "0.1.0"

_HOMES = {
    "ArgumentError": "errors",
    "Comparison": "comparison",
    "DiffaiError": "errors",
    "ExecutorError": "errors",
    "GateError": "errors",
    "MissingPackageError": "errors",
    "SettingError": "errors",
    "SourceError": "errors",
    "compare": "comparison",
    "load_ipython_extension": "notebook",
    "open_checkpoint": "readers",
    "panel": "notebook.panel",
    "unload_ipython_extension": "notebook",
}

__all__ = [
    "ArgumentError",
    "Comparison",
    "DiffaiError",
    "ExecutorError",
    "GateError",
    "MissingPackageError",
    "SettingError",
    "SourceError",
    "__version__",
    "compare",
    "load_ipython_extension",
    "open_checkpoint",
    "panel",
    "unload_ipython_extension",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
