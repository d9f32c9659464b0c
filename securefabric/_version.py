"""The version of the package, the one place that states it (pyproject.toml reads it here)."""

from __future__ import annotations

__version__ = "0.1.0"
