"""Pages of the manual that are made: the protocol's from the schema, the Python interface's from docstrings.

mkdocs calls :func:`on_files` before it renders (``hooks`` in mkdocs.yml).
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

SOURCE = Path(__file__).resolve().parent.parent / "src"
# mkdocs runs hooks without the project on its path where the package is not installed.
sys.path.insert(0, str(SOURCE))

if TYPE_CHECKING:
    from mkdocs.structure.files import Files

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef

# Generated modules that say nothing that the protocol's pages do not say.
SKIPPED = {"qobra.model", "qobra.client.sync_commands", "qobra.client.sync_jobs"}


def on_files(files: Files, config: Any) -> Files:
    """Add the made pages to those that are written."""
    from mkdocs.structure.files import File

    for name, text in {**protocol_pages(), **python_pages()}.items():
        files.append(File.generated(config, name, content=text))
    return files


def protocol_pages() -> dict[str, str]:
    """A page a section of the schema, and their index."""
    from qobra.qapi.docs import render_index, render_markdown, sections
    from qobra.qapi.load import load_qobra

    schema = load_qobra()
    pages = {f"protocol/{section}.md": render_markdown(schema, section) for section in sections(schema)}
    return {"protocol/index.md": render_index(schema), **pages}


def python_pages() -> dict[str, str]:
    """A page a package of ``qobra``, with the public things of its public modules."""
    packages: dict[str, list[str]] = {}
    for path in sorted((SOURCE / "qobra").rglob("*.py")):
        parts = [*path.relative_to(SOURCE).with_suffix("").parts]
        if parts[-1] == "__init__":
            parts.pop()
        module = ".".join(parts)
        private = any(part.startswith("_") for part in parts)
        if private or any(module == name or module.startswith(name + ".") for name in SKIPPED):
            continue
        text = "\n".join(module_lines(module, path))
        if text:
            packages.setdefault(parts[1] if path.parent != SOURCE / "qobra" else "base", []).append(text)
    return {f"python/{name}.md": f"# qobra: {name}\n\n" + "\n".join(texts) for name, texts in packages.items()}


def module_lines(module: str, path: Path) -> Iterator[str]:
    """A module's docstring and its public classes and functions, as Markdown."""
    tree = ast.parse(path.read_text(), str(path))
    public = [node for node in tree.body if isinstance(node, Documented) and not node.name.startswith("_")]
    if not ast.get_docstring(tree) and not public:
        return
    yield f"## {module}\n"
    yield prose(tree)
    for node in public:
        yield f"### {module}.{node.name}\n\n```python\n{signature(node)}\n```\n"
        yield prose(node)
        if isinstance(node, ast.ClassDef):
            for member in node.body:
                if isinstance(member, Documented) and not member.name.startswith("_") and ast.get_docstring(member):
                    yield f"#### {node.name}.{member.name}\n\n```python\n{signature(member)}\n```\n"
                    yield prose(member)


def signature(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """The line that declares a class or function, with its decorators."""
    decorators = "".join(f"@{ast.unparse(decorator)}\n" for decorator in node.decorator_list)
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        return f"{decorators}class {node.name}({bases})" if bases else f"{decorators}class {node.name}"
    word = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    returns = f" -> {ast.unparse(node.returns)}" if node.returns is not None else ""
    return f"{decorators}{word} {node.name}({ast.unparse(node.args)}){returns}"


def prose(node: Documented) -> str:
    """A docstring as Markdown: double backquotes, cross references and ``::`` blocks are the only marks it has."""
    text = inspect.cleandoc(ast.get_docstring(node, clean=False) or "")
    lines: list[str] = []
    literal = False
    for line in text.split("\n"):
        if line.rstrip().endswith("::") and not literal:
            line = line.rstrip()[:-1].rstrip(":") + (":" if line.strip() != "::" else "")
            literal = True
        elif literal and line and not line.startswith(" "):
            literal = False
        elif not literal and line.startswith("    "):
            line = line.lstrip()
        for role in (":class:", ":meth:", ":func:", ":mod:", ":data:", ":attr:"):
            line = line.replace(role, "")
        lines.append(line.replace("``", "`").replace("`~", "`"))
    return "\n".join(lines) + "\n"
