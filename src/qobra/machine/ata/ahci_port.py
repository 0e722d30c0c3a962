"""One port of an AHCI host adapter (AHCI 1.3.1): command slots, frames (FISes) to and from one ATA device."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from qobra.machine.ata import regs
from qobra.machine.ata.queued import READ_QUEUED, WRITE_QUEUED, QueuedCommand
from qobra.machine.dma import GuestMemory, ScatterList
from qobra.machine.vmstate import Field, Listed, Number, VmState, flag, u32

if TYPE_CHECKING:
    from qobra.control import Control
    from qobra.machine.ata.bus import IdeBus
    from qobra.machine.ata.device import AtaDevice

# Registers (3.3), by offset in the port's 128 bytes.
_CLB, _CLBU, _FB, _FBU, _IS, _IE, _CMD, _TFD, _SIG = 0x00, 0x04, 0x08, 0x0C, 0x10, 0x14, 0x18, 0x20, 0x24
_SSTS, _SCTL, _SERR, _SACT, _CI = 0x28, 0x2C, 0x30, 0x34, 0x38

_CMD_START, _CMD_FIS, _CMD_FIS_ON, _CMD_LIST_ON = 0x1, 0x10, 0x4000, 0x8000
_CMD_FIXED = 0x007DFFE0 & ~0x1 | 0xC000
_CMD_INTERFACE = 0xF0000000
_CMD_AT_RESET = 0x6
_LINK_UP = 0x113
"""A device is there, first generation, interface active."""

_IS_D2H, _IS_PIO, _IS_SET_BITS, _IS_OVERFLOW, _IS_TASK_FILE = 1 << 0, 1 << 1, 1 << 3, 1 << 24, 1 << 30
_IS_BITS = 0xFDC000FF

_H2D, _D2H, _SDB, _PIO_SETUP = 0x27, 0x34, 0xA1, 0x5F
_AT_PIO, _AT_D2H, _AT_SDB = 0x20, 0x40, 0x58

_PACKET = 0xA0


class AhciPort:
    """A port. ``notify`` is called when its interrupt bits changed; everything runs inside the control strand."""

    count_bits = 16
    """A frame has room for a longer count than a command of 28 bits has in its register, and QEMU's drives take it."""

    vmstate = VmState(
        Field("registers", Listed(Number(4))),
        u32("_failed"),
        flag("_soft_reset", "_greeted"),
    )

    def __init__(self, bus: IdeBus, memory: GuestMemory, control: Control, notify: Callable[[], None]) -> None:
        self._bus = bus
        self._memory = memory
        self._control = control
        self._notify = notify
        self._registers = dict.fromkeys(range(0, 0x40, 4), 0)
        self._failed = 0
        """Slots whose command failed: they show as issued until the guest stops the port or issues them again."""
        self._slot: int | None = None
        self._scatter: ScatterList | None = None
        self._header = self._table = 0
        self._entries = 0
        self._writes = self._is_packet = self._moved_before = False
        self._soft_reset = self._greeted = False
        self._epoch = 0
        self._at = 0
        bus.port = self
        self.reset()

    @property
    def registers(self) -> list[int]:
        """The registers in the order of their offsets."""
        return [self._registers[offset] for offset in sorted(self._registers)]

    @registers.setter
    def registers(self, values: list[int]) -> None:
        self._registers.update(zip(sorted(self._registers), values, strict=True))

    @property
    def busy(self) -> bool:
        """Whether a command is under way."""
        return self._slot is not None

    @property
    def _device(self) -> AtaDevice | None:
        return self._bus.unit(0)

    @property
    def interrupts(self) -> bool:
        """Whether something happened that the guest wants to know."""
        return bool(self._registers[_IS] & self._registers[_IE])

    # -- reset

    def reset(self) -> None:
        """As after a reset of the adapter."""
        for offset in (_IS, _IE, _SCTL):
            self._registers[offset] = 0
        self._registers[_CMD] = _CMD_AT_RESET
        self._reset_link()

    def _reset_link(self) -> None:
        # What the guest does with the control register, and what power-on does.
        registers = self._registers
        registers[_SERR] = registers[_SACT] = registers[_CI] = 0
        registers[_TFD], registers[_SIG] = 0x7F, 0xFFFFFFFF
        self._failed = 0
        self._slot = self._scatter = None
        self._greeted = self._soft_reset = False
        self._epoch += 1
        device = self._device
        if device is not None:
            device.restart()
            device.status = regs.SEEK | regs.FAULT | (regs.READY if device.is_removable else 0)
            device.error = 1
            self._greet(device)

    def _greet(self, device: AtaDevice) -> None:
        # The first frame of a device tells its signature.
        if not self._greeted and self._send_d2h(device, interrupt=True):
            self._greeted = True
            self._registers[_SIG] = device.high << 24 | device.mid << 16 | device.low << 8 | device.count

    # -- registers

    def read(self, offset: int) -> int:
        """The 32-bit register at ``offset``."""
        if offset == _SSTS:
            return _LINK_UP if self._device is not None else 0
        if offset == _CI:
            return self._registers[_CI] | self._failed
        return self._registers.get(offset, 0)

    def write(self, offset: int, value: int) -> None:
        """Write the 32-bit register at ``offset``."""
        registers = self._registers
        if offset == _CLB:
            registers[_CLB] = value & ~0x3FF
        elif offset == _FB:
            registers[_FB] = value & ~0xFF
        elif offset in (_CLBU, _FBU):
            registers[offset] = value
        elif offset == _IS:
            registers[_IS] &= ~value
            self._notify()
        elif offset == _IE:
            registers[_IE] = value & _IS_BITS
            self._notify()
        elif offset == _CMD:
            self._write_command(value)
        elif offset == _SCTL:
            before, registers[_SCTL] = registers[_SCTL], value
            if before & 0xF == 1 and value & 0xF == 0:
                self._reset_link()
        elif offset == _SERR:
            registers[_SERR] &= ~value
        elif offset == _SACT:
            registers[_SACT] |= value
        elif offset == _CI:
            registers[_CI] |= value
            self._failed &= ~value
            self._check()

    def _write_command(self, value: int) -> None:
        registers = self._registers
        fixed = _CMD_FIXED
        command = registers[_CMD] & fixed | value & ~(fixed | _CMD_INTERFACE) & 0xFFFFFFFF
        command &= ~(_CMD_LIST_ON | _CMD_FIS_ON)
        if command & _CMD_START:
            command |= _CMD_LIST_ON
        elif registers[_CMD] & _CMD_START:
            registers[_CI] = registers[_SACT] = self._failed = 0
        if command & _CMD_FIS:
            command |= _CMD_FIS_ON
        registers[_CMD] = command
        device = self._device
        if device is not None and command & _CMD_FIS_ON:
            self._greet(device)
        self._check()

    def _raise(self, bit: int) -> None:
        self._registers[_IS] |= bit
        self._notify()

    # -- commands

    def _check(self) -> None:
        registers = self._registers
        if not registers[_CMD] & _CMD_START:
            return
        for slot in range(32):
            if registers[_CI] >> slot & 1:
                device = self._device
                if device is None or device.status & (regs.BUSY | regs.DRQ) or self._slot is not None:
                    return
                self._begin(device, slot)

    def _begin(self, device: AtaDevice, slot: int) -> None:
        registers = self._registers
        self._header = (registers[_CLBU] << 32 | registers[_CLB]) + 32 * slot
        header = self._memory.read(self._header, 16)
        flags = int.from_bytes(header[0:2], "little")
        self._entries = int.from_bytes(header[2:4], "little")
        self._table = int.from_bytes(header[8:16], "little") & ~0x7F
        self._writes = bool(flags & 0x40)
        self._scatter, self._at, self._moved_before = None, 0, False
        frame = self._memory.read(self._table, 0x40)
        if frame[0] != _H2D:
            registers[_CI] &= ~(1 << slot)
            return
        if not frame[1] & 0x80:
            registers[_CI] &= ~(1 << slot)
            self._control_frame(device, frame[15])
            return
        if frame[2] in (READ_QUEUED, WRITE_QUEUED):
            registers[_CI] &= ~(1 << slot)
            self._begin_queued(device, frame, slot)
            return
        device.feature, device.low, device.mid, device.high = frame[3], frame[4], frame[5], frame[6]
        device.select, device.count = frame[7], frame[12]
        device.previous[:] = frame[11], frame[13], frame[8], frame[9], frame[10]
        self._is_packet = frame[2] == _PACKET
        self._memory.write(self._header + 4, bytes(4))
        self._slot = slot
        device.status, device.error = regs.READY | regs.SEEK, 0
        device.execute(frame[2])

    def _control_frame(self, device: AtaDevice, control: int) -> None:
        if control & regs.SOFT_RESET:
            self._soft_reset = True
        elif self._soft_reset:
            self._reset_link()

    def _prepare(self) -> ScatterList:
        if self._scatter is None:
            self._scatter = self._read_table()
        return self._scatter

    def _read_table(self) -> ScatterList:
        pieces = ScatterList(self._memory)
        entries = self._memory.read(self._table + 0x80, 16 * self._entries)
        for at in range(0, len(entries), 16):
            address = int.from_bytes(entries[at : at + 8], "little")
            pieces.add(address, (int.from_bytes(entries[at + 12 : at + 16], "little") & 0x3FFFFF) + 1)
        return pieces

    # -- what the device calls

    def interrupt(self, device: AtaDevice) -> None:
        pass  # frames carry the interrupts

    def data_ready(self, device: AtaDevice) -> None:
        # Not at once, as the device may have many blocks, one after the other.
        self._control.post(self._move_data, device, self._epoch)

    def _move_data(self, device: AtaDevice, epoch: int) -> None:
        if epoch != self._epoch or self._slot is None or not device.status & regs.DRQ:
            return
        length, writing, first = device.data_length, device.data_writing, not self._moved_before
        self._moved_before = True
        self._send_pio_setup(device, length, interrupt=not first or not (self._is_packet or writing))
        if first and self._is_packet and writing:
            device.give_data(self._memory.read(self._table + 0x40, length))
        elif writing == self._writes:
            scatter = self._prepare()
            if writing:
                device.give_data(scatter.read(self._at, length))
            else:
                scatter.write(self._at, device.take_data())
            self._at += length
            self._count_bytes(scatter)
        device.end_data()

    def _count_bytes(self, scatter: ScatterList) -> None:
        self._memory.write(self._header + 4, (scatter.moved & 0xFFFFFFFF).to_bytes(4, "little"))

    def dma_ready(self, device: AtaDevice) -> None:
        device.run_dma(self._prepare())

    def dma_done(self, device: AtaDevice) -> None:
        if self._scatter is not None:
            self._count_bytes(self._scatter)

    def command_done(self, device: AtaDevice) -> None:
        slot, self._slot = self._slot, None
        self._scatter = None
        if slot is not None:
            self._registers[_CI] &= ~(1 << slot)
            if device.status & regs.ERR:
                self._failed |= 1 << slot
        self._send_d2h(device, interrupt=True)
        self._control.post(self._check)

    # -- frames to the guest

    def _frame(self, kind: int, device: AtaDevice, interrupt: bool) -> bytearray:
        low, mid, high = device.previous[2:5]
        return bytearray(
            (kind, 0x40 if interrupt else 0, device.status, device.error, device.low, device.mid, device.high)
            + (device.select, low, mid, high, 0, device.count, device.previous[1])
        )

    def _receive(self, offset: int, frame: bytes | bytearray) -> bool:
        registers = self._registers
        if not registers[_CMD] & _CMD_FIS_ON:
            return False
        self._memory.write((registers[_FBU] << 32 | registers[_FB]) + offset, frame)
        return True

    def _task_file(self, device: AtaDevice, interrupt_bit: int) -> None:
        self._registers[_TFD] = device.error << 8 | device.status
        if device.status & regs.ERR:
            interrupt_bit |= _IS_TASK_FILE
        if interrupt_bit:
            self._raise(interrupt_bit)

    def _send_d2h(self, device: AtaDevice, *, interrupt: bool) -> bool:
        if not self._receive(_AT_D2H, self._frame(_D2H, device, interrupt) + bytes(6)):
            return False
        self._task_file(device, _IS_D2H if interrupt else 0)
        return True

    def _send_pio_setup(self, device: AtaDevice, length: int, *, interrupt: bool) -> None:
        frame = self._frame(_PIO_SETUP, device, interrupt)
        frame += bytes((0, device.status)) + length.to_bytes(4, "little")
        if self._receive(_AT_PIO, frame):
            self._task_file(device, _IS_PIO if interrupt else 0)

    # -- queued commands

    def _begin_queued(self, device: AtaDevice, frame: bytes, slot: int) -> None:
        command = QueuedCommand(self, device, frame, self._read_table())
        if not command.fits:
            device.status, device.error = regs.READY | regs.ERR, regs.ABORTED
            self._failed |= 1 << slot
            self._raise(_IS_OVERFLOW)
            self._send_d2h(device, interrupt=False)
            return
        # The device takes the command, and is free for the next.
        device.status, device.error = regs.READY | regs.SEEK, 0
        self._send_d2h(device, interrupt=False)
        command.start()

    def queued_done(self, device: AtaDevice, tag: int, *, ok: bool) -> None:
        # Set Device Bits: the commands that ended well are no longer active.
        registers = self._registers
        finished = 1 << tag if ok else 0
        status = device.status & 0x77
        frame = bytes((_SDB, 0x40, status, device.error)) + finished.to_bytes(4, "little")
        if not self._receive(_AT_SDB, frame):
            return
        registers[_SACT] &= ~finished
        registers[_TFD] = device.error << 8 | status | registers[_TFD] & 0x88
        self._raise(_IS_SET_BITS if ok else _IS_TASK_FILE)
