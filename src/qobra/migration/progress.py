"""How far a migration out is: times and counts, as ``query-migrate`` tells them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from qobra.migration.page_coding import PAGE

if TYPE_CHECKING:
    from qobra.migration.disks import DiskSender
    from qobra.migration.page_out import PageOut
    from qobra.migration.postcopy import Postcopy
    from qobra.migration.ram import RamSender
    from qobra.migration.stream import StreamWriter

_MS = 1_000_000


class Progress:
    """What is known of one migration, which began just now. Times are in ns of ``now_ns``."""

    def __init__(self, now_ns: Callable[[], int], ram: RamSender) -> None:
        self._now_ns = now_ns
        self.ram = ram
        self._writers: list[StreamWriter] = []
        self.pages: PageOut | None = None
        self.later: Postcopy | None = None
        self.disks: DiskSender | None = None
        self._started_ns = now_ns()
        self._setup_ns = self._ended_ns = self._stopped_ns = self._resumed_ns = 0

    def count(self, writer: StreamWriter) -> StreamWriter:
        """What goes through ``writer`` is this migration's."""
        self._writers.append(writer)
        return writer

    def set_up(self) -> None:
        """Memory begins to be sent."""
        self._setup_ns = self._now_ns() - self._started_ns

    def stopped(self) -> None:
        """The guest stands still."""
        self._stopped_ns = self._now_ns()

    def resumed(self) -> None:
        """The guest may run on the other side."""
        self._resumed_ns = self._now_ns()

    def end(self) -> None:
        """It is over."""
        self._ended_ns = self._now_ns()

    def describe(self, status: str, error: str | None, downtime_limit_ms: int) -> dict[str, Any]:
        """MigrationInfo."""
        info: dict[str, Any] = {"status": status}
        if status == "failed" and error is not None:
            info["error-desc"] = error
        if status in ("setup", "cancelled", "cancelling", "failed"):
            return info
        end = self._ended_ns or self._now_ns()
        info["total-time"] = (end - self._started_ns) // _MS
        info["setup-time"] = self._setup_ns // _MS
        if status == "completed":
            info["downtime"] = (self._resumed_ns - self._stopped_ns) // _MS
        else:
            info["expected-downtime"] = downtime_limit_ms
        info["ram"] = self._describe_ram(max(end - self._started_ns - self._setup_ns, 1), status == "completed")
        if self.disks is not None and status != "completed":
            info["disk"] = self.disks.describe()
        if self.ram.deltas is not None:
            info["xbzrle-cache"] = self.ram.deltas.describe()
        if self.pages is not None and self.pages.packer is not None and not self.pages.beside:
            info["compression"] = self.pages.packer.describe()
        return info

    def _describe_ram(self, elapsed_ns: int, ended: bool) -> dict[str, Any]:
        ram, beside = self.ram, self.pages.beside if self.pages is not None else 0
        sent = beside + sum(writer.sent for writer in self._writers)
        seconds = elapsed_ns / 1e9
        return {
            "transferred": sent,
            "remaining": ram.remaining,
            "total": ram.total,
            "duplicate": ram.zero_pages,
            "skipped": 0,
            "normal": ram.normal_pages,
            "normal-bytes": ram.normal_pages * PAGE,
            "dirty-pages-rate": int(ram.last_pass_bytes // PAGE / seconds) if ram.passes > 1 and not ended else 0,
            "mbps": sent * 8 / seconds / 1e6,
            "dirty-sync-count": ram.passes,
            "postcopy-requests": self.later.requests if self.later is not None else 0,
            "page-size": PAGE,
            "multifd-bytes": beside,
            "pages-per-second": int((ram.zero_pages + ram.normal_pages) / seconds),
        }
