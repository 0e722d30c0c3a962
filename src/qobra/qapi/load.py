"""Load a schema: read files through a loader, follow ``include``, build definitions and check them."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from qobra.errors import strerror
from qobra.qapi.build import build
from qobra.qapi.check import check_schema
from qobra.qapi.error import Position, QapiError
from qobra.qapi.parser import Expression, parse
from qobra.qapi.rules import Rules
from qobra.qapi.schema import Schema

if TYPE_CHECKING:
    from qobra.qapi.parser import Parsed

Loader = Callable[[str], str | None]
"""The text of an included file by its name, or None to stub it: types it would bring are then taken for ``any``.

Raises FileNotFoundError where there is none.
"""

MAX_FILES = 1000
MAX_INCLUDE_DEPTH = 64
SCHEMA_FILE = os.path.join(os.path.dirname(os.path.dirname(__file__)), "schema", "qapi-schema.json")
"""Qobra's own contract."""


def load(
    text: str,
    file: str = "<schema>",
    *,
    include: Loader | None = None,
    lenient: bool = False,
    strict: bool = False,
    check: bool = True,
) -> Schema:
    """Load a schema from its text. Raises QapiError with the place of what is wrong.

    Without ``include`` an include is an error; it is asked for names relative to ``file``. ``lenient`` passes over what
    is no schema text (see :func:`qobra.qapi.parser.parse`); ``strict`` holds a schema that is whole, and written as
    today, to all of today's rules (:mod:`qobra.qapi.rules`); ``check=False`` leaves types unresolved.
    """
    reader = _Reader(include, lenient, os.path.dirname(file))
    reader.read(text, file)
    if check:
        stubs = reader.stubbed or lenient
        check_schema(reader.schema, stubs=stubs)
        if strict and not stubs:
            reader.rules.enforce(reader.schema)
    return reader.schema


def load_file(
    path: str | os.PathLike[str], *, lenient: bool = False, strict: bool = False, stubs: bool = False
) -> Schema:
    """Load a schema from a file; includes are looked for beside it, and stubbed if missing where ``stubs`` is set."""
    path = os.fspath(path)
    directory = os.path.dirname(path)

    def include(name: str) -> str | None:
        target = os.path.join(directory, name)
        if not os.path.exists(target):
            if stubs:
                return None
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), target)
        return _read(target)

    return load(_read(path), path, include=include, lenient=lenient, strict=strict)


def load_qobra() -> Schema:
    """Load Qobra's own contract."""
    return load_file(SCHEMA_FILE)


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as stream:
            return stream.read()
    except OSError as error:
        raise QapiError(Position(path, 1, 1), f"cannot read the schema: {strerror(error)}") from error
    except UnicodeDecodeError as error:
        raise QapiError(Position(path, 1, 1), f"expected UTF-8 text, got 0x{error.object[error.start]:02x}") from error


class _Reader:
    def __init__(self, include: Loader | None, lenient: bool, directory: str) -> None:
        self.schema = Schema()
        self.stubbed = False
        self.rules = Rules()
        self._include = include
        self._lenient = lenient
        self._directory = directory
        self._seen: set[str] = set()
        self._open: list[str] = []

    def read(self, text: str, file: str) -> None:
        parsed: Parsed = parse(text, file, lenient=self._lenient)
        file = os.path.normpath(file)
        self._seen.add(file)
        self._open.append(file)
        self.schema.skipped += parsed.skipped
        self.rules.breaches += parsed.breaches
        section = os.path.basename(file).removesuffix(".json")
        self.schema.titles[section] = parsed.title
        for expression in parsed.expressions:
            if "include" in expression.data:
                self._follow(expression, file)
            elif "pragma" in expression.data:
                self.rules.read_pragma(expression)
            else:
                self._define(expression, section)
        self._open.pop()

    def _define(self, expression: Expression, section: str) -> None:
        try:
            definition = build(expression, section)
            self.schema.add(definition)
            self.rules.check_expression(expression, definition)
        except QapiError as error:
            if not self._lenient:
                raise
            self.schema.skipped.append(error)

    def _follow(self, expression: Expression, file: str) -> None:
        name = expression.data["include"]
        position = expression.keys["include"]
        if not isinstance(name, str) or len(expression.data) != 1:
            raise QapiError(position, "expected the name of one file to include, and no other member")
        target = os.path.normpath(os.path.join(os.path.dirname(file), name))
        if target in self._open:
            raise QapiError(position, f"expected an include that does not lead back to itself, got '{name}'")
        if target in self._seen:
            return
        if self._include is None:
            raise QapiError(position, f"expected no include, as nothing was given to load '{name}' with")
        if len(self._seen) >= MAX_FILES or len(self._open) > MAX_INCLUDE_DEPTH:
            raise QapiError(position, f"expected at most {MAX_FILES} files and {MAX_INCLUDE_DEPTH} levels of includes")
        self._seen.add(target)
        try:
            text = self._include(os.path.relpath(target, self._directory or "."))
        except FileNotFoundError:
            raise QapiError(position, f"there is no file '{name}' to include") from None
        if text is None:
            self.stubbed = True
        else:
            self.read(text, target)
