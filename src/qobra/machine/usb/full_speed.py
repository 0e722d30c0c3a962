"""What host controllers for full and low speed have in common: ports, a frame each millisecond, an interrupt line."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from qobra.machine.usb.bus import PortOwner, UsbPort
from qobra.machine.usb.device import FULL, LOW

if TYPE_CHECKING:
    from qobra.machine.dma import GuestMemory
    from qobra.machine.vclock import VirtualClock

FRAME_NS = 10**6
"""How long a frame is (USB 2.0, section 8.4.3)."""

TakePorts = Callable[[PortOwner, int, tuple[int, ...]], list[UsbPort]]
"""``take_ports(owner, count, speeds)``: that many ports, on a bus of the controller's own or of another's."""


class FullSpeedController(PortOwner):
    """A controller with ``ports`` ports. ``interrupt(level)`` drives its line.

    Subclasses give what a port's register holds with nothing attached, and :meth:`_next_frame`, which the timer calls.
    Everything runs inside the control strand.
    """

    _empty_port: int

    def __init__(
        self,
        take_ports: TakePorts,
        ports: int,
        memory: GuestMemory,
        clock: VirtualClock,
        interrupt: Callable[[bool], None],
    ) -> None:
        self._memory = memory
        self._clock = clock
        self._interrupt = interrupt
        self._timer = clock.timer(self._next_frame)
        self._places = take_ports(self, ports, (LOW, FULL))
        self._ports = [self._empty_port] * ports

    def close(self) -> None:
        """Stop."""
        self._timer.cancel()

    def _reset_ports(self) -> None:
        # Every device is found anew.
        for place in self._places:
            self._ports[place.number] = self._empty_port
            if place.device is not None:
                place.device.reset()
                self.attached(place)

    def _next_frame(self) -> None:
        raise NotImplementedError
