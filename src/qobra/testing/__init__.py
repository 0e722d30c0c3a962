"""A test double for programs that talk QMP: see :class:`QobraServer`, and :mod:`qobra.testing.plugin` for pytest."""

from __future__ import annotations

from qobra.testing.faults import Faults
from qobra.testing.server import QobraServer

__all__ = ["Faults", "QobraServer"]
