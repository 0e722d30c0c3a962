"""Load a schema: read files through a loader, follow ``include``, build definitions and check them."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from qobra.qapi.build import build
from qobra.qapi.check import check_schema
from qobra.qapi.error import Position, QapiError
from qobra.qapi.parser import Expression, parse
from qobra.qapi.schema import Schema

if TYPE_CHECKING:
    from qobra.qapi.parser import Parsed

Loader = Callable[[str], str | None]
"""The text of an included file by its name, or None to stub it: types it would bring are then taken for ``any``."""

MAX_FILES = 1000
MAX_INCLUDE_DEPTH = 64
SCHEMA_FILE = os.path.join(os.path.dirname(os.path.dirname(__file__)), "schema", "qapi-schema.json")
"""Qobra's own contract."""


def load(
    text: str, file: str = "<schema>", *, include: Loader | None = None, lenient: bool = False, check: bool = True
) -> Schema:
    """Load a schema from its text. Raises QapiError with the place of what is wrong.

    Without ``include`` an include is an error. ``lenient`` passes over what is no schema text (see
    :func:`qobra.qapi.parser.parse`); ``check=False`` leaves types unresolved.
    """
    reader = _Reader(include, lenient)
    reader.read(text, file)
    if check:
        check_schema(reader.schema, stubs=reader.stubbed or lenient)
    return reader.schema


def load_file(path: str | os.PathLike[str], *, lenient: bool = False, stubs: bool = False) -> Schema:
    """Load a schema from a file; includes are looked for beside it, and stubbed if missing where ``stubs`` is set."""
    path = os.fspath(path)
    directory = os.path.dirname(path)

    def include(name: str) -> str | None:
        target = os.path.join(directory, name)
        if stubs and not os.path.exists(target):
            return None
        return _read(target)

    return load(_read(path), path, include=include, lenient=lenient)


def load_qobra() -> Schema:
    """Load Qobra's own contract."""
    return load_file(SCHEMA_FILE)


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as stream:
            return stream.read()
    except (OSError, UnicodeDecodeError) as error:
        raise QapiError(Position(path, 1, 1), f"cannot read the schema: {error}") from error


class _Reader:
    def __init__(self, include: Loader | None, lenient: bool) -> None:
        self.schema = Schema()
        self.stubbed = False
        self._include = include
        self._lenient = lenient
        self._seen: set[str] = set()

    def read(self, text: str, file: str, depth: int = 0) -> None:
        parsed: Parsed = parse(text, file, lenient=self._lenient)
        self._seen.add(file)
        self.schema.skipped += parsed.skipped
        section = os.path.basename(file).removesuffix(".json")
        self.schema.titles[section] = parsed.title
        for expression in parsed.expressions:
            if "include" in expression.data:
                self._follow(expression, file, depth)
            elif "pragma" not in expression.data:
                self._define(expression, section)

    def _define(self, expression: Expression, section: str) -> None:
        try:
            self.schema.add(build(expression, section))
        except QapiError as error:
            if not self._lenient:
                raise
            self.schema.skipped.append(error)

    def _follow(self, expression: Expression, file: str, depth: int) -> None:
        name = expression.data["include"]
        position = expression.keys["include"]
        if not isinstance(name, str) or len(expression.data) != 1:
            raise QapiError(position, "expected the name of one file to include, and no other member")
        target = os.path.join(os.path.dirname(file), name)
        if target in self._seen:
            return
        if self._include is None:
            raise QapiError(position, f"expected no include, as nothing was given to load '{name}' with")
        if len(self._seen) >= MAX_FILES or depth >= MAX_INCLUDE_DEPTH:
            raise QapiError(position, f"expected at most {MAX_FILES} files and {MAX_INCLUDE_DEPTH} levels of includes")
        self._seen.add(target)
        text = self._include(name)
        if text is None:
            self.stubbed = True
        else:
            self.read(text, target, depth + 1)
