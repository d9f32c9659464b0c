from __future__ import annotations

import sys

import pytest
import torch
from native_fake import install

from securefabric._native import check_torch_version


def test_check_torch_version__same_minor_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    major, minor, *_ = torch.__version__.split(".")
    install(monkeypatch, f"{major}.{minor}.99+other")
    check_torch_version()


@pytest.mark.parametrize("version", ["2.1.0", "1.13.0", "3.13.0"])
def test_check_torch_version__names_both_and_the_fix(
    version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, version)
    with pytest.raises(ImportError, match="make setup") as info:
        check_torch_version()
    assert version in str(info.value)
    assert torch.__version__ in str(info.value)


def test_check_torch_version__not_built_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "securefabric._torch_version", None)
    with pytest.raises(ImportError, match=r"not built.*make setup"):
        check_torch_version()
