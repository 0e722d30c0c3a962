"""A migration from another machine: memory as it comes, the devices once all of them are there."""

from __future__ import annotations

import errno
import os
import threading
from typing import TYPE_CHECKING

from qobra.block.activation import activate_all
from qobra.errors import QobraError
from qobra.migration import machine_state
from qobra.migration.bitmaps import BitmapReceiver
from qobra.migration.channel import Channel, GivenUp, Listener
from qobra.migration.configuration import check_configuration
from qobra.migration.ram import RamBlock, ram_blocks, take_blocks, take_pages
from qobra.migration.stream import (
    ANSWER,
    BITMAPS,
    BLOCKS,
    CONFIGURATION,
    DEFLATED,
    DELTA,
    DEVICE,
    END,
    MACHINE,
    PAGES,
    SWITCH,
    TAKEN_OVER,
    ZEROES,
    StreamReader,
)
from qobra.report import report_error

if TYPE_CHECKING:
    from qobra.machine.machine import Machine
    from qobra.migration.migration import Migration


class StateReader:
    """Takes the records of one stream into ``machine``. Memory at once; devices and clock with :meth:`load_devices`."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._blocks: list[RamBlock] | None = None
        self._configured = False
        self._head: bytes | None = None
        self._sections: list[bytes] = []

    def take(self, kind: int, payload: bytes) -> None:
        """One record. Raises QobraError where it cannot be, or not here."""
        if kind == CONFIGURATION:
            check_configuration(self._machine, payload)
            self._configured = True
        elif not self._configured:
            raise QobraError("Configuration section missing", errno=errno.EINVAL)
        elif kind == BLOCKS:
            board = self._machine.board
            self._blocks = take_blocks(payload, ram_blocks(board) if board is not None else [])
        elif kind in (PAGES, ZEROES, DELTA, DEFLATED):
            take_pages(kind, payload, self._blocks or [])
        elif kind == MACHINE and self._head is None:
            self._head = payload
        elif kind == DEVICE:
            self._sections.append(payload)
        else:
            raise QobraError(f"Unexpected savevm section type {kind}", errno=errno.EINVAL)

    def load_devices(self) -> str:
        """Everything is there: load the devices, and return the run state to go on with. In the strand."""
        if self._head is None or self._blocks is None:
            raise QobraError("The migration stream has no machine in it", errno=errno.EINVAL)
        return machine_state.load_devices(self._machine, self._head, self._sections)


class Incoming:
    """One machine's wait for another's state, in a thread of its own."""

    def __init__(self, owner: Migration, uri: str) -> None:
        """Start to listen at ``uri``. Raises QobraError."""
        self._owner = owner
        self._machine: Machine = owner.machine
        self.status = "none"
        self._listener = Listener(uri, lambda name: self._machine.fdsets.take_named_or_number(name))
        self._channel: Channel | None = None
        self._closing = False
        self._lock = threading.Lock()
        self._bitmaps = BitmapReceiver(self._machine.block, owner.settings)
        self._thread = threading.Thread(target=self._run, name="incoming migration", daemon=True)

    @property
    def addresses(self) -> list[dict[str, object]]:
        """Where the machine listens (SocketAddress)."""
        return self._listener.addresses

    def start(self) -> None:
        """Begin to wait."""
        self.status = "setup"
        self._thread.start()

    def close(self) -> None:
        """Wait no longer."""
        with self._lock:
            self._closing = True
            if self._channel is not None:
                self._channel.cancel()
        self._listener.close()
        self._thread.join(1.0)
        with self._machine.control:
            self._bitmaps.give_up()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is over; False if ``timeout`` seconds passed first. Not in the strand."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _set_status(self, status: str) -> None:
        self.status = status
        self._owner.tell(status)

    # -- the thread

    def _run(self) -> None:
        try:
            channel = self._listener.open()
            with self._lock:
                if self._closing:
                    channel.abort()
                    return
                self._channel = channel
            self._receive(channel)
        except GivenUp:
            return
        except QobraError as error:
            self._fail(str(error), error.errno or errno.EINVAL)
        except OSError as error:
            self._fail(None, error.errno or errno.EIO)
        finally:
            with self._lock:
                left, self._channel = self._channel, None
            if left is not None:
                left.abort()

    def _receive(self, source: Channel) -> None:
        reader = StreamReader(source)
        state = StateReader(self._machine)
        reader.begin()
        with self._machine.control:
            self._set_status("active")
        switched = answers = False
        while True:
            kind, payload = reader.record()
            if kind == END:
                break
            with self._machine.control:
                if kind == ANSWER:
                    answers = True
                elif kind == BITMAPS:
                    self._bitmaps.take(payload)
                elif kind == SWITCH and not switched:
                    switched = True
                    self._go_on(state)
                elif switched:
                    raise QobraError(f"Unexpected savevm section type {kind}", errno=errno.EINVAL)
                else:
                    state.take(kind, payload)
        with self._machine.control:
            if not switched:
                self._go_on(state)
            self._bitmaps.give_up()
            self._set_status("completed")
        if answers and source.two_way:
            source.write(TAKEN_OVER)

    def _go_on(self, state: StateReader) -> None:
        """The machine is here now: it takes its disks over and goes on as it was."""
        run_state = state.load_devices()
        own = self._machine.run_state
        runs = run_state == "running" and own.autostart
        if runs or not self._owner.capability("late-block-activate"):
            try:
                activate_all(self._machine.block)
            except QobraError as error:
                report_error(error)
                runs = False
        parameters = self._owner.settings.parameters
        self._machine.announce({name: parameters[f"announce-{name}"] for name in ("initial", "max", "rounds", "step")})
        if runs:
            own.start()
        elif run_state == "running":
            own.set("paused")
        else:
            own.set(run_state)

    def _fail(self, why: str | None, number: int) -> None:
        with self._machine.control:
            self._bitmaps.give_up()
            switched = self._machine.run_state.state != "inmigrate"
            self._set_status("completed" if switched else "failed")
            if why is not None:
                report_error(why)
            if not switched:
                # Half a machine is of no use to anybody.
                report_error(f"load of migration failed: {os.strerror(number)}")
                self._machine.run_state.exit_status = 1
                self._machine.request_exit()
