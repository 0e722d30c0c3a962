"""``i6300esb``: a watchdog with two stages (Intel 6300ESB I/O Controller Hub, chapter 15)."""

from __future__ import annotations

from qobra.machine import watchdog
from qobra.machine.devices import registry
from qobra.machine.memory import Registers
from qobra.machine.pci import regs
from qobra.machine.pci.device import PciDevice
from qobra.machine.vmstate import Field, Number, VmState, flag, listed, timer, u8

_CONFIG, _LOCK = 0x60, 0x68
_INT_NONE_ENABLED, _FAST_CLOCK, _NO_REBOOT = 0x03, 0x04, 0x20
_LOCKED, _ENABLED, _FREE_RUN = 0x01, 0x02, 0x04
_PRELOAD_MASK = 0xFFFFF
_CLOCK = 33_000_000
_SECOND = 10**9
_REBOOTED = 0x1200


@registry.register("i6300esb")
class I6300esb(PciDevice):
    """Counts down twice; the first end may interrupt, the second is what the watchdog's action is for."""

    type_name = "i6300esb"
    category = "Watchdog"
    description = "Intel 6300ESB"
    vendor_id = regs.INTEL
    device_id = 0x25AB
    class_id = 0x0880

    vmstate = VmState(
        flag("_rebooted", "_reboot_enabled", "_fast", "_free_run", "_locked", "_enabled"),
        u8("_interrupt_type"),
        listed("_preloads", kind=Number(4)),
        Field("_stage", Number(1, minimum=1, maximum=2)),
        u8("_unlocked", maximum=2),
        timer("_timer"),
    )

    def realize(self) -> None:
        self._timer = self.board.clock.timer(self._expired)
        self._rebooted = False
        self._clear()
        region = Registers("i6300esb", 0x10, self._read, self._write, valid=(1, 4), impl=(1, 4))
        self.add_bar(0, region)

    def unrealize(self) -> None:
        self._timer.cancel()
        super().unrealize()

    def reset(self) -> None:
        super().reset()
        self._clear()

    def _clear(self) -> None:
        self._timer.cancel()
        self._reboot_enabled, self._fast, self._interrupt_type = True, False, 0
        self._free_run = self._locked = self._enabled = False
        self._preloads = [_PRELOAD_MASK, _PRELOAD_MASK]
        self._stage = 1
        self._unlocked = 0

    def _restart(self, stage: int) -> None:
        if not self._enabled:
            return
        self._stage = stage
        ticks = self._preloads[stage - 1] << (5 if self._fast else 15)
        self._timer.set(self.board.clock.now_ns() + ticks * _SECOND // _CLOCK)

    def _expired(self) -> None:
        if self._stage == 1:
            # The interrupts of this chip lead nowhere on these boards; the second stage follows.
            self._restart(2)
        elif self._reboot_enabled:
            self._rebooted = True
            watchdog.expired(self.machine)
            self._clear()
        if self._free_run:
            self._restart(1)

    # -- configuration space

    def config_read(self, offset: int, width: int) -> int:
        if offset == _CONFIG and width == 2:
            clock = _FAST_CLOCK if self._fast else 0
            return (0 if self._reboot_enabled else _NO_REBOOT) | clock | self._interrupt_type
        if offset == _LOCK and width == 1:
            running = _ENABLED if self._enabled else 0
            return (_FREE_RUN if self._free_run else 0) | (_LOCKED if self._locked else 0) | running
        return super().config_read(offset, width)

    def config_write(self, offset: int, width: int, value: int) -> None:
        if offset == _CONFIG and width == 2:
            self._reboot_enabled = not value & _NO_REBOOT
            self._fast = bool(value & _FAST_CLOCK)
            self._interrupt_type = value & _INT_NONE_ENABLED
        elif offset == _LOCK and width == 1:
            if not self._locked:
                was_enabled = self._enabled
                self._locked = bool(value & _LOCKED)
                self._free_run = bool(value & _FREE_RUN)
                self._enabled = bool(value & _ENABLED)
                if self._enabled and not was_enabled:
                    self._restart(1)
                elif not self._enabled:
                    self._timer.cancel()
        else:
            super().config_write(offset, width, value)

    # -- registers; each write has to be unlocked by 0x80 and 0x86

    def _read(self, offset: int, width: int) -> int:
        return _REBOOTED if offset == 0x0C and width == 2 and self._rebooted else 0

    def _write(self, offset: int, width: int, value: int) -> None:
        if offset == 0x0C and value == 0x80:
            self._unlocked = 1
        elif offset == 0x0C and value == 0x86 and self._unlocked == 1:
            self._unlocked = 2
        elif self._unlocked == 2:
            if offset in (0, 4) and width == 4:
                self._preloads[offset // 4] = value & _PRELOAD_MASK
            elif offset == 0x0C and width == 2:
                if value & 0x100:
                    self._restart(1)
                if value & _REBOOTED:
                    self._rebooted = False
            self._unlocked = 0
