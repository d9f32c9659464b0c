"""Puts the stand-ins of fakes.py where the package imports its native module from."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from fakes import FakeBackend, FakeFabric

import securefabric


def install(monkeypatch: pytest.MonkeyPatch, torch_version: str = torch.__version__) -> None:
    native = types.ModuleType("securefabric._C")
    native.Fabric = FakeFabric  # type: ignore[attr-defined]
    native.Backend = FakeBackend  # type: ignore[attr-defined]
    native.Options = lambda *given: given  # type: ignore[attr-defined]
    native.store_prefix = lambda _store: ""  # type: ignore[attr-defined]
    native.select_interfaces = lambda grammar: [  # type: ignore[attr-defined]
        ("eth0", "10.0.0.1", 1500)
    ]
    built = types.ModuleType("securefabric._torch_version")
    built.TORCH_VERSION = torch_version  # type: ignore[attr-defined]
    for name, module in (("_C", native), ("_torch_version", built)):
        monkeypatch.setitem(sys.modules, f"securefabric.{name}", module)
        monkeypatch.setattr(securefabric, name, module, raising=False)
