"""The guest of a source, which stands still from the switch on: for good, or until nothing came of the migration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qobra.block.activation import activate_all
from qobra.errors import QobraError
from qobra.report import report_error

if TYPE_CHECKING:
    from qobra.machine.machine import Machine


class Standstill:
    """Stops the guest of ``machine``, and may let it run again. In the strand."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._was_running = False
        self.began = False

    def begin(self) -> str:
        """Stop the guest and let its devices come to rest; returns the run state before. Raises QobraError."""
        state = self._machine.run_state
        before, self._was_running = state.state, state.running
        self.began = True
        if state.running:
            state.stop("finish-migrate")
        else:
            state.set("finish-migrate")
        state.settle()
        return before

    def end(self, *, moved: bool) -> None:
        """It is over; unless the guest has ``moved`` it goes on here, as far as the disks allow that."""
        state = self._machine.run_state
        if not self.began or state.state != "finish-migrate":
            return
        if not moved:
            try:
                activate_all(self._machine.block)
                if self._was_running:
                    state.start()
                    return
            except QobraError as error:
                report_error(error)
        state.set("postmigrate")
