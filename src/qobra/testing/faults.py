"""Faults in a server's QMP: commands that fail, take long, or lose the connection; events that never arrive.

What goes wrong underneath (a disk that returns errors, or is slow) is a matter of block drivers: ``blkdebug``,
``throttle`` and their kin, added over QMP as everywhere.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from qobra.chardev.chardev import Chardev
from qobra.errors import GENERIC_ERROR, QobraError
from qobra.machine.machine import Machine
from qobra.qmp.events import EventRouter
from qobra.qmp.session import Session


class Fault:
    """What is to go wrong with the next ``times`` executions of a command."""

    def __init__(
        self,
        times: int,
        *,
        error: QobraError | None = None,
        delay: float = 0.0,
        drop: str | None = None,
    ) -> None:
        self.times = times
        self.error = error
        self.delay = delay
        self.drop = drop


class Faults:
    """The faults of one server. All of its clients meet them; each fault is used up once it has happened ``times``."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._commands: dict[str, list[Fault]] = {}
        self._events: dict[str, int] = {}
        self._delays = threading.Event()

    def fail(self, command: str, desc: str, error_class: str = GENERIC_ERROR, *, times: int = 1) -> None:
        """Answer ``command`` with an error; it is not carried out."""
        self._plan(command, Fault(times, error=QobraError(desc, error_class)))

    def delay(self, command: str, seconds: float, *, times: int = 1) -> None:
        """Carry ``command`` out ``seconds`` late. The client's later commands wait with it, other clients do not."""
        self._plan(command, Fault(times, delay=seconds))

    def drop(self, command: str, *, carried_out: bool = False, times: int = 1) -> None:
        """Close the connection instead of answering ``command``, before or after it is ``carried_out``."""
        self._plan(command, Fault(times, drop="after" if carried_out else "before"))

    def lose_event(self, name: str, *, times: int = 1) -> None:
        """Do not send the event to a client."""
        with self._lock:
            self._events[name] = self._events.get(name, 0) + times

    def clear(self) -> None:
        """Nothing goes wrong any more, and what is being delayed goes on at once."""
        with self._lock:
            self._commands.clear()
            self._events.clear()
            delays, self._delays = self._delays, threading.Event()
        delays.set()

    def wait(self, seconds: float) -> None:
        """Let a delay pass."""
        self._delays.wait(seconds)

    def take(self, command: str) -> Fault | None:
        """The fault that an execution of ``command`` meets now, if any."""
        with self._lock:
            planned = self._commands.get(command)
            if not planned:
                return None
            fault = planned[0]
            fault.times -= 1
            if fault.times <= 0:
                planned.pop(0)
            return fault

    def take_event(self, line: bytes) -> bool:
        """Whether the event in ``line`` is to be lost."""
        with self._lock:
            for name, times in self._events.items():
                if times > 0 and b'"event": "%s"' % name.encode() in line:
                    self._events[name] = times - 1
                    return True
        return False

    def _plan(self, command: str, fault: Fault) -> None:
        with self._lock:
            self._commands.setdefault(command, []).append(fault)


class FaultySession(Session):
    """A QMP session in which things go wrong as planned. ``disconnect`` breaks its connection."""

    def __init__(
        self, machine: Machine, chardev: Chardev, router: EventRouter, faults: Faults, disconnect: Callable[[], None]
    ) -> None:
        super().__init__(machine, chardev, router)
        self._faults = faults
        self._disconnect = disconnect

    def serve(self, item: Any, client: int | None = None) -> None:
        fault = self._faults.take(_command(item))
        if fault is None:
            super().serve(item, client)
            return
        if fault.delay:
            self._faults.wait(fault.delay)
        if fault.drop == "after":
            with self.machine.control:
                self._answer(item)
        if fault.drop is not None:
            self._disconnect()
        elif fault.error is not None:
            self._output.reply(self._error_line(fault.error, item), client)
            self._output.drain()
        else:
            super().serve(item, client)

    def send_event(self, line: bytes) -> None:
        if not self._faults.take_event(line):
            super().send_event(line)


def _command(item: Any) -> str:
    if not isinstance(item, dict):
        return ""
    return str(item.get("execute") or item.get("exec-oob") or "")
