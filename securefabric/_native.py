"""Guards the way to the native module that links torch.

torch's C++ interface changes with every minor version, so ``_C`` works with exactly the minor it
was built against. That has to be checked before it is loaded: loading it into another torch may
crash instead of failing.
"""

from __future__ import annotations

__all__ = ["check_torch_version"]

_REBUILD = "rebuild securefabric against the installed torch with `make setup` in its source tree"


def check_torch_version() -> None:
    """Raise ImportError unless ``_C`` was built against the torch that is installed."""
    import torch

    try:
        from ._torch_version import TORCH_VERSION
    except ImportError as error:
        raise ImportError(
            f"securefabric's native core is not built ({error}); {_REBUILD}"
        ) from None
    if _minor(TORCH_VERSION) != _minor(torch.__version__):
        raise ImportError(
            f"securefabric was built against torch {TORCH_VERSION}, but torch "
            f"{torch.__version__} is installed; {_REBUILD}"
        )


def _minor(version: str) -> tuple[str, ...]:
    return tuple(version.split(".")[:2])
