"""``edu``: a device for learning to write drivers, with registers, interrupts and DMA.

As the published description has it (QEMU's ``docs/specs/edu``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qobra.machine.devices import registry
from qobra.machine.dma import GuestMemory
from qobra.machine.memory import Registers
from qobra.machine.pci.device import PciDevice
from qobra.machine.pci.msix import Msi
from qobra.machine.vmstate import VmState, raw, timer, u32, u64
from qobra.object.property import Int

if TYPE_CHECKING:
    from qobra.object.tree import ObjectTree

_SIZE = 1 << 20
_IDENTITY = 0x010000ED
_ID, _LIVENESS, _FACTORIAL, _STATUS, _INTERRUPTS, _RAISE, _ACKNOWLEDGE = 0x00, 0x04, 0x08, 0x20, 0x24, 0x60, 0x64
_SOURCE, _DESTINATION, _COUNT, _COMMAND = 0x80, 0x88, 0x90, 0x98
_WIDE = 0x80
"""From here on registers may be accessed eight bytes wide; those before are four bytes wide."""
_STATUS_INTERRUPT = 0x80
_DMA_RUN, _DMA_TO_MEMORY, _DMA_INTERRUPT = 1, 2, 4
_FACTORIAL_DONE, _DMA_DONE = 0x001, 0x100
_BUFFER, _BUFFER_SIZE = 0x40000, 4096
_DMA_TIME_NS = 100_000_000
_ZERO_FROM = 34
"""From this number on a factorial is a multiple of 2**32."""


@registry.register("edu")
class Edu(PciDevice):
    """Inverts, computes factorials (modulo 2**32), raises interrupts, and copies to and from a buffer of its own."""

    type_name = "edu"
    category = "Misc"
    vendor_id = 0x1234
    device_id = 0x11E8
    revision = 0x10
    class_id = 0x00FF
    interrupt_pin = 1

    dma_mask = Int((1 << 28) - 1, type="uint64", name="dma_mask", show_default=False)

    vmstate = VmState(
        u32("_liveness", "_factorial", "_status", "_interrupts"),
        u64("_source", "_destination", "_count", "_command"),
        raw("_buffer"),
        timer("_dma_timer"),
    )

    def __init__(self, tree: ObjectTree) -> None:
        super().__init__(tree)
        self._liveness = self._factorial = self._status = self._interrupts = 0
        self._source = self._destination = self._count = self._command = 0
        self._buffer = bytearray(_BUFFER_SIZE)

    def realize(self) -> None:
        self.msi = Msi(self)
        self._memory = GuestMemory(self.board.memory, self.may_master)
        self._dma_timer = self.board.clock.timer(self._transfer)
        self.add_bar(0, Registers("edu-mmio", _SIZE, self._read, self._write, valid=(4, 8), impl=(4, 8)))

    def unrealize(self) -> None:
        self._dma_timer.cancel()
        super().unrealize()

    def reset(self) -> None:
        # The registers of the device itself are left as they are: there is nothing that says otherwise.
        super().reset()
        self.msi.reset()
        self._show_interrupts()

    def _read(self, offset: int, width: int) -> int:
        narrow = {
            _ID: _IDENTITY,
            _LIVENESS: self._liveness,
            _FACTORIAL: self._factorial,
            _STATUS: self._status,
            _INTERRUPTS: self._interrupts,
        }
        wide = {
            _SOURCE: self._source,
            _DESTINATION: self._destination,
            _COUNT: self._count,
            _COMMAND: self._command,
        }
        found = wide if offset >= _WIDE else narrow if width == 4 else {}
        return found.get(offset, -1) & ((1 << 8 * width) - 1)

    def _write(self, offset: int, width: int, value: int) -> None:
        if offset >= _WIDE:
            self._write_dma(offset, value)
        elif width != 4:
            return
        elif offset == _LIVENESS:
            self._liveness = ~value & 0xFFFFFFFF
        elif offset == _FACTORIAL:
            self._compute(value)
        elif offset == _STATUS:
            self._status = value & _STATUS_INTERRUPT
        elif offset == _RAISE:
            self._raise(value)
        elif offset == _ACKNOWLEDGE:
            self._interrupts &= ~value
            self._show_interrupts()

    def _compute(self, number: int) -> None:
        result = 1 if number < _ZERO_FROM else 0
        for factor in range(2, min(number, _ZERO_FROM) + 1):
            result = result * factor & 0xFFFFFFFF
        self._factorial = result
        if self._status & _STATUS_INTERRUPT:
            self._raise(_FACTORIAL_DONE)

    # -- DMA

    def _write_dma(self, offset: int, value: int) -> None:
        if self._command & _DMA_RUN:
            return  # nothing changes while it works
        if offset == _SOURCE:
            self._source = value
        elif offset == _DESTINATION:
            self._destination = value
        elif offset == _COUNT:
            self._count = value
        elif offset == _COMMAND and value & _DMA_RUN:
            self._command = value
            self._dma_timer.set(self.board.clock.now_ns() + _DMA_TIME_NS)

    def _transfer(self) -> None:
        to_memory = bool(self._command & _DMA_TO_MEMORY)
        start = (self._source if to_memory else self._destination) - _BUFFER
        if start >= 0 and start + self._count <= _BUFFER_SIZE:  # what lies outside of the buffer is not copied
            part = slice(start, start + self._count)
            if to_memory:
                self._memory.write(self._destination & self.dma_mask, self._buffer[part])
            else:
                self._buffer[part] = self._memory.read(self._source & self.dma_mask, self._count)
        self._command &= ~_DMA_RUN
        if self._command & _DMA_INTERRUPT:
            self._raise(_DMA_DONE)

    # -- interrupts

    def _raise(self, bits: int) -> None:
        self._interrupts |= bits
        if not self._interrupts:
            return
        if self.msi.enabled:
            self.msi.notify()
        else:
            self.set_pin(1)

    def _show_interrupts(self) -> None:
        if not self._interrupts or self.msi.enabled:
            self.set_pin(0)
        else:
            self.set_pin(1)
