"""The drives of the command line, those that a machine has although nobody named them, and their places."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qobra.chardev.options import split
from qobra.errors import QobraError
from qobra.machine.drive import Drives
from qobra.machine.plug import add_device
from qobra.report import report_error

if TYPE_CHECKING:
    from qobra.machine.board import Board

# The interface is the board's own where none is named.
SHORT_OPTIONS = {
    "hda": "index=0,media=disk",
    "hdb": "index=1,media=disk",
    "hdc": "index=2,media=disk",
    "hdd": "index=3,media=disk",
    "cdrom": "index=2,media=cdrom",
    "fda": "if=floppy,index=0",
    "fdb": "if=floppy,index=1",
    "sd": "if=sd",
    "pflash": "if=pflash",
}
_UNASKED = {"cdrom": "index=2,media=cdrom", "floppy": "if=floppy,index=0", "sd": "if=sd,index=0"}
# Who names one of these devices takes care of the drive himself.
_REPLACED_BY = {"cdrom": ("ide-cd", "ide-hd", "scsi-cd", "scsi-hd"), "floppy": ("isa-fdc", "floppy"), "sd": ()}


def add_drives(board: Board, options: list[tuple[str, str]], *, snapshot: bool, devices: set[str]) -> None:
    """Make the backends of all drives; ``devices`` are the device models that the user names.

    Raises QobraError, which names the option.
    """
    drives = Drives(
        board.tree.machine,
        default_interface=board.default_drive_interface,
        ide_units=board.ide_units,
        snapshot=snapshot,
    )
    for name, value in options:
        try:
            if name == "drive":
                drives.add_text(value).option = f"-drive {value}"
            elif name in SHORT_OPTIONS:
                drives.add(split(SHORT_OPTIONS[name]) | {"file": value}).option = f"-{name} {value}"
        except QobraError as error:
            raise error.prefixed(f"-{name} {value}: ")
        for warning in drives.warnings:
            report_error(f"-{name} {value}: warning: {warning}")
        drives.warnings.clear()
    if not board.no_defaults:
        for kind in board.default_drives:
            text = split(_UNASKED[kind])
            if devices.isdisjoint(_REPLACED_BY[kind]) and drives.is_free(text):
                drives.add(text).unasked = True
    board.drives = drives.drives


def plug_drives(board: Board) -> None:
    """Show each drive where it belongs. Raises QobraError for those that the board has no place for."""
    board.plug_drives(board.drives)
    for drive in board.drives:
        if not drive.claimed and drive.interface not in ("none", "virtio") and not drive.unasked:
            raise QobraError(
                f"{drive.option}: machine type does not support if={drive.interface},bus={drive.bus},unit={drive.unit}"
            )


def plug_virtio_drives(board: Board) -> None:
    """Make the cards of ``if=virtio``, which take places after those of all ``-device``. Raises QobraError."""
    for drive in board.drives:
        if drive.interface == "virtio":
            try:
                add_device(
                    board.tree.machine,
                    {"driver": board.virtio_blk_type, "drive": drive.backend.name},
                    keyval=True,
                )
            except QobraError as error:
                raise error.prefixed(f"{drive.option}: ")
            drive.claimed = True
