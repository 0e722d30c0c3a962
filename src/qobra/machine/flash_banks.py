"""What the two flash banks of a board hold: drives ``if=pflash``, or what the board's own properties name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qobra.errors import QobraError
from qobra.object.property import String

if TYPE_CHECKING:
    from qobra.machine.drive import DriveInfo

BANKS = 2


def bank_property() -> String:
    """A board's property for what one of its banks holds."""
    return String(type="str", description="Node name or ID of a block device to use as a backend")


def images(board: Any, drives: list[DriveInfo]) -> dict[int, str]:
    """The ids of drives or names of nodes by bank; the drives are claimed. Raises QobraError for two in one place."""
    found = {index: str(name) for index in range(BANKS) if (name := getattr(board, f"pflash{index}"))}
    for drive in drives:
        if drive.interface != "pflash" or drive.index >= BANKS:
            continue
        if drive.index in found:
            raise QobraError(f"-machine pflash{drive.index} and -drive if=pflash,unit={drive.index} mean the same bank")
        drive.claimed = True
        found[drive.index] = drive.backend.name
    return found
