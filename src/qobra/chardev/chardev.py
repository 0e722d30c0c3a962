"""A character device: bytes both ways between something outside and one front end inside.

The outside is a backend's business (:mod:`qobra.chardev.backend`); the front end is a monitor, a serial port, a mux.
A backend that reads does so in a thread of its own and calls the front end from there: no queue, no hop.
"""

from __future__ import annotations

import os

from qobra.errors import QobraError
from qobra.lean import Condition, RLock
from qobra.registry import Registry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, ClassVar, Protocol

    from qobra.chardev.log import Log
    from qobra.machine.machine import Machine
else:
    Protocol = object

registry: Registry[type[Chardev]] = Registry("chardev backend", ["qobra.chardev.backend"])

UNLIMITED = 1 << 30


class FrontEnd(Protocol):
    """What a user of a character device has. Called in the device's thread.

    ``hotswap`` is whether the device may be exchanged for another while it is in use.
    """

    @property
    def hotswap(self) -> bool: ...

    def receive(self, data: bytes) -> None:
        """``data`` came in, at most as much as :meth:`can_receive` said."""

    def event(self, name: str) -> None:
        """``opened``: a peer is there; ``ended``: it sends no more; ``closed``: it left; ``break``: it sent a break.

        What is said to a peer that sends no more may still reach it, until ``ended`` returns. ``ending``: the device is
        about to be closed; what waits to be sent may be sent until this returns, which it should soon.
        """

    def can_receive(self) -> int:
        """How many bytes to take now; 0 holds the peer back until :meth:`Chardev.accept_input`."""


class Chardev:
    """The common half of the backends.

    ``options`` are the backend's members of the contract's ChardevBackend. A subclass overrides :meth:`start`,
    :meth:`transmit`, :meth:`filename` and what else it can do.
    """

    kind: str
    needs_board = False
    """Whether it is for machines with a board alone."""
    hotswap: ClassVar[bool] = True

    def __init__(self, machine: Machine, id: str, options: dict[str, Any]) -> None:
        self.machine = machine
        self.id = id
        self.options = options
        self.asked_by = ""
        """The option of the command line that asked for the device, as it was given; empty where a command did."""
        self.is_open = False
        self.closed = False
        self.frontend: FrontEnd | None = None
        self.frontend_open = False
        self.log: Log | None = None
        self.when_over: Callable[[], object] | None = None  # called once nobody can ever be there any more
        # Held while a peer or a front end comes or goes, so that the front end hears of each peer exactly once.
        self._state = RLock()
        self._input_wanted = Condition()

    # -- what backends implement

    def start(self) -> None:
        """Open the outside; QobraError if it cannot be."""
        self.set_open(True)

    def stop(self) -> None:
        """Close the outside; a thread that reads it must notice and end."""

    def filename(self) -> str:
        """What ``query-chardev`` shows."""
        return self.kind

    def return_info(self) -> dict[str, Any]:
        """What chardev-add returns (ChardevReturn)."""
        return {}

    def transmit(self, data: bytes) -> int:
        """:meth:`write`, but for the log."""
        return len(data)

    def wait_writable(self, timeout: float | None = None) -> bool:
        """Wait until :meth:`write` can send something; False if ``timeout`` seconds passed first."""
        return True

    def add_client(self, fd: int) -> bool:
        """Serve the peer at the connected socket ``fd``, which is the device's from now on; False if it cannot."""
        os.close(fd)
        return False

    def take_fds(self) -> list[int]:
        """The file descriptors that came with the latest data, for the caller to own. A later message with
        descriptors replaces (and closes) those that nobody took."""
        return []

    def send_break(self) -> None:
        """The front end (a guest's serial port) sends a break; it goes out where there is such a thing."""

    def set_frontend_open(self, is_open: bool) -> None:
        """The front end's side (a guest's driver, say) is open, or no longer."""
        self.frontend_open = is_open

    # -- what front ends use

    def attach(self, frontend: FrontEnd) -> None:
        """Give the device its front end; QobraError if it has one."""
        with self._state:
            if self.frontend is not None:
                raise QobraError(f"Device '{self.id}' is in use")
            if self.is_open:
                frontend.event("opened")
            self.frontend = frontend  # only now: what has come in already must not be received before
            self.set_frontend_open(True)
        self.accept_input()

    def detach(self) -> None:
        """Take the front end away; what comes in waits for the next."""
        self.frontend = None
        self.set_frontend_open(False)

    @property
    def available(self) -> bool:
        """Whether a front end can be attached."""
        return self.frontend is None

    @property
    def busy(self) -> bool:
        """Whether something uses the device, so that it cannot be removed."""
        return self.frontend is not None

    def write(self, data: bytes) -> int:
        """Send as much of ``data`` as goes out without waiting, and say how much did.

        What nobody can receive (no peer) counts as sent.
        """
        sent = self.transmit(data)
        if self.log is not None:
            self.log.write(data[:sent])
        return sent

    def write_all(self, data: bytes) -> None:
        """Send all of ``data``, waiting for a slow peer."""
        while data:
            sent = self.write(data)
            data = data[sent:]
            if data:
                self.wait_writable()

    @property
    def passes_fds(self) -> bool:
        """Whether :meth:`write_with_fds` can pass descriptors."""
        return False

    def write_with_fds(self, data: bytes, fds: Sequence[int]) -> None:
        """Send all of ``data``, and with its first byte descriptors, which stay the caller's. Raises QobraError."""
        raise QobraError(f"chardev '{self.id}' cannot pass file descriptors")

    def accept_input(self) -> None:
        """The front end can receive again."""
        with self._input_wanted:
            self._input_wanted.notify_all()

    def close(self) -> None:
        """End the device; its front end hears ``closed``."""
        if self.closed:
            return
        self.closed = True
        self.stop()
        self.accept_input()
        self.set_open(False)
        self.frontend = None
        if self.log is not None:
            self.log.close()
            self.log = None

    # -- what backends call

    def set_open(self, is_open: bool) -> None:
        """A peer is there, or gone: tell the front end."""
        with self._state:
            if self.is_open != is_open:
                self.is_open = is_open
                if self.frontend is not None:
                    self.frontend.event("opened" if is_open else "closed")

    def room(self) -> int:
        """Wait until the front end takes input, and say how much; 0 once the device is closed."""
        frontend = self.frontend
        if frontend is not None and not self.closed:
            size = frontend.can_receive()
            if size > 0:
                return size
        with self._input_wanted:
            while not self.closed:
                frontend = self.frontend
                size = frontend.can_receive() if frontend is not None else 0
                if size > 0:
                    return size
                self._input_wanted.wait()
        return 0

    def deliver(self, data: bytes) -> None:
        """Hand ``data`` to the front end, in pieces that it can take."""
        while data:
            size = self.room()
            if not size:
                return
            frontend = self.frontend
            if frontend is not None:
                frontend.receive(data if len(data) <= size else data[:size])
                data = data[size:]

    def deliver_event(self, name: str) -> None:
        """Hand the event ``name`` to the front end."""
        if self.frontend is not None:
            self.frontend.event(name)
