"""Packages of other projects, which ``pip install`` brings and an environment that ``make run`` made has not."""

from __future__ import annotations

from types import ModuleType

from qobra.errors import QobraError


def need(package: str, purpose: str) -> ModuleType:
    """The module ``package``. Raises QobraError, which says that ``purpose`` needs it, where it is not installed."""
    try:
        return __import__(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise QobraError(f"{purpose} needs the Python package '{package}', which is not installed") from None
