"""A UHCI host controller (Intel's Universal Host Controller Interface, 1.1): frames of transfers in guest memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from qobra.machine.usb.bus import UsbPort, find_device
from qobra.machine.usb.device import IN, LOW, OUT, SETUP, Nak, Stall, UsbDevice
from qobra.machine.usb.full_speed import FRAME_NS, FullSpeedController, TakePorts
from qobra.machine.vmstate import Number, VmState, flag, i64, listed, timer, u16, u32

if TYPE_CHECKING:
    from qobra.machine.dma import GuestMemory
    from qobra.machine.vclock import VirtualClock

_COMMAND, _STATUS, _INTERRUPTS, _FRAME, _BASE, _START = 0x00, 0x02, 0x04, 0x06, 0x08, 0x0C
_FIRST_PORT = 0x10
_RUN, _RESET, _GLOBAL_RESET = 0x01, 0x02, 0x04
_S_INTERRUPT, _S_ERROR, _S_RESUME, _S_SYSTEM, _S_PROCESS, _S_HALTED = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_E_TIMEOUT, _E_RESUME, _E_COMPLETE, _E_SHORT = 0x01, 0x02, 0x04, 0x08
_CONNECTED, _CONNECT_CHANGED, _ENABLED, _ENABLE_CHANGED = 0x0001, 0x0002, 0x0004, 0x0008
_PORT_RESUME, _PORT_RESET, _PORT_SUSPENDED, _LOW_SPEED, _ALWAYS_ONE = 0x0040, 0x0200, 0x1000, 0x0100, 0x0080
_PORT_KEPT = 0x01BB
"""What a write to a port's register leaves as it is, unless it clears it."""

_TERMINATE, _QUEUE, _POINTER = 0x1, 0x2, 0xFFFFFFF0
_ACTIVE, _STALLED, _BABBLE, _NAKED, _TIMED_OUT, _ON_COMPLETE, _SHORT_STOPS = (
    1 << 23, 1 << 22, 1 << 20, 1 << 19, 1 << 18, 1 << 24, 1 << 29
)  # fmt: skip
_MAX_STEPS = 256
"""Queue heads and transfer descriptors that are looked at in one frame."""
_MAX_PACKET = 0x500
"""The longest packet, in bytes (3.2.3)."""
PORTS = 2


class Uhci(FullSpeedController):
    """The controller."""

    _empty_port = _ALWAYS_ONE

    vmstate = VmState(
        timer("_timer"),
        i64("_deadline_ns"),
        listed("_ports", kind=Number(2)),
        u16("_command", "_enabled", "_number", "_status", "_start_of_frame"),
        u32("_base"),
        flag("_short", "_complete"),
    )

    def __init__(
        self,
        take_ports: TakePorts,
        memory: GuestMemory,
        clock: VirtualClock,
        interrupt: Callable[[bool], None],
    ) -> None:
        super().__init__(take_ports, PORTS, memory, clock, interrupt)
        self._deadline_ns = 0
        self._number = 0
        self._clear()

    def _clear(self) -> None:
        self._command = self._enabled = self._base = 0
        self._status = _S_HALTED
        self._start_of_frame = 64
        self._short = self._complete = False
        self._timer.cancel()
        self._update()

    def reset(self) -> None:
        """As after power-on: every device is found anew."""
        self._clear()
        self._reset_ports()

    def attached(self, port: UsbPort) -> None:
        assert port.device is not None
        slow = _LOW_SPEED if port.device.speed == LOW else 0
        self._ports[port.number] = self._ports[port.number] & ~_LOW_SPEED | _CONNECTED | _CONNECT_CHANGED | slow

    def detached(self, port: UsbPort, device: UsbDevice) -> None:
        value = self._ports[port.number]
        if value & _CONNECTED:
            value = value & ~_CONNECTED | _CONNECT_CHANGED
        if value & _ENABLED:
            value = value & ~_ENABLED | _ENABLE_CHANGED
        self._ports[port.number] = value

    def wakeup(self, port: UsbPort) -> None:
        value = self._ports[port.number]
        if value & _PORT_SUSPENDED and not value & _PORT_RESUME:
            self._ports[port.number] = value | _PORT_RESUME
            self._status |= _S_RESUME
            self._update()

    def _update(self) -> None:
        wanted = (
            (self._complete and self._enabled & _E_COMPLETE)
            or (self._short and self._enabled & _E_SHORT)
            or (self._status & _S_ERROR and self._enabled & _E_TIMEOUT)
            or (self._status & _S_RESUME and self._enabled & _E_RESUME)
            or self._status & (_S_SYSTEM | _S_PROCESS)
        )
        self._interrupt(bool(wanted))

    # -- registers

    def read(self, offset: int) -> int:
        """The 16-bit register at ``offset``."""
        if _FIRST_PORT <= offset < _FIRST_PORT + 2 * len(self._ports):
            return self._ports[(offset - _FIRST_PORT) // 2]
        return {
            _COMMAND: self._command,
            _STATUS: self._status,
            _INTERRUPTS: self._enabled,
            _FRAME: self._number,
            _BASE: self._base & 0xFFFF,
            _BASE + 2: self._base >> 16,
            _START: self._start_of_frame,
        }.get(offset, 0xFF7F)

    def write(self, offset: int, value: int) -> None:
        """Write the 16-bit register at ``offset``."""
        if offset == _COMMAND:
            self._write_command(value)
        elif offset == _STATUS:
            self._status &= ~value
            if value & _S_INTERRUPT:
                self._short = self._complete = False
            self._update()
        elif offset == _INTERRUPTS:
            self._enabled = value
            self._update()
        elif offset == _FRAME:
            if self._status & _S_HALTED:
                self._number = value & 0x7FF
        elif offset == _BASE:
            self._base = self._base & 0xFFFF0000 | value & 0xF000
        elif offset == _BASE + 2:
            self._base = self._base & 0xFFFF | value << 16
        elif offset == _START:
            self._start_of_frame = value & 0xFF
        elif _FIRST_PORT <= offset < _FIRST_PORT + 2 * len(self._ports):
            self._write_port((offset - _FIRST_PORT) // 2, value)

    def _write_command(self, value: int) -> None:
        if value & (_GLOBAL_RESET | _RESET):
            self.reset()
            return
        running, self._command = self._command & _RUN, value
        if value & _RUN and not running:
            self._status &= ~_S_HALTED
            self._deadline_ns = self._clock.now_ns() + FRAME_NS
            self._timer.set(self._deadline_ns)
        elif not value & _RUN:
            self._status |= _S_HALTED
            self._timer.cancel()

    def _write_port(self, number: int, value: int) -> None:
        port, device = self._ports[number], self._places[number].device
        if value & _PORT_RESET and not port & _PORT_RESET and device is not None:
            device.reset()
        taken = value & ~_PORT_KEPT if port & _CONNECTED else value & ~(_PORT_KEPT | _ENABLED)
        port = port & _PORT_KEPT | taken
        self._ports[number] = port & ~(value & (_CONNECT_CHANGED | _ENABLE_CHANGED))

    # -- frames

    def _next_frame(self) -> None:
        if not self._command & _RUN:
            return
        link = self._memory.number(self._base + 4 * (self._number & 0x3FF), 4)
        self._number = self._number + 1 & 0x7FF
        self._walk(link)
        # Where the host was busy, frames are left out.
        self._deadline_ns = max(self._deadline_ns + FRAME_NS, self._clock.now_ns() + FRAME_NS // 2)
        if self._command & _RUN:
            self._timer.set(self._deadline_ns)

    def _walk(self, link: int) -> None:
        # A frame is a chain of transfers and queues; a queue is left once its next transfer was tried.
        seen: set[int] = set()
        finished = False
        steps = 0
        while steps < _MAX_STEPS and not link & _TERMINATE:
            steps += 1
            at = link & _POINTER
            if link & _QUEUE:
                if at in seen and not finished:
                    break
                if at in seen:
                    seen.clear()
                    finished = False
                seen.add(at)
                link, element = self._memory.number(at, 4), self._memory.number(at + 4, 4)
                # Its transfers one after the other, as long as they succeed and are to go on with.
                while not element & (_TERMINATE | _QUEUE) and steps < _MAX_STEPS:
                    steps += 1
                    outcome = self._transfer(element & _POINTER)
                    if outcome is None:
                        break
                    finished = True
                    following, go_on = outcome
                    self._memory.write(at + 4, following.to_bytes(4, "little"))
                    element = following
                    if not go_on:
                        break
                if not element & _TERMINATE and element & _QUEUE:
                    link = element
            else:
                self._transfer(at)
                link = self._memory.number(at, 4)
        if self._short or self._complete:
            self._status |= _S_INTERRUPT
        self._update()

    def _transfer(self, at: int) -> tuple[int, bool] | None:
        """Try a transfer. What follows it and whether to go on with that at once; None if it is not over."""
        link, control, token, buffer = (self._memory.number(at + 4 * n, 4) for n in range(4))
        if not control & _ACTIVE:
            # One that was over before holds the queue up.
            return None
        pid, address, endpoint = token & 0xFF, token >> 8 & 0x7F, token >> 15 & 0xF
        room = (token >> 21) + 1 & 0x7FF
        if pid not in (SETUP, IN, OUT) or room > _MAX_PACKET:
            self._stop_for_error()
            return None
        device = self._find(address)
        error = 0
        data = b""
        try:
            if device is None:
                error = _TIMED_OUT
            else:
                sent = b"" if pid == IN else self._memory.read(buffer, room)
                data = device.packet(pid, endpoint, sent, room)
        except Nak:
            self._memory.write(at + 4, (control | _NAKED).to_bytes(4, "little"))
            return None
        except Stall:
            error = _STALLED
        control &= ~(_NAKED | _ACTIVE | 0x7FF)
        if error:
            self._status |= _S_ERROR
            if control & _ON_COMPLETE:
                self._complete = True
            # Errors use up the retries, and stop the queue.
            control = control & ~(3 << 27) | error | (_STALLED if error == _TIMED_OUT else 0) | 0x7FF
            self._memory.write(at + 4, control.to_bytes(4, "little"))
            return None
        moved = len(data) if pid == IN else room
        if pid == IN:
            self._memory.write(buffer, data)
        control |= moved - 1 & 0x7FF
        self._memory.write(at + 4, control.to_bytes(4, "little"))
        if control & _ON_COMPLETE:
            self._complete = True
        if pid == IN and moved < room and control & _SHORT_STOPS:
            self._short = True
            return None
        return link, bool(link & 4)

    def _find(self, address: int) -> UsbDevice | None:
        return find_device(address, self._places, lambda number: bool(self._ports[number] & _ENABLED))

    def _stop_for_error(self) -> None:
        self._status |= _S_PROCESS | _S_HALTED
        self._command &= ~_RUN
