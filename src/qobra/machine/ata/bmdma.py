"""Bus-master DMA of IDE controllers (SFF-8038i): a table of memory ranges, and a start bit for each channel."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qobra.machine.dma import GuestMemory, ScatterList
from qobra.machine.vmstate import VmState, flag, u8, u32

if TYPE_CHECKING:
    from qobra.machine.ata.device import AtaDevice

_START, _TO_MEMORY = 0x01, 0x08
_ACTIVE, _FAILED, _INTERRUPT, _CAPABLE = 0x01, 0x02, 0x04, 0x60
_TABLE_LIMIT = 4096
_LAST = 0x80000000


class BusMaster:
    """The engine of one channel. ``memory`` is what it reaches."""

    vmstate = VmState(u8("command", "status"), u32("table"), flag("_more"))

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory
        self._device: AtaDevice | None = None
        self._running: AtaDevice | None = None
        self._more = False
        self.reset()

    def reset(self) -> None:
        """As after power-on."""
        self.command = 0
        self.status = 0
        self.table = 0
        self._device = self._running = None

    # -- the device's side

    def wait(self, device: AtaDevice) -> None:
        """``device`` has a transfer to make."""
        self._device = device
        if self.status & _ACTIVE:
            self._run()

    def done(self) -> None:
        """The transfer is over. The engine stays active while the table goes on."""
        self._device = self._running = None
        if not self._more:
            self.status &= ~_ACTIVE

    def interrupted(self) -> None:
        """The device signalled its interrupt."""
        self.status |= _INTERRUPT

    def forget(self) -> None:
        """The device was reset."""
        self._device = self._running = None

    # -- registers

    def read(self, offset: int) -> int:
        """A byte of the eight registers."""
        if offset == 0:
            return self.command
        if offset == 2:
            return self.status
        if offset >= 4:
            return self.table >> 8 * (offset - 4) & 0xFF
        return 0xFF

    def write(self, offset: int, value: int) -> None:
        """Write a byte of the eight registers."""
        if offset == 0:
            self._write_command(value)
        elif offset == 2:
            self.status = value & _CAPABLE | self.status & _ACTIVE | self.status & ~value & (_FAILED | _INTERRUPT)
        elif offset >= 4:
            shift = 8 * (offset - 4)
            self.table = (self.table & ~(0xFF << shift) | value << shift) & 0xFFFFFFFC

    def _write_command(self, value: int) -> None:
        before, self.command = self.command, value & (_START | _TO_MEMORY)
        if (before ^ value) & _START:
            if value & _START:
                if not self.status & _ACTIVE:
                    self.status |= _ACTIVE
                    if self._device is not None:
                        self._run()
            else:
                # What the device has begun ends before the engine stops.
                if self._running is not None:
                    self._running.requests.drain()
                self.status &= ~_ACTIVE
                self._more = False

    def _run(self) -> None:
        device, self._device = self._device, None
        if device is None:
            return
        self._running = device
        wanted = device.dma_length
        pieces = ScatterList(self._memory)
        self._more = True
        for at in range(0, _TABLE_LIMIT, 8):
            entry = self._memory.read(self.table + at, 8)
            address, size = int.from_bytes(entry[:4], "little"), int.from_bytes(entry[4:], "little")
            pieces.add(address & ~1, size & 0xFFFE or 0x10000)
            last = bool(size & _LAST)
            if last or pieces.length >= wanted:
                self._more = pieces.length > wanted or not last
                break
        device.run_dma(pieces)
