"""``nvme-subsys``: an NVM subsystem, whose controllers have namespaces in common (NVM Express 1.4, 1.4.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qobra.machine.devices import registry
from qobra.machine.nvme.namespace import Allocation
from qobra.machine.qdev import Device
from qobra.machine.vmstate import VmState
from qobra.object.property import String

if TYPE_CHECKING:
    from qobra.object.tree import ObjectTree


@registry.register("nvme-subsys")
class NvmeSubsystem(Device):
    """Controllers name it with ``subsys``; ``nqn`` is a part of its name, and its id if it is not said."""

    type_name = "nvme-subsys"
    category = "Storage"
    description = "Virtual NVMe subsystem"
    hotpluggable_class = False

    nqn = String(type="str")

    vmstate = VmState()

    def __init__(self, tree: ObjectTree) -> None:
        super().__init__(tree)
        self.allocation = Allocation()
        self.serial: str | None = None
        """The serial number that all of its controllers have."""

    @property
    def subsystem_name(self) -> str:
        """Its NVMe qualified name."""
        return f"nqn.2019-08.org.qemu:{self.nqn or self.user_id or ''}"
