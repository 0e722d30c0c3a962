"""The adapter: configuration space, registers and interrupts around the processor."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qobra.machine.dma import GuestMemory
from qobra.machine.lsi import regs
from qobra.machine.lsi.scripts import Scripts
from qobra.machine.lsi.target import Target
from qobra.machine.memory import Ram, Registers
from qobra.machine.pci import regs as pci
from qobra.machine.pci.device import PciDevice
from qobra.machine.scsi.bus import ScsiBus, ScsiDevice
from qobra.machine.vmstate import Field, Flag, VmState, part, raw

if TYPE_CHECKING:
    from qobra.object.tree import ObjectTree

_SIZE, _WINDOW, _SCRIPTS_SIZE = 0x100, 0x400, 0x2000
_PAUSE_NS = 1_000_000


def _of_scripts(name: str) -> Field:
    def put(adapter: LsiAdapter, value: bool) -> None:
        setattr(adapter.scripts, name, value)

    return Field(name, Flag(), get=lambda adapter: getattr(adapter.scripts, name), put=put)


class LsiBus(ScsiBus):
    """Eight targets of eight units, besides the adapter."""

    provided = False
    max_target = 7
    max_lun = 0


class LsiAdapter(PciDevice):
    """An adapter with the bus ``ID.0``."""

    abstract = True
    category = "Storage"
    plugs_into = ("conventional-pci-device",)
    vendor_id = 0x1000
    device_id = 0x0012
    subsystem_vendor_id = 0x0000
    subsystem_id = 0x1000
    class_id = 0x0100
    interrupt_pin = 1

    vmstate = VmState(
        raw("_registers"),
        part("target"),
        _of_scripts("running"),
        _of_scripts("waits_for_reselection"),
        _of_scripts("carry"),
        _of_scripts("attention"),
        partial=True,
    )

    def __init__(self, tree: ObjectTree) -> None:
        super().__init__(tree)
        self._registers = bytearray(_SIZE)

    def realize(self) -> None:
        self.config[pci.LATENCY] = 0xFF
        self.dma = GuestMemory(self.board.memory, self.may_master)
        self.scsi_bus = LsiBus(self.tree)
        self.add_bus(self.scsi_bus)
        self.target = Target(self.scsi_bus, self._go_on)
        self.scripts = Scripts(self)
        self._timer = self.board.clock.timer(self._go_on)
        self.add_bar(0, Registers("lsi-io", _SIZE, self._read, self._write, impl=(1, 1)), io=True)
        self.add_bar(1, Registers("lsi-mmio", _WINDOW, self._read, self._write, impl=(1, 1)))
        self._memory = Ram("lsi-ram", _SCRIPTS_SIZE)
        self.add_bar(2, self._memory)
        self._clear()

    def unrealize(self) -> None:
        self._timer.cancel()
        self.target.requests.close()
        super().unrealize()
        self._memory.close()

    def reset(self) -> None:
        super().reset()
        self._clear()

    def _clear(self) -> None:
        self._timer.cancel()
        self._registers[:] = bytes(_SIZE)
        for at, value in (regs.ABSENT | regs.INITIAL).items():
            self._registers[at] = value
        self.scripts.reset()
        self.target.leave()
        self.update_interrupt()

    @property
    def working(self) -> bool:
        return self.target.requests.working

    def state_blocked(self) -> str | None:
        return "a command waits for its disk" if self.target.requests.pending else None

    def state_loaded(self) -> None:
        super().state_loaded()
        self.run_later()

    # -- what the processor uses

    def byte(self, offset: int) -> int:
        """A register of one byte."""
        return self._registers[offset]

    def register(self, offset: int, width: int) -> int:
        """A register of several bytes."""
        return int.from_bytes(self._registers[offset : offset + width], "little")

    def set_register(self, offset: int, width: int, value: int) -> None:
        """Set a register, whatever the driver may write there."""
        self._registers[offset : offset + width] = value.to_bytes(width, "little")

    def run_later(self) -> None:
        """Let others have their turn first."""
        self._timer.set(self.board.clock.now_ns() + _PAUSE_NS)

    def _go_on(self) -> None:
        self.scripts.run()

    def connect(self) -> None:
        """There is a connection."""
        self._registers[regs.SCNTL1] |= regs.CONNECTED_BIT
        self._registers[regs.ISTAT0] |= regs.CONNECTED

    def disconnect(self) -> None:
        """The bus is free."""
        self.target.leave()
        self._registers[regs.SCNTL1] &= ~regs.CONNECTED_BIT & 0xFF
        self._registers[regs.ISTAT0] &= ~regs.CONNECTED & 0xFF

    # -- interrupts

    def dma_interrupt(self, reasons: int) -> None:
        """The processor stops for a reason of its own."""
        self._registers[regs.DSTAT] |= reasons
        self.scripts.running = self.scripts.waits_for_reselection = False
        self.update_interrupt()

    def scsi_interrupt(self, first: int, second: int) -> None:
        """The processor stops for what happened on the bus."""
        self._registers[regs.SIST0] |= first
        self._registers[regs.SIST1] |= second
        self.scripts.running = False
        self.update_interrupt()

    def update_interrupt(self) -> None:
        """Show what is pending, and drive the pin for what is enabled."""
        own = self._registers
        status = own[regs.ISTAT0] & ~(regs.DMA_PENDING | regs.SCSI_PENDING)
        own_causes, bus_causes = own[regs.DSTAT] & ~regs.FIFO_EMPTY, own[regs.SIST0] | own[regs.SIST1]
        status |= (regs.DMA_PENDING if own_causes else 0) | (regs.SCSI_PENDING if bus_causes else 0)
        own[regs.ISTAT0] = status & 0xFF
        level = own_causes & own[regs.DIEN] or status & regs.ON_THE_FLY
        level = level or own[regs.SIST0] & own[regs.SIEN0] or own[regs.SIST1] & own[regs.SIEN1]
        self.set_pin(1 if level and not own[regs.DCNTL] & regs.IRQ_DISABLED else 0)

    # -- registers

    def _read(self, offset: int, _width: int) -> int:
        return self.read_byte(offset & 0xFF)

    def _write(self, offset: int, _width: int, value: int) -> None:
        self.write_byte(offset & 0xFF, value & 0xFF)

    def read_byte(self, offset: int) -> int:
        """What is read, with what follows from reading."""
        value = self._registers[offset]
        if offset == regs.DSTAT:
            self._registers[offset] = regs.FIFO_EMPTY
            self.update_interrupt()
        elif offset in (regs.SIST0, regs.SIST1):
            self._registers[offset] = 0
            self.update_interrupt()
        elif offset == regs.CTEST2:
            signalled = self._registers[regs.ISTAT0] & regs.SIGNAL
            self._registers[regs.ISTAT0] &= ~regs.SIGNAL & 0xFF
            return value | (0x40 if signalled else 0)
        elif offset in (regs.SSTAT1, regs.SBCL):
            return self.target.phase or 0
        return value

    def write_byte(self, offset: int, value: int) -> None:
        """What is written, with what follows from it."""
        if offset == regs.ISTAT0:
            self._write_status(value)
            return
        if offset in regs.READ_ONLY:
            return
        kept = self._registers[offset] & ~regs.MASKS.get(offset, 0xFF) if offset == regs.CTEST2 else 0
        before, self._registers[offset] = self._registers[offset], kept | value & regs.MASKS.get(offset, 0xFF)
        if offset == regs.SCNTL1:
            self._registers[offset] = value & ~regs.CONNECTED_BIT | before & regs.CONNECTED_BIT
            if value & regs.BUS_RESET and not before & regs.BUS_RESET:
                self._reset_bus()
        elif offset == regs.DCNTL:
            self._registers[offset] = value & ~regs.START
            if value & regs.START:
                self._start()
        elif offset == regs.DSP + 3 and not self._registers[regs.DMODE] & regs.MANUAL_START:
            self._start()
        elif offset in (regs.DIEN, regs.SIEN0, regs.SIEN1):
            self.update_interrupt()

    def _start(self) -> None:
        if not self.scripts.running:
            self.scripts.running, self.scripts.waits_for_reselection = True, False
            self.scripts.run()

    def _write_status(self, value: int) -> None:
        if value & regs.SOFT_RESET:
            self._clear()
            return
        kept = regs.SEMAPHORE | regs.SIGNAL | regs.ABORT
        before = self._registers[regs.ISTAT0] & ~kept
        if value & regs.ON_THE_FLY:
            before &= ~regs.ON_THE_FLY
        self._registers[regs.ISTAT0] = (before | value & kept) & 0xFF
        self.update_interrupt()
        if value & regs.ABORT:
            self.dma_interrupt(regs.ABORTED)
        elif value & regs.SIGNAL:
            self.scripts.signalled()

    def _reset_bus(self) -> None:
        self.disconnect()
        self.scsi_bus.reset()
        self.scsi_interrupt(regs.RESET_SEEN, 0)

    # -- units that come and go

    def unit_plugged(self, device: ScsiDevice) -> None:
        """A unit has come, which nobody is told of on this bus."""

    def unit_unplugged(self, device: ScsiDevice) -> None:
        """A unit has gone, with what it had under way."""
        self.target.requests.forget(device)
        if self.target.id == device.scsi_id and self.target.phase is None:
            self.disconnect()
