"""The jobs that save, load and delete snapshots of a machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from qobra.block.job.job import Job, JobCancelled

if TYPE_CHECKING:
    from qobra.machine.machine import Machine

_TURN = 0.02
"""Seconds after which a job that waits for the strand looks whether it is still wanted."""


class SnapshotJob(Job):
    """Does one thing to the machine, in the strand, and stays until it is dismissed."""

    def __init__(self, machine: Machine, job_id: str, kind: str, work: Callable[[], None]) -> None:
        self.kind = kind
        super().__init__(machine.block.jobs, job_id, auto_dismiss=False)
        self._machine = machine
        self._call = work
        self.total = 1

    def run(self) -> None:
        control = self._machine.control
        # Who ends the machine cancels this, and waits for this thread with the strand in hand.
        while not control.enter_within(_TURN):
            self.pause_point()
        try:
            if self.force_cancelled:
                raise JobCancelled
            self._call()
        finally:
            control.leave()
        self.current = 1
