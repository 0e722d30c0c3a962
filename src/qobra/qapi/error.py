"""What goes wrong in a schema: where, and what would have been right."""

from __future__ import annotations

from typing import NamedTuple

from qobra.errors import QobraError


class Position(NamedTuple):
    """A place in a schema file; ``line`` and ``column`` count from 1."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


class QapiError(QobraError):
    """A schema that cannot be read or makes no sense. ``desc`` begins with ``FILE:LINE:COLUMN: ``."""

    def __init__(self, position: Position, problem: str) -> None:
        super().__init__(f"{position}: {problem}")
        self.position = position
        self.problem = problem
