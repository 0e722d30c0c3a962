"""Imports point down only, as docs/architecture.md draws the layers."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import qobra

ROOT = Path(qobra.__file__).parent

# The faces of the package for other programs stand beside it and use all of it; every other file there is base.
FACES = {"__main__", "image", "fs"}

# A package may import its own layer and those below.
LAYERS = [
    {"native", *(path.stem for path in ROOT.glob("*.py"))} - FACES,
    {"qapi", "schema", "model"},
    {"nbd"},
    {"object", "crypto"},
    {"block"},
    {"chardev", "net", "display", "audio", "tpm"},
    {"machine", "migration", "dump"},
    {"qmp"},
    {"command"},
    {"client", "testing", "cli", *FACES},
]
RANK = {package: rank for rank, layer in enumerate(LAYERS) for package in layer}

# Narrower than the layers say.
ONLY = {
    "client": {"client", *LAYERS[0], *LAYERS[1]},
    "nbd": {"nbd", *LAYERS[0]},
    "qapi": {"qapi", "model", *LAYERS[0]},
    "model": {"model", *LAYERS[0]},
}

# `qobra.open` is the one name of the package itself, looked up when it is first used.
EXCEPTIONS = {("__init__.py", "image")}


def test_every_package_has_its_layer() -> None:
    found = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert found <= RANK.keys()


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    relative = path.relative_to(ROOT)
    package = relative.parts[0].removesuffix(".py")
    assert package in RANK, f"{relative}: place {package!r} in a layer"
    for line, imported in imports(path):
        if (str(relative), imported) in EXCEPTIONS:
            continue
        where = f"{relative}:{line}: {package} may not import {imported}"
        assert imported in RANK, where
        assert RANK[imported] <= RANK[package], where
        assert imported in ONLY.get(package, RANK), where


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """The packages of qobra that a module imports, but for what only its type checker sees."""
    tree = ast.parse(path.read_text(), str(path))
    for node in running(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
            if node.module == "qobra":
                names = [f"qobra.{alias.name}" for alias in node.names if alias.name != "__version__"]
        for name in names:
            parts = name.split(".")
            if parts[0] == "qobra" and len(parts) > 1:
                yield node.lineno, parts[1]  # type: ignore[attr-defined]


def running(node: ast.AST) -> Iterator[ast.AST]:
    """``node`` and all below it but the bodies of ``if TYPE_CHECKING``."""
    yield node
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
        return
    for child in ast.iter_child_nodes(node):
        yield from running(child)
