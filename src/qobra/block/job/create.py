"""blockdev-create: make an image, as a job."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qobra.block import permissions
from qobra.block.backend import BlockBackend
from qobra.block.job.job import Job
from qobra.block.node import BlockNode, drivers
from qobra.errors import QobraError

if TYPE_CHECKING:
    from qobra.block.job.jobs import Jobs

Options = dict[str, Any]

CHILDREN = ("file", "data-file")
"""Options that are nodes, which the driver gets opened."""


class CreateJob(Job):
    """Makes the image that ``options`` (BlockdevCreateOptions) describe; stays until it is dismissed."""

    kind = "create"

    def __init__(self, jobs: Jobs, job_id: str, options: Options) -> None:
        name = options["driver"]
        driver = drivers.find(name)
        if driver is None:
            raise QobraError(f"Block driver '{name}' not found or not supported")
        if not driver.creatable:
            raise QobraError("Driver does not support blockdev-create")
        super().__init__(jobs, job_id, auto_dismiss=False)
        self._driver = driver
        self._options = options
        self._roots: dict[str, BlockBackend] = {}
        self._refusal: QobraError | None = None
        self.total = 1
        try:
            self._open_children()
        except QobraError as error:
            # What is wrong with the options is the job's error, not the command's.
            self._refusal = error

    def _open_children(self) -> None:
        for name in CHILDREN:
            reference = self._options.get(name)
            if reference is not None:
                root = BlockBackend(self.layer, perm=0)
                if isinstance(reference, str):
                    root.insert(self.layer.find_device_or_node(reference))
                else:
                    self.layer.open(reference, root=root, active=True)
                self._roots[name] = root
            if name == "file":
                self._driver.check_creation(self._options)
        for root in self._roots.values():
            root.set_permissions(permissions.CONSISTENT_READ | permissions.WRITE | permissions.RESIZE, permissions.ALL)

    def run(self) -> None:
        try:
            if self._refusal is not None:
                raise self._refusal
            nodes: dict[str, BlockNode] = {name: root.inserted() for name, root in self._roots.items()}
            arguments = [nodes[name] for name in CHILDREN if name in nodes]
            self._driver.create(self._options, *arguments)
        finally:
            self.current = 1

    def clean(self) -> None:
        for root in self._roots.values():
            root.remove()
        self._roots.clear()
