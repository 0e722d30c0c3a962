"""The monitors of a machine: any number, each a front end of a character device."""

from __future__ import annotations

from qobra.errors import QobraError
from qobra.lean import Event
from qobra.qmp.events import EventRouter
from qobra.qmp.session import Session

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import Any

    from qobra.chardev.chardev import Chardev
    from qobra.machine.machine import Machine


class Monitors:
    """Makes monitors, and owns the way of the machine's events to them."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._router = EventRouter(machine)
        self._adopted = 0
        self._greeted: Event | None = None

    def add(self, chardev_id: str, *, mode: str = "control", pretty: bool = False) -> None:
        """Put a monitor on the character device ``chardev_id``: ``control`` speaks QMP, ``readline`` is for people."""
        device = self._machine.chardevs.find(chardev_id)
        if device is None:
            raise QobraError(f'chardev "{chardev_id}" not found')
        if mode == "readline":
            from qobra.qmp.readline import ReadlineMonitor

            if pretty:
                raise QobraError("'pretty' is not compatible with HMP monitors")
            device.attach(ReadlineMonitor(self._machine, device))
        else:
            self._greeted = self._greeted or Event()
            device.attach(Session(self._machine, device, self._router, pretty=pretty, greeted=self._greeted))

    def add_options(self, options: dict[str, Any], *, default_mode: str = "control") -> None:
        """Add the monitor that MonitorOptions describe."""
        self.add(options["chardev"], mode=options.get("mode", default_mode), pretty=options.get("pretty", False))

    def wait_for_greeting(self, seconds: float) -> None:
        """Wait until a client has been greeted, for so long at most; not where there is no monitor that greets."""
        if self._greeted is not None:
            self._greeted.wait(seconds)

    def serve_socket(self, sock: socket.socket, *, pretty: bool = False) -> Chardev:
        """Speak QMP on a connected stream socket, which is the monitor's from now on, until its peer leaves."""
        from qobra.chardev.backend.socket import SocketChardev

        device = SocketChardev.on_socket(self._machine, f"qmp{self._adopted}", sock)
        self._adopted += 1
        self._machine.chardevs.adopt(device)
        device.attach(Session(self._machine, device, self._router, pretty=pretty))
        return device

    def close(self) -> None:
        """Send no more events."""
        self._router.close()
