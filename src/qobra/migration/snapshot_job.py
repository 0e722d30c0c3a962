"""The jobs that save, load and delete snapshots of a machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from qobra.block.job.job import Job

if TYPE_CHECKING:
    from qobra.machine.machine import Machine


class SnapshotJob(Job):
    """Does one thing to the machine, in the strand, and stays until it is dismissed."""

    def __init__(self, machine: Machine, job_id: str, kind: str, work: Callable[[], None]) -> None:
        self.kind = kind
        super().__init__(machine.block.jobs, job_id, auto_dismiss=False)
        self._machine = machine
        self._call = work
        self.total = 1

    def run(self) -> None:
        with self._machine.control:
            self._call()
        self.current = 1
