"""``nvme-ns``: a namespace of an NVMe controller or of its subsystem (NVM Express 1.4, 6.1)."""

from __future__ import annotations

import os
from typing import Any

from qobra.errors import QobraError
from qobra.machine.blockdev import BlockFrontEnd
from qobra.machine.board import find_devices
from qobra.machine.devices import registry
from qobra.machine.nvme.namespace import Namespace
from qobra.machine.qdev import Bus
from qobra.machine.vmstate import VmState, flag
from qobra.object.property import Bool, Int, Property

_EUI64_BASE = 0x5254000000000000
"""What the identifiers begin with that are made up, from a range for private use."""


class NvmeBus(Bus):
    """Where the namespaces of a controller are. ``controller`` is the device ``nvme``."""

    type_name = "nvme-bus"
    controller: Any

    @property
    def allocation(self) -> Any:
        """Where numbers are given out."""
        return self.controller.allocation


class _Uuid(Property):
    """A UUID, ``auto`` for a random one, or none."""

    expected = "string"

    def write(self, instance: Any, value: Any, *, keyval: bool = False) -> None:
        import uuid

        if not isinstance(value, str):
            raise self.mismatch()
        try:
            made = uuid.UUID(bytes=os.urandom(16), version=4) if value == "auto" else uuid.UUID(value)
        except ValueError:
            raise QobraError(f"Property '{instance.type_name}.{self.name}' doesn't take value '{value}'")
        instance.values[self.name] = str(made)


@registry.register("nvme-ns")
class NvmeNamespace(BlockFrontEnd):
    """The drive as a namespace: of its controller alone, or ``shared`` by all of the subsystem."""

    type_name = "nvme-ns"
    bus_type = "nvme-bus"
    description = "Virtual NVMe namespace"

    nsid = Int(0, type="uint32")
    shared = Bool(True)
    detached = Bool(False)
    uuid = _Uuid("str", None, description='UUID (aka GUID) or "auto" for random value', show_default=False)
    eui64 = Int(0, type="uint64")
    eui64_default = Bool(False)
    # Errors always go to the guest; the controller has the serial number.
    rerror: Any = "report"
    werror: Any = "report"
    serial: Any = None

    vmstate = VmState(flag("writeback"))

    def realize(self) -> None:
        bus: Any = self.bus
        controller = bus.controller
        if self.backend is None:
            raise QobraError("block backend not configured")
        if controller.subsys is None and self.detached:
            raise QobraError("detached requires that the nvme device is linked to an nvme-subsys device")
        backend = self.realize_block()
        if backend.node is None:
            raise QobraError("could not get blockdev size: No medium found")
        if self.discard_granularity == 0xFFFFFFFF:
            self.granularity = self.discard_granularity = max(4096, self.logical_size)
        allocation = bus.allocation
        self.values["nsid"] = number = allocation.choose(self.nsid)
        made_before = sum(1 for _each in find_devices(self.board, self.type_name)) if self.eui64_default else 0
        eui64 = self.eui64 or (_EUI64_BASE + made_before if self.eui64_default else 0)
        self.namespace = Namespace(
            self,
            number,
            shared=self.shared and controller.subsys is not None,
            attached_at_first=not self.detached,
            uuid=bytes.fromhex(self.uuid.replace("-", "")) if self.uuid else b"",
            eui64=eui64,
        )
        allocation.namespaces[number] = self.namespace
        backend.resized.append(self._resized)
        if not self.detached:
            sharers = allocation.controllers.values() if self.namespace.shared else (controller,)
            for each in sharers:
                each.controller.attach(self.namespace)

    def unrealize(self) -> None:
        bus: Any = self.bus
        backend = self.backend
        if backend is not None and self._resized in backend.resized:
            backend.resized.remove(self._resized)
        for each in bus.allocation.controllers.values():
            each.controller.forget(self.namespace.number)
        bus.allocation.namespaces.pop(self.namespace.number, None)
        super().unrealize()

    def _resized(self) -> None:
        bus: Any = self.bus
        for each in bus.allocation.controllers.values():
            self.machine.control.post(each.controller.namespace_resized, self.namespace.number)
