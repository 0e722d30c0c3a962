"""A migration to another machine: memory while the guest runs, then the rest while it stands still.

One thread does it, and enters the strand for what decides: to stop the guest, to save the devices, to hand the disks
over, to change the status.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from qobra.block.activation import activate_all, deactivate_all
from qobra.errors import QobraError, strerror
from qobra.migration import machine_state
from qobra.migration.bitmaps import BitmapSender
from qobra.migration.channel import Channel, GivenUp
from qobra.migration.configuration import put_configuration
from qobra.migration.page_coding import PAGE, Deflater, DeltaCache
from qobra.migration.ram import RamSender, put_blocks, ram_blocks
from qobra.migration.stream import ANSWER, BLOCKS, CONFIGURATION, END, SWITCH, TAKEN_OVER, StreamWriter
from qobra.report import report_error

if TYPE_CHECKING:
    from qobra.machine.machine import Machine
    from qobra.migration.migration import Migration

_MS = 1_000_000
_WINDOW_S = 0.1
_UNPLUG_POLL_S = 0.05
ENDED = frozenset(("completed", "failed", "cancelled"))


class Outgoing:
    """One migration. ``status`` is a MigrationStatus; ``error`` says why it failed."""

    def __init__(self, owner: Migration, connect: Callable[[], Channel]) -> None:
        self._owner = owner
        self._machine: Machine = owner.machine
        self._connect = connect
        self.status = "none"
        self.error: str | None = None
        self._channel: Channel | None = None
        self._cancelled = threading.Event()
        self._continued = threading.Event()
        self._postcopy = threading.Event()
        self._lock = threading.Lock()
        board = self._machine.board
        ignore_shared = owner.capability("x-ignore-shared")
        self._blocks = ram_blocks(board) if board is not None else []
        parameters = owner.settings.parameters
        self._deltas = DeltaCache(parameters["xbzrle-cache-size"]) if owner.capability("xbzrle") else None
        self._deflater = Deflater(parameters["compress-level"]) if owner.capability("compress") else None
        self._ram = RamSender(
            self._blocks,
            lambda block: ignore_shared and block.shared,
            deltas=self._deltas,
            deflater=self._deflater,
        )
        self._wants_answer = owner.capability("return-path")
        self._with_bitmaps = owner.capability("dirty-bitmaps")
        self._bitmaps: BitmapSender | None = None
        self._out: StreamWriter | None = None
        self._was_running = False
        self._stopped = False
        self._too_late = False
        """All was sent; whether the other side goes on is for that to say."""
        self._handed_over = False
        """The other side goes on; whatever happens to the rest, the guest must not run here too."""
        self._started_ns = self._now_ns()
        self._setup_ns = self._ended_ns = self._stopped_ns = self._resumed_ns = 0
        self._window_ends_ns = self._window_bytes = 0
        self._thread = threading.Thread(target=self._run, name="migration", daemon=True)

    def _now_ns(self) -> int:
        return int(self._machine.clock.monotonic_ns())

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
        if not self.ended and not self._too_late and self.status not in ("cancelling", "postcopy-active"):
            self._set_status("cancelling")
            self._cancelled.set()
            self._continued.set()
            with self._lock:
                if self._channel is not None:
                    self._channel.cancel()

    def go_on(self, state: str) -> None:
        """migrate-continue. Raises QobraError unless the status is ``state``, in which it waits."""
        if self.status != state:
            raise QobraError(f"Migration not in expected state: {self.status}")
        self._continued.set()

    def start_postcopy(self) -> None:
        """Switch over as soon as can be: what is left of the bitmaps follows. Raises QobraError."""
        if not self._with_bitmaps:
            raise QobraError("Enable postcopy with migrate_set_capability before the start of migration")
        self._postcopy.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is over; False if ``timeout`` seconds passed first. Not in the strand."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def describe(self) -> dict[str, Any]:
        """MigrationInfo."""
        info: dict[str, Any] = {"status": self.status}
        if self.status == "failed" and self.error is not None:
            info["error-desc"] = self.error
        if self.status in ("setup", "cancelled", "cancelling", "failed"):
            return info
        end = self._ended_ns or self._now_ns()
        info["total-time"] = (end - self._started_ns) // _MS
        info["setup-time"] = self._setup_ns // _MS
        if self.status == "completed":
            info["downtime"] = self._downtime_ns() // _MS
        else:
            info["expected-downtime"] = self._owner.settings.parameters["downtime-limit"]
        info["ram"] = self._ram_info(max(end - self._started_ns - self._setup_ns, 1))
        if self._deltas is not None:
            info["xbzrle-cache"] = self._deltas.describe()
        if self._deflater is not None:
            info["compression"] = self._deflater.describe()
        return info

    def _downtime_ns(self) -> int:
        return self._resumed_ns - self._stopped_ns

    def _ram_info(self, elapsed_ns: int) -> dict[str, Any]:
        ram, sent = self._ram, self._out.sent if self._out is not None else 0
        seconds = elapsed_ns / 1e9
        return {
            "transferred": sent,
            "remaining": ram.remaining,
            "total": ram.total,
            "duplicate": ram.zero_pages,
            "skipped": 0,
            "normal": ram.normal_pages,
            "normal-bytes": ram.normal_pages * PAGE,
            "dirty-pages-rate": int(ram.last_pass_bytes // PAGE / seconds) if ram.passes > 1 and not self.ended else 0,
            "mbps": sent * 8 / seconds / 1e6,
            "dirty-sync-count": ram.passes,
            "postcopy-requests": 0,
            "page-size": PAGE,
            "multifd-bytes": 0,
            "pages-per-second": int((ram.zero_pages + ram.normal_pages) / seconds),
        }

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

    def _migrate(self) -> None:
        channel = self._connect()
        with self._lock:
            self._channel = channel
        self._check_cancelled()
        out = self._out = StreamWriter(channel, self._pace)
        out.begin()
        if self._with_bitmaps:
            with self._machine.control:
                self._bitmaps = BitmapSender(self._machine.block, self._owner.settings)
        out.record(CONFIGURATION, put_configuration(self._machine, with_uuid=self._owner.capability("validate-uuid")))
        blocks = bytearray()
        put_blocks(blocks, self._blocks)
        out.record(BLOCKS, blocks)
        if self._wants_answer:
            if not channel.two_way:
                raise QobraError("Unable to open return-path for postcopy")
            out.record(ANSWER)
        self._setup_ns = self._now_ns() - self._started_ns
        self._wait_unplug()
        self._enter("active")
        self._send_memory(out)
        run_state = self._stop_guest()
        self._wait_before_switchover()
        self._announce_pass()
        self._ram.send_pass(out, self._check_cancelled)
        postcopy = self._bitmaps is not None and self._postcopy.is_set()
        with self._machine.control:
            records = machine_state.save_devices(self._machine, run_state)
            if self._bitmaps is not None:
                self._bitmaps.freeze()
        machine_state.write_devices(out, records)
        if self._bitmaps is not None and not postcopy:
            self._bitmaps.send(out, self._check_cancelled)
        with self._machine.control:
            self._check_cancelled()
            deactivate_all(self._machine.block)
            self._resumed_ns = self._now_ns()
            if postcopy:
                self._set_status("postcopy-active")
        if postcopy:
            assert self._bitmaps is not None
            self._handed_over = True
            out.record(SWITCH)
            self._bitmaps.send(out, lambda: None)
        with self._machine.control:
            self._check_cancelled()
            self._too_late = True
        out.record(END)
        if self._wants_answer and channel.read(len(TAKEN_OVER)) != TAKEN_OVER:
            raise QobraError("The destination did not take the machine over")
        with self._lock:
            self._channel = None
        channel.close()
        self._end("completed", None)

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
            self._cancelled.wait(_UNPLUG_POLL_S)
            self._check_cancelled()
            with self._machine.control:
                waits = board.failover.releasing

    def _send_memory(self, out: StreamWriter) -> None:
        # Until what is left can be sent while the guest does not notice that it stands still.
        while True:
            if self._ram.passes:
                self._announce_pass()
            left = self._ram.send_pass(out, self._check_cancelled)
            parameters = self._owner.settings.parameters
            bandwidth, limit_ms = parameters["max-bandwidth"], parameters["downtime-limit"]
            if not self._machine.run_state.running or self._postcopy.is_set():
                return
            if not left or not bandwidth or left * 1000 <= bandwidth * limit_ms:
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
        machine = self._machine
        with machine.control:
            self._check_cancelled()
            state = machine.run_state
            before, self._was_running = state.state, state.running
            self._stopped_ns = self._now_ns()
            self._stopped = True
            if state.running:
                state.stop("finish-migrate")
            else:
                state.set("finish-migrate")
            machine_state.settle(machine)
        return before

    def _wait_before_switchover(self) -> None:
        if not self._owner.capability("pause-before-switchover"):
            return
        self._enter("pre-switchover")
        self._continued.wait()
        self._enter("device")

    def _pace(self, length: int) -> None:
        # The bandwidth is kept over windows of a tenth of a second.
        self._check_cancelled()
        postcopy = self.status == "postcopy-active"
        bandwidth = self._owner.settings.parameters["max-postcopy-bandwidth" if postcopy else "max-bandwidth"]
        if not bandwidth:
            return
        now = self._now_ns()
        if now >= self._window_ends_ns:
            self._window_ends_ns, self._window_bytes = now + int(_WINDOW_S * 1e9), 0
        self._window_bytes += length
        over = self._window_bytes - bandwidth * _WINDOW_S
        if over > 0:
            self._cancelled.wait((self._window_ends_ns - now) / 1e9 + over / bandwidth)
            self._window_ends_ns = 0

    # -- the end

    def _set_status(self, status: str) -> None:
        self.status = status
        self._owner.tell(status)

    def _end(self, status: str, error: str | None) -> None:
        with self._lock:
            channel, self._channel = self._channel, None
        if channel is not None:
            channel.abort()
        if self._cancelled.is_set() and status == "failed":
            status = "cancelled"
        with self._machine.control:
            self._ended_ns = self._now_ns()
            self.error = error
            if self._bitmaps is not None:
                self._bitmaps.end(moved=status == "completed" or self._handed_over)
            self._set_status(status)
            if self._stopped:
                self._leave_finish_migrate(status)
            if status != "completed" and not self._handed_over and self._machine.board is not None:
                self._machine.board.failover.take_back()
        if status == "failed":
            report_error(error)

    def _leave_finish_migrate(self, status: str) -> None:
        state = self._machine.run_state
        if state.state != "finish-migrate":
            return
        if status != "completed" and not self._handed_over:
            try:
                activate_all(self._machine.block)
                if self._was_running:
                    state.start()
                    return
            except QobraError as error:
                report_error(error)
        state.set("postmigrate")
