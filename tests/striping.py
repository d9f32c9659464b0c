"""Lets calls of a few hundred bytes use all engines of a rank, as only large ones do."""

from __future__ import annotations

from typing import Any

from securefabric import _C

STRIPE_BYTES = 256


class _Options(_C.Options):
    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.test_stripe_bytes = STRIPE_BYTES


def stripe_small_calls() -> None:
    """From here on, in this process, which has one engine or several."""
    _C.Options = _Options  # type: ignore[misc]
