"""Guests of a PC that drive one PCI function by its registers: a network card, or an adapter with a SCSI disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qobra.machine.launch import simple_machine
from qobra.machine.plug import add_device
from qobra.testing.guest import BoardAccess, PciFunction
from qobra.testing.network import RecordingWire

_SLOT = 5


class PciGuest:
    """A guest with a device of type ``driver``, switched on; ``base`` is where base address ``bar`` leads to."""

    def __init__(self, driver: str, bar: int, **options: str) -> None:
        self.machine = simple_machine(memory=32 << 20, running=True)
        self.access = BoardAccess(self.machine)
        with self.machine.control:
            given = {"driver": driver, "addr": str(_SLOT), **options}
            self.device: Any = add_device(self.machine, given, keyval=True)
        self.function = PciFunction(self.access, _SLOT << 3)
        self.function.enable()
        self.base = self.function.bars[bar]

    def close(self) -> None:
        """End the machine."""
        self.machine.close()


class CardGuest(PciGuest):
    """A guest with a network card; ``wire`` keeps what it sends."""

    mac = bytes.fromhex("525400123456")

    def __init__(self, driver: str, bar: int) -> None:
        super().__init__(driver, bar, mac=self.mac.hex(":"), id="card")
        self.card = self.device
        self.wire = RecordingWire()
        self.card.backend = self.wire

    def close(self) -> None:
        self.card.backend = None
        super().close()


class AdapterGuest(PciGuest):
    """A guest with a SCSI adapter, and with a disk as target 3 if there is a ``directory`` for its ``image``.

    Each of the disk's 128 blocks is full of its number.
    """

    image: Path

    def __init__(self, driver: str, bar: int, directory: Path | None) -> None:
        super().__init__(driver, bar, id="s")
        if directory is None:
            return
        self.image = directory / "disk"
        self.image.write_bytes(b"".join(bytes([number]) * 512 for number in range(128)))
        with self.machine.control:
            self.machine.block.add_node({"driver": "file", "filename": str(self.image), "node-name": "disk"})
            disk = {"driver": "scsi-hd", "drive": "disk", "bus": "s.0", "scsi-id": "3"}
            add_device(self.machine, disk, keyval=True)
