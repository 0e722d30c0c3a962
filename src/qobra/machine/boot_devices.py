"""The letters of devices to boot from: a to p, each once; which of them a board knows is its own affair."""

from __future__ import annotations

from qobra.errors import QobraError


def check(letters: str) -> None:
    """Raises QobraError for what can be no order of devices on any board."""
    for position, letter in enumerate(letters):
        if not "a" <= letter <= "p":
            raise QobraError(f"Invalid boot device '{letter}'")
        if letter in letters[:position]:
            raise QobraError(f"Boot device '{letter}' was given twice")
