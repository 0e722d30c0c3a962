"""A migration from another machine: memory as it comes, the devices once all of them are there."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from qobra.block.activation import activate_all
from qobra.errors import QobraError, strerror
from qobra.machine.vmstate import StateSource
from qobra.migration.bitmaps import BitmapReceiver
from qobra.migration.channel import GivenUp
from qobra.migration.disks import DiskReceiver
from qobra.migration.landing import Landing
from qobra.migration.open_channels import OpenChannels
from qobra.migration.page_in import PageIn
from qobra.migration.return_path import Answers
from qobra.migration.settings import MATCHED
from qobra.migration.state_reader import StateReader
from qobra.migration.stream import (
    ANSWER,
    BITMAPS,
    BLOCKS,
    CAPABILITY,
    CHANNELS,
    DISKS,
    END,
    LATER,
    MEMORY,
    SWITCH,
    SYNC,
    StreamReader,
)
from qobra.migration.ways import Listener
from qobra.report import report_error, visible

if TYPE_CHECKING:
    from qobra.machine.machine import Machine
    from qobra.migration.migration import Migration
    from qobra.migration.ways import AnyChannel

_MS = 1_000_000


class Incoming:
    """One machine's wait for another's state, in a thread of its own."""

    def __init__(self, owner: Migration, uri: str) -> None:
        """Start to listen at ``uri``. Raises QobraError."""
        self._owner = owner
        self._machine: Machine = owner.machine
        self.status = "none"
        self._listener = self._listen(uri)
        self._channels = OpenChannels()
        self._way_on = threading.Event()
        """Somebody has named the way of a recovery, or it is over."""
        self._answers: Answers | None = None
        self._bitmaps = BitmapReceiver(self._machine.block, owner.settings)
        self._disks = DiskReceiver(self._machine.block)
        self._capabilities: set[str] = set()
        """Those of the source that are to be the same here."""
        self._landing: Landing | None = None
        self._thread = threading.Thread(target=self._run, name="incoming migration", daemon=True)

    def _listen(self, uri: str) -> Listener:
        listener = Listener(uri, lambda name: self._machine.fdsets.take_named_or_number(name))
        if self._owner.capability("multifd") and not listener.many:
            listener.close()
            raise QobraError("multifd is not supported by current protocol")
        return listener

    @property
    def addresses(self) -> list[dict[str, object]]:
        """Where the machine listens (SocketAddress)."""
        return self._listener.addresses

    @property
    def under_way(self) -> bool:
        """Whether something is still to come."""
        return self.status not in ("completed", "failed")

    @property
    def waited_ms(self) -> int | None:
        """How long pages were waited for while the guest ran; None where it did not run before all were there."""
        return self._landing.arrivals.waited_ns // _MS if self._landing is not None else None

    def start(self) -> None:
        """Begin to wait."""
        self.status = "setup"
        self._thread.start()

    def close(self) -> None:
        """Wait no longer."""
        self._channels.give_up()
        self._way_on.set()
        self._listener.close()
        if self._landing is not None:
            self._landing.arrivals.end()
        self._thread.join(1.0)
        with self._machine.control:
            self._bitmaps.give_up()
            self._disks.close()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is over; False if ``timeout`` seconds passed first. Not in the strand."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    # -- what clients ask, from any thread: the strand may be held by who waits for a page

    def pause(self) -> bool:
        """migrate-pause: break the channel; False where memory does not follow just now."""
        if self.status != "postcopy-active":
            return False
        self.hang_up()
        return True

    def recover(self, uri: str) -> None:
        """migrate-recover: listen again, at ``uri``. Raises QobraError."""
        if self.status != "postcopy-paused":
            raise QobraError("Migrate recover can only be run when postcopy is paused.")
        listener = self._listen(uri)
        before, self._listener = self._listener, listener
        before.close()
        self._way_on.set()

    # -- for the one that brings memory late

    def hang_up(self) -> None:
        """Break the channel that pages come over."""
        self._channels.hang_up()

    def take_bitmaps(self, payload: bytes) -> None:
        """A record of bitmaps. Raises QobraError."""
        with self._machine.control:
            self._bitmaps.take(payload)

    def note_status(self, status: str) -> None:
        """There is another status; it is told of once the strand is free."""
        self.status = status
        self._machine.control.post(self._owner.tell, status)

    def reopen(self) -> AnyChannel:
        """Be paused until there is another channel. Raises GivenUp."""
        self._channels.close(abort=True)
        self._way_on.clear()
        if not self._channels.given_up:
            self.note_status("postcopy-paused")
            self._way_on.wait()
        if self._channels.given_up:
            raise GivenUp
        return self._open()

    # -- the thread

    def _run(self) -> None:
        try:
            self._receive()
        except GivenUp:
            pass
        except QobraError as error:
            self._fail(str(error), error.errno or errno.EINVAL)
        except OSError as error:
            self._fail(None, error.errno or errno.EIO)
        finally:
            self._channels.close(abort=True)
            self._listener.close()

    def _open(self) -> AnyChannel:
        while True:
            listener = self._listener
            try:
                channel = listener.open()
            except GivenUp:
                if self._channels.given_up or listener is self._listener:
                    raise
                continue  # somebody has named another way meanwhile
            try:
                return self._channels.add(channel, self._owner.secure_incoming)
            except (QobraError, OSError) as error:
                if not listener.many:
                    raise
                # The source may still come.
                report_error(strerror(error) if isinstance(error, OSError) else error)

    def _receive(self) -> None:
        channel = self._open()
        reader = StreamReader(channel)
        reader.begin()
        with self._machine.control:
            self._set_status("active")
        state = StateReader(self._machine)
        pages = PageIn(lambda: state.blocks, self._owner.settings.parameters["decompress-threads"])
        try:
            self._receive_state(channel, reader, state, pages)
        except (QobraError, OSError):
            if pages.error is not None:
                raise pages.error
            raise
        finally:
            pages.close()
        if self._landing is not None:
            self._landing.receive(reader)
        with self._machine.control:
            self._complete()
        if self._answers is not None:
            self._answers.taken_over()

    def _receive_state(self, channel: AnyChannel, reader: StreamReader, state: StateReader, pages: PageIn) -> None:
        # All that comes while the guest runs nowhere, and bitmaps that follow.
        switched = False
        while (record := reader.record())[0] != END:
            kind, payload = record
            if kind == BITMAPS:
                self.take_bitmaps(payload)
            elif switched:
                raise QobraError(f"Unexpected savevm section type {kind}", errno=errno.EINVAL)
            elif kind in MEMORY:
                pages.take(kind, payload)
            elif kind == DISKS:
                self._disks.take(payload, self._in_strand)
            elif kind == SYNC:
                pages.end_pass()
            elif kind == ANSWER and channel.two_way:
                self._answers = Answers(channel)
            elif kind == CAPABILITY:
                self._take_capability(StateSource(payload).text())
            elif kind == CHANNELS and "multifd" in self._capabilities and state.blocks:
                pages.share(payload, self._open, self.hang_up)
                self._listener.close()
            elif kind == LATER and "postcopy-ram" in self._capabilities and self._answers is not None:
                if self._landing is None:
                    self._landing = Landing(self, state.blocks, self._answers)
                self._landing.expect(payload)
            elif kind == SWITCH:
                switched = True
                pages.drain()
                if self._landing is not None:
                    self.note_status("postcopy-active")
                    self._landing.begin(lambda: self._go_on(state))
                    return
                self._go_on(state)
            else:
                if kind == BLOCKS:
                    self._check_capabilities()
                    if not self._owner.capability("multifd"):
                        self._listener.close()
                with self._machine.control:
                    state.take(kind, payload)
        pages.drain()
        if not switched:
            self._go_on(state)

    def _in_strand(self, call: Callable[[], None]) -> None:
        with self._machine.control:
            call()

    def _take_capability(self, name: str) -> None:
        if name not in MATCHED:
            raise QobraError(f"Unknown capability '{visible(name)}' in the stream", errno=errno.EINVAL)
        self._capabilities.add(name)

    def _check_capabilities(self) -> None:
        names = {True: "on", False: "off"}
        for name in MATCHED:
            ours, theirs = self._owner.capability(name), name in self._capabilities
            if ours != theirs:
                raise QobraError(
                    f"Capability {name} is {names[ours]}, but received capability is {names[theirs]}",
                    errno=errno.EINVAL,
                )

    def _go_on(self, state: StateReader) -> None:
        """The machine is here now: it takes its disks over and goes on as it was."""
        self._disks.flush()
        with self._machine.control:
            self._disks.close()
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
            announce = {name: parameters[f"announce-{name}"] for name in ("initial", "max", "rounds", "step")}
            self._machine.announce(announce)
            if runs:
                own.start()
            elif run_state == "running":
                own.set("paused")
            else:
                own.set(run_state)
            if self._landing is None and not self._bitmaps.expects_more:
                self._complete()  # whoever hears that the guest runs finds that it is all here

    def _complete(self) -> None:
        self._bitmaps.give_up()
        if self.status != "completed":
            self._set_status("completed")

    def _set_status(self, status: str) -> None:
        self.status = status
        self._owner.tell(status)

    def _fail(self, why: str | None, number: int) -> None:
        if self._landing is not None:
            self._landing.arrivals.end()
        with self._machine.control:
            self._disks.close()
            switched = self._landing is None and self._machine.run_state.state != "inmigrate"
            if switched:
                self._complete()
            else:
                self._bitmaps.give_up()
                self._set_status("failed")
            if why is not None:
                report_error(why)
            if not switched:
                # Half a machine is of no use to anybody.
                report_error(f"load of migration failed: {os.strerror(number)}")
                self._machine.run_state.exit_status = 1
                self._machine.request_exit()
