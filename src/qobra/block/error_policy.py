"""What becomes of a guest's failed request: reported to it, ignored, or the machine stopped (rerror, werror)."""

from __future__ import annotations

import errno
import os

from qobra.errors import errno_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qobra.block.backend import BlockBackend

REPORT, IGNORE, STOP = "report", "ignore", "stop"


class ErrorPolicy:
    """The policy of one device, and the io-status that comes of it.

    ``on_read_error`` and ``on_write_error`` are ``report``, ``ignore``, ``stop`` or (writes only, and the default)
    ``enospc``: stop where the host is out of space, report anything else.
    """

    def __init__(self, backend: BlockBackend, *, on_read_error: str = "auto", on_write_error: str = "auto") -> None:
        self._backend = backend
        self.on_read_error = REPORT if on_read_error == "auto" else on_read_error
        self.on_write_error = "enospc" if on_write_error == "auto" else on_write_error
        self.io_status = "ok"
        self.has_status = False
        """Whether the device that it is for lets others ask for ``io_status``."""
        self.counts_all_transfers = False
        """Whether statistics tell of all reads and writes that fail, also where the guest is not told."""

    def decide(self, error: BaseException, *, is_read: bool) -> str:
        """What to do about ``error``: ``report``, ``ignore`` or ``stop``. Sends the event, and stops the machine.

        Called in the thread whose request of the backend failed with it, outside of that; a stopped request is to be
        kept and retried when the machine runs again.
        """
        number = errno_of(error)
        policy = self.on_read_error if is_read else self.on_write_error
        if policy == "enospc":
            action = STOP if number == errno.ENOSPC else REPORT
        else:
            action = policy
        backend = self._backend
        if action != REPORT:
            backend.pardon(done=action == IGNORE, transfers=not self.counts_all_transfers)
        backend.layer.control.defer(self._tell, is_read, action, number)
        return action

    def _tell(self, is_read: bool, action: str, number: int) -> None:
        backend = self._backend
        data: dict[str, str | bool] = {
            "device": backend.name,
            "operation": "read" if is_read else "write",
            "action": action,
            "reason": os.strerror(number),
        }
        if self.shown_status is not None:
            data["nospace"] = number == errno.ENOSPC
        if backend.node is not None:
            data["node-name"] = backend.node.node_name
        if action == STOP:
            self.io_status = "nospace" if number == errno.ENOSPC else "failed"
        backend.layer.emit("BLOCK_IO_ERROR", data)
        if action == STOP:
            backend.layer.stop_machine()

    @property
    def shown_status(self) -> str | None:
        """``io_status`` where there is one to tell: the machine may be stopped for an error."""
        return self.io_status if self.has_status and self._stops() else None

    def _stops(self) -> bool:
        return self.on_write_error in (STOP, "enospc") or self.on_read_error == STOP

    def report_all(self) -> None:
        """Tell the guest of every error from now on."""
        self.on_read_error = self.on_write_error = REPORT

    def reset(self) -> None:
        """The machine runs again: what failed is being retried."""
        self.io_status = "ok"
