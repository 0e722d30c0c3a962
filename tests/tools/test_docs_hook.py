"""tools/docs_hook.py: the pages of the manual that are made."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

TOOL = Path(__file__).parent.parent.parent / "tools" / "docs_hook.py"


@pytest.fixture(scope="module")
def hook() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_hook", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_command_is_on_a_page(hook: ModuleType) -> None:
    from qobra.qapi.contract import contract

    text = "\n".join(hook.protocol_pages().values())
    assert [name for name in contract().commands if name not in text] == []


def test_python_pages_have_public_things_only(hook: ModuleType) -> None:
    pages = hook.python_pages()
    client = pages["python/client.md"]
    assert "### qobra.client.sync.Client" in client
    assert "#### Client.supports\n\n```python\ndef supports(self, command: str) -> bool" in client
    assert "._call" not in client
    assert "python/model.md" not in pages


def test_prose_becomes_markdown(hook: ModuleType) -> None:
    node = ast.parse('"""Use ``x``, see :class:`~a.B`::\n\n    code()\n\nThen more.\n    aligned\n"""')
    assert hook.prose(node) == "Use `x`, see `a.B`:\n\n    code()\n\nThen more.\naligned\n"
