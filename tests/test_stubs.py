"""The stubs of the native modules against the modules themselves: same names, none forgotten."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch  # noqa: F401  (before _C, which links its libraries)

import securefabric

MODULES = ("_core", "_C")


def stub_names(body: list[ast.stmt]) -> dict[str, list[ast.stmt]]:
    """Public names that a stub defines, classes with their bodies."""
    names: dict[str, list[ast.stmt]] = {}
    for node in body:
        if isinstance(node, ast.ClassDef):
            names[node.name] = node.body
        elif isinstance(node, ast.FunctionDef):
            names[node.name] = []
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names[node.target.id] = []
    return {name: inner for name, inner in names.items() if not name.startswith("_")}


def native_names(owner: object) -> set[str]:
    """Public names that a native module or class defines itself."""
    return {name for name in vars(owner) if not name.startswith("_")}


def load(name: str) -> tuple[ModuleType, dict[str, list[ast.stmt]]]:
    module = importlib.import_module(f"securefabric.{name}")
    stub = Path(securefabric.__file__).parent / f"{name}.pyi"
    return module, stub_names(ast.parse(stub.read_text()).body)


@pytest.mark.parametrize("name", MODULES)
def test_stub__names_what_the_module_offers(name: str) -> None:
    module, names = load(name)
    assert native_names(module) == set(names)


@pytest.mark.parametrize("name", MODULES)
def test_stub__classes_have_the_members_of_the_module(name: str) -> None:
    module, names = load(name)
    for class_name, body in names.items():
        kind = getattr(module, class_name)
        if isinstance(kind, type) and not issubclass(kind, Exception):
            assert native_names(kind) == set(stub_names(body)), class_name
