"""A migration to another machine: memory while the guest runs, then the rest while it stands still.

One thread does it, and enters the strand for what decides: to stop the guest, to save the devices, to hand the disks
over, to change the status. In postcopy, what is left follows when the guest runs on the other side already.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from qobra.block.activation import deactivate_all
from qobra.errors import QobraError, strerror
from qobra.migration import machine_state
from qobra.migration.bitmaps import BitmapSender
from qobra.migration.channel import GivenUp
from qobra.migration.configuration import put_configuration, put_name
from qobra.migration.open_channels import OpenChannels
from qobra.migration.pacer import Pacer
from qobra.migration.page_coding import DeltaCache
from qobra.migration.page_out import PageOut, open_pages
from qobra.migration.progress import Progress
from qobra.migration.ram import RamSender, put_blocks, ram_blocks
from qobra.migration.return_path import expect_taken_over
from qobra.migration.settings import MATCHED
from qobra.migration.standstill import Standstill
from qobra.migration.stream import ANSWER, BLOCKS, CAPABILITY, CONFIGURATION, END, SWITCH, StreamWriter
from qobra.report import report_error

if TYPE_CHECKING:
    from qobra.machine.board import Board
    from qobra.machine.machine import Machine
    from qobra.migration.disks import DiskSender
    from qobra.migration.migration import Migration
    from qobra.migration.postcopy import Postcopy
    from qobra.migration.ways import AnyChannel, Way

_UNPLUG_POLL_S = 0.05
_UNPLUG_LIMIT_S = 30
"""How long a migration that was cancelled waits for guests to let go of what they were asked for, as QEMU does."""
ENDED = frozenset(("completed", "failed", "cancelled"))


class _SwitchNow(Exception):
    """Memory is to follow later: no use in going on with this pass."""


class Outgoing:
    """One migration. ``status`` is a MigrationStatus; ``error`` says why it failed."""

    def __init__(self, owner: Migration, way: Way, *, disks: bool = False, incremental: bool = False) -> None:
        self._owner = owner
        self._machine: Machine = owner.machine
        self._way = way
        self.status = "none"
        self.error: str | None = None
        self._channels = OpenChannels()
        self._cancelled = threading.Event()
        self._abandoned = threading.Event()
        self._continued = threading.Event()
        self._postcopy = threading.Event()
        self._ram = self._find_memory()
        self._progress = Progress(self._machine.clock.monotonic_ns, self._ram)
        self._pages: PageOut | None = None
        self._with_postcopy = owner.capability("postcopy-ram")
        self._later: Postcopy | None = None
        """Sends what is left of memory; None but in postcopy."""
        self._resumed = threading.Event()
        self._way_on: Way | None = None
        self._wants_answer = owner.capability("return-path") or self._with_postcopy
        self._with_bitmaps = owner.capability("dirty-bitmaps")
        self._bitmaps: BitmapSender | None = None
        self._with_disks = disks
        self._incremental = incremental
        self._disks: DiskSender | None = None
        self._standstill = Standstill(self._machine)
        self._too_late = False
        """All was sent; whether the other side goes on is for that to say."""
        self._handed_over = False
        """The other side goes on; whatever happens to the rest, the guest must not run here too."""
        self._pacer = Pacer(self._machine.clock.monotonic_ns, self._bandwidth)
        self._thread = threading.Thread(target=self._run, name="migration", daemon=True)

    def _find_memory(self) -> RamSender:
        board, owner = self._machine.board, self._owner
        ignore_shared = owner.capability("x-ignore-shared")
        deltas = DeltaCache(owner.settings.parameters["xbzrle-cache-size"]) if owner.capability("xbzrle") else None
        blocks = ram_blocks(board) if board is not None else []
        return RamSender(blocks, lambda block: ignore_shared and block.shared, deltas=deltas)

    # -- what clients ask; in the strand

    @property
    def ended(self) -> bool:
        """Whether it is over."""
        return self.status in ENDED

    def start(self) -> None:
        """Begin."""
        self._set_status("setup")
        self._thread.start()

    def cancel(self) -> None:
        """Give it up, if it is not too late."""
        follows = self.status == "postcopy-active" and self._later is None
        if not self.ended and not self._too_late and not follows and self.status != "cancelling":
            self._set_status("cancelling")
            self._give_up()

    def abandon(self) -> None:
        """The machine ends: let go whoever waits here."""
        self._abandoned.set()
        self._give_up()

    def _give_up(self) -> None:
        self._cancelled.set()
        self._continued.set()
        self._resumed.set()
        self._channels.give_up()

    def go_on(self, state: str) -> None:
        """migrate-continue. Raises QobraError unless the status is ``state``, in which it waits."""
        if self.status != state:
            raise QobraError(f"Migration not in expected state: {self.status}")
        self._continued.set()

    def start_postcopy(self) -> None:
        """Switch over as soon as can be: what is left of memory and bitmaps follows. Raises QobraError."""
        if not self._with_bitmaps and not self._with_postcopy:
            raise QobraError("Enable postcopy with migrate_set_capability before the start of migration")
        self._postcopy.set()

    def pause(self) -> bool:
        """migrate-pause: break the channel; False where memory does not follow just now. From any thread."""
        return self.status == "postcopy-active" and self._later is not None and self._channels.hang_up()

    def resume(self, way: Way) -> None:
        """Go on over another channel. Raises QobraError unless it waits for one."""
        if self.status != "postcopy-paused":
            raise QobraError("Cannot resume if there is no paused migration")
        self._way_on = way
        self._resumed.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is over; False if ``timeout`` seconds passed first. Not in the strand."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def describe(self) -> dict[str, Any]:
        """MigrationInfo."""
        return self._progress.describe(self.status, self.error, self._owner.settings.parameters["downtime-limit"])

    # -- the thread

    def _run(self) -> None:
        try:
            self._migrate()
        except GivenUp:
            self._end("cancelled", None)
        except QobraError as error:
            self._end("failed", str(error))
        except OSError as error:
            self._end("failed", f"Unable to write to channel: {strerror(error)}")

    def _check_cancelled(self) -> None:
        if self._cancelled.is_set():
            raise GivenUp

    def _check_switch(self) -> None:
        self._check_cancelled()
        if self._with_postcopy and self._postcopy.is_set():
            raise _SwitchNow

    def _open(self, way: Way) -> AnyChannel:
        return self._channels.add(way.open(), lambda channel: self._owner.secure_outgoing(channel, way.hostname))

    def _migrate(self) -> None:
        channel = self._open(self._way)
        out = self._progress.count(StreamWriter(channel, self._pace))
        self._wait_unplug()
        self._set_up(channel, out)
        self._progress.set_up()
        self._enter("active")
        self._send_while_it_runs(out)
        postcopy = self._postcopy.is_set() and (self._bitmaps is not None or self._with_postcopy)
        run_state = self._stop_guest()
        if not self._with_postcopy or not postcopy:
            self._wait_before_switchover()
        self._announce_pass()
        self._send_last_pass(out, late=postcopy and self._with_postcopy)
        self._finish_disks(out)
        with self._machine.control:
            records = machine_state.save_devices(self._machine, run_state)
            if self._bitmaps is not None:
                self._bitmaps.freeze()
        machine_state.write_devices(out, records)
        if self._bitmaps is not None:
            self._bitmaps.announce(out)
            if not postcopy:
                self._bitmaps.send(out, self._check_cancelled)
        while not self._hand_disks_over(postcopy):
            self._finish_disks(out)
        if postcopy:
            self._handed_over = True
            out.record(SWITCH)
        while True:
            try:
                self._send_rest(channel, out, postcopy=postcopy)
                break
            except (OSError, QobraError) as error:
                if self._later is None:
                    raise
                channel, out = self._recover(error)
        self._close_channels()
        self._end("completed", None)

    def _set_up(self, channel: AnyChannel, out: StreamWriter) -> None:
        out.begin()
        if self._with_bitmaps:
            with self._machine.control:
                self._bitmaps = BitmapSender(self._machine.block, self._owner.settings)
        out.record(CONFIGURATION, put_configuration(self._machine, with_uuid=self._owner.capability("validate-uuid")))
        if self._wants_answer:
            if not channel.two_way:
                raise QobraError("Unable to open return-path for postcopy")
            out.record(ANSWER)
        for name in MATCHED:
            if self._owner.capability(name):
                out.record(CAPABILITY, put_name(name))
        blocks = bytearray()
        put_blocks(blocks, self._ram.blocks)
        out.record(BLOCKS, blocks)
        self._pages = open_pages(self._owner, out, lambda: self._open(self._way), self._pace)
        self._progress.pages = self._pages
        if self._with_disks:
            from qobra.migration.disks import DiskSender

            with self._machine.control:
                self._disks = self._progress.disks = DiskSender(
                    self._machine.block,
                    incremental=self._incremental,
                    with_zeroes=self._owner.capability("zero-blocks"),
                )
            self._disks.announce(out)

    def _send_last_pass(self, out: StreamWriter, *, late: bool) -> None:
        assert self._pages is not None
        if not late:
            self._ram.send_pass(self._pages, self._check_cancelled)
            self._pages.end_pass()
            return
        from qobra.migration.postcopy import Postcopy

        pages = self._ram.leave_for_later(self._pages, self._check_cancelled)
        self._pages.end_pass()
        release = self._owner.capability("release-ram")
        self._later = self._progress.later = Postcopy(self._ram, pages, self._pacer, release=release)
        self._later.announce(out)

    def _send_rest(self, channel: AnyChannel, out: StreamWriter, *, postcopy: bool) -> None:
        if self._later is not None:
            self._later.send(channel, out)
        if postcopy and self._bitmaps is not None:
            self._bitmaps.send(out, lambda: None)
        with self._machine.control:
            self._check_cancelled()
            self._too_late = self._later is None
        out.record(END)
        if self._later is not None:
            self._later.finish(channel)
        elif self._wants_answer:
            expect_taken_over(channel)

    def _recover(self, error: OSError | QobraError) -> tuple[AnyChannel, StreamWriter]:
        # The guest runs on the other side, and needs what is here.
        assert self._later is not None
        while True:
            self._close_channels(abort=True)
            report_error("Detected IO failure for postcopy. Migration paused.")
            with self._machine.control:
                self._resumed.clear()
                self._check_cancelled()
                self._set_status("postcopy-paused")
            try:
                channel = self._open(self._wait_resumed())
                self._enter("postcopy-recover")
                out = self._progress.count(StreamWriter(channel, self._pace))
                self._later.recover(channel, out)
                self._enter("postcopy-active")
                return channel, out
            except (OSError, QobraError) as failure:
                report_error(strerror(failure) if isinstance(failure, OSError) else failure)

    def _wait_resumed(self) -> Way:
        self._resumed.wait()
        self._check_cancelled()
        assert self._way_on is not None
        return self._way_on

    def _close_channels(self, *, abort: bool = False) -> None:
        if abort:
            self._channels.let_go()
        if self._pages is not None:
            self._pages.close()
        self._channels.close(abort=abort)

    def _wait_unplug(self) -> None:
        # Cards that cannot be migrated leave; others stand by for them.
        board = self._machine.board
        if board is None:
            return
        with self._machine.control:
            board.failover.release()
            waits = board.failover.releasing
            if waits:
                self._set_status("wait-unplug")
        while waits:
            if self._cancelled.wait(_UNPLUG_POLL_S):
                self._see_off(board)
                raise GivenUp
            with self._machine.control:
                waits = board.failover.releasing
                # What has left has taken its memory along.
                self._ram = self._progress.ram = self._find_memory()

    def _see_off(self, board: Board) -> None:
        # What the guest was asked for leaves, migration or not, and can be given back only after that.
        for _attempt in range(round(_UNPLUG_LIMIT_S / _UNPLUG_POLL_S)):
            if self._abandoned.wait(_UNPLUG_POLL_S):
                return
            with self._machine.control:
                if not board.failover.releasing:
                    return

    def _finish_disks(self, out: StreamWriter) -> None:
        if self._disks is not None:
            self._disks.send_written(out, self._check_cancelled)

    def _hand_disks_over(self, postcopy: bool) -> bool:
        """Let go of all images; False if somebody still wrote to one that goes along: that has to be sent first.

        The guest stands still, but whoever is at the monitor may write (``qemu-io``).
        """
        with self._machine.control:
            self._check_cancelled()
            if self._disks is not None:
                self._disks.check()
                if self._disks.remaining:
                    return False
            deactivate_all(self._machine.block)
            self._progress.resumed()
            if postcopy and self.status != "postcopy-active":
                self._set_status("postcopy-active")
        return True

    def _is_little(self, left: int) -> bool:
        """Whether so many bytes can be sent while the guest does not notice that it stands still."""
        parameters = self._owner.settings.parameters
        bandwidth, limit_ms = parameters["max-bandwidth"], parameters["downtime-limit"]
        return bool(not left or not bandwidth or left * 1000 <= bandwidth * limit_ms)

    def _send_while_it_runs(self, out: StreamWriter) -> None:
        # Until what is left can be sent while the guest does not notice that it stands still.
        assert self._pages is not None
        if self._disks is not None:
            self._disks.send_all(out, self._check_cancelled)
        while True:
            if self._disks is not None:
                self._disks.send_written(out, self._check_cancelled)
            if self._ram.passes:
                self._announce_pass()
            try:
                left = self._ram.send_pass(self._pages, self._check_switch)
            except _SwitchNow:
                left = 0
            self._pages.end_pass()
            if not self._machine.run_state.running or self._postcopy.is_set():
                return
            if self._is_little(left + (self._disks.remaining if self._disks is not None else 0)):
                return

    def _announce_pass(self) -> None:
        with self._machine.control:
            self._owner.tell_pass(self._ram.passes + 1)

    def _enter(self, status: str) -> None:
        with self._machine.control:
            self._check_cancelled()
            if status == "active":
                self._owner.tell_pass(1)
            self._set_status(status)

    def _stop_guest(self) -> str:
        with self._machine.control:
            self._check_cancelled()
            self._progress.stopped()
            return self._standstill.begin()

    def _wait_before_switchover(self) -> None:
        if not self._owner.capability("pause-before-switchover"):
            return
        self._enter("pre-switchover")
        self._continued.wait()
        self._enter("device")

    def _switches_now(self) -> bool:
        return self._postcopy.is_set() and not self._handed_over

    def _bandwidth(self) -> int:
        postcopy = self.status == "postcopy-active"
        if self._standstill.began and not postcopy:
            return 0  # the guest stands still
        return int(self._owner.settings.parameters["max-postcopy-bandwidth" if postcopy else "max-bandwidth"])

    def _pace(self, length: int) -> None:
        self._check_cancelled()
        if self._later is None:
            self._pacer.charge(length)
            while (wait := self._pacer.wait()) and not self._switches_now():
                self._cancelled.wait(wait)
                self._check_cancelled()

    # -- the end

    def _set_status(self, status: str) -> None:
        self.status = status
        self._owner.tell(status)

    def _end(self, status: str, error: str | None) -> None:
        self._close_channels(abort=True)
        if self._cancelled.is_set() and status == "failed":
            status = "cancelled"
        moved = status == "completed" or self._handed_over
        with self._machine.control:
            self._progress.end()
            self.error = error
            if self._bitmaps is not None:
                self._bitmaps.end(moved=moved)
            if self._disks is not None:
                self._disks.end()
            self._set_status(status)
            self._standstill.end(moved=moved)
            if not moved and self._machine.board is not None:
                self._machine.board.failover.take_back()
        if status == "failed":
            report_error(error)
