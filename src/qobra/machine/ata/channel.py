"""The ports of an IDE channel: eight command registers and one of control, shared by two devices (ATA/ATAPI-7, 5.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qobra.machine.ata import regs
from qobra.machine.vmstate import VmState, part, u8

if TYPE_CHECKING:
    from qobra.machine.ata.bmdma import BusMaster
    from qobra.machine.ata.bus import IdeBus
    from qobra.machine.ata.device import AtaDevice
    from qobra.machine.irq import Line


class Channel:
    """One channel of a controller: the host's end of the cable ``bus``, which interrupts on ``irq``."""

    count_bits = 8

    vmstate = VmState(u8("_unit", maximum=1), u8("_control"), part("engine"))

    def __init__(self, bus: IdeBus, irq: Line, engine: BusMaster) -> None:
        self._bus = bus
        self._irq = irq
        self.engine = engine
        self._unit = 0
        self._control = 0
        bus.port = self

    def reset(self) -> None:
        """As after power-on."""
        self._unit = 0
        self._control = 0
        self.engine.reset()
        self._irq.set(0)

    # -- what the devices call

    def interrupt(self, device: AtaDevice) -> None:
        if not self._control & regs.NO_INTERRUPT:
            self.engine.interrupted()
            self._irq.set(1)

    def data_ready(self, device: AtaDevice) -> None:
        pass  # the guest moves the data itself

    def dma_ready(self, device: AtaDevice) -> None:
        self.engine.wait(device)

    def dma_done(self, device: AtaDevice) -> None:
        self.engine.done()

    def command_done(self, device: AtaDevice) -> None:
        pass  # the guest reads the registers itself

    # -- ports

    @property
    def _selected(self) -> AtaDevice | None:
        return self._bus.unit(self._unit)

    def read_command(self, offset: int, width: int) -> int:
        """The command block; the data register is 16 or 32 bits wide, all others eight."""
        if offset == 0 and width > 1:
            device = self._selected
            return device.read_data(width) if device is not None else 0
        return sum(self._read_byte(offset + i) << 8 * i for i in range(width))

    def write_command(self, offset: int, width: int, value: int) -> None:
        """Write to the command block."""
        if offset == 0 and width > 1:
            device = self._selected
            if device is not None:
                device.write_data(width, value)
            return
        for i in range(width):
            self._write_byte(offset + i, value >> 8 * i & 0xFF)

    def _read_byte(self, offset: int) -> int:
        device = self._selected
        if offset == 7:
            self._irq.set(0)
        if device is None:
            return 0
        if offset == 0:
            return 0xFF
        return device.read_register(offset, high_order=bool(self._control & regs.HIGH_ORDER))

    def _write_byte(self, offset: int, value: int) -> None:
        self._control &= ~regs.HIGH_ORDER
        units = [unit for unit in (self._bus.unit(0), self._bus.unit(1)) if unit is not None]
        if offset == 7:
            self._irq.set(0)
            device = self._selected
            if value == regs.DIAGNOSE:
                # Both devices take it, and the first one is selected then.
                self._unit = 0
                for device in units:
                    device.execute(value)
            elif device is not None:
                device.execute(value)
        elif offset:
            busy = self._selected
            if busy is not None and busy.status & (regs.BUSY | regs.DRQ):
                return
            for device in units:
                device.write_register(offset, value)
            if offset == 6:
                self._unit = value >> 4 & 1

    def read_control(self, _offset: int, _width: int) -> int:
        """The status, without taking back the interrupt."""
        device = self._selected
        return device.status if device is not None else 0

    def write_control(self, _offset: int, _width: int, value: int) -> None:
        """Interrupts on and off, and the reset of both devices."""
        before, self._control = self._control, value & 0xFF
        rising, falling = value & ~before, before & ~value
        for number in (0, 1):
            device = self._bus.unit(number)
            if device is None:
                continue
            if rising & regs.SOFT_RESET:
                device.restart()
                device.status = regs.BUSY | regs.SEEK
                self.engine.forget()
            elif falling & regs.SOFT_RESET:
                device.restart()
        if rising & regs.SOFT_RESET:
            self._unit = 0
