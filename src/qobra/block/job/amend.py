"""x-blockdev-amend: change the encryption settings of an open image, as a job."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qobra.block import permissions
from qobra.block.backend import BlockBackend
from qobra.block.job.job import Job
from qobra.block.node import drivers
from qobra.errors import QobraError

if TYPE_CHECKING:
    from qobra.block.job.jobs import Jobs

Options = dict[str, Any]


class AmendJob(Job):
    """Changes the image of a node as ``options`` (BlockdevAmendOptions) say; stays until it is dismissed."""

    kind = "amend"

    def __init__(self, jobs: Jobs, job_id: str, node_name: str, options: Options, force: bool) -> None:
        node = jobs.layer.find_node(node_name)
        driver = drivers.find(options["driver"])
        if driver is None:
            raise QobraError(f"Block driver '{options['driver']}' not found or not supported")
        if not isinstance(node, driver):
            raise QobraError("x-blockdev-amend doesn't support changing the block driver")
        if not node.can_amend_encryption:
            raise QobraError("Driver does not support x-blockdev-amend")
        super().__init__(jobs, job_id, auto_dismiss=False)
        self._options = options
        self._force = force
        # A guest may use the disk meanwhile: what it reads stays the same. Of an image that is read-only, only what is
        # wrong with the options is told.
        writes = options.get("encrypt") is not None and not node.read_only
        perm = permissions.WRITE_UNCHANGED if writes else 0
        self._root = BlockBackend(self.layer, perm=perm, description=f"amend job '{job_id}'")
        self.total = 1
        try:
            self._root.insert(node)
        except BaseException:
            self.discard()
            raise

    def run(self) -> None:
        try:
            self._root.inserted().amend_encryption(self._options, self._force)
        finally:
            self.current = 1

    def clean(self) -> None:
        self._root.remove()
