"""securefabric: a torch.distributed backend whose every byte crosses the network sealed.

``torch.distributed.init_process_group("securefabric")`` needs no import of this package, which
holds the settings (``Options``), the statistics (``stats``, ``summary``), the errors, and what
encrypts programs that name other backends (``replace_gloo``, ``strict``).
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING

from ._version import __version__

if TYPE_CHECKING:
    from . import errors
    from ._gloo import replace_gloo
    from ._strict import is_strict, strict
    from .errors import SecureFabricError
    from .options import Options
    from .statistics import PathStats, Stats, paths, stats, summary

__all__ = [
    "Options",
    "PathStats",
    "SecureFabricError",
    "Stats",
    "__version__",
    "errors",
    "is_strict",
    "paths",
    "replace_gloo",
    "stats",
    "strict",
    "summary",
]

# Where each public name lives. They are imported on first use, so that the command line and the
# launchers do not pay for `import torch`.
_HOMES = {
    "Options": "options",
    "PathStats": "statistics",
    "SecureFabricError": "errors",
    "Stats": "statistics",
    "is_strict": "_strict",
    "paths": "statistics",
    "replace_gloo": "_gloo",
    "stats": "statistics",
    "strict": "_strict",
    "summary": "statistics",
}
_ROOMS = {"errors", "simulate", "store"}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        value: object = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
        globals()[name] = value
        return value
    if name in _ROOMS:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


def _register() -> None:
    """Register with torch unless torch will do so by itself when it is imported."""
    is_autoload_on = os.environ.get("TORCH_DEVICE_BACKEND_AUTOLOAD", "1") == "1"
    if "torch" not in sys.modules and is_autoload_on:
        if os.environ.get("SECUREFABRIC_STRICT", "0") not in ("", "0"):
            # Strict mode begins inside torch's import and needs most of this package. Imported by
            # a module of ours it would find that one half done, so it comes before all of them.
            importlib.import_module("torch")
        return
    from ._torch_autoload import autoload

    autoload()


_register()
