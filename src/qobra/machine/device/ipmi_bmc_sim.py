"""``ipmi-bmc-sim``: a management controller within the machine."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from typing import Any

from qobra.errors import QobraError, strerror
from qobra.machine.devices import registry
from qobra.machine.ipmi import bmc as ipmi
from qobra.machine.ipmi.sensors import WATCHDOG_RECORD
from qobra.machine.ipmi.simulated import Simulated
from qobra.machine.ipmi.storage import Inventory, parse_records
from qobra.machine.vmstate import VmState, part
from qobra.object.property import Int, Property, String

_SUPPORT = 0x07
"""Sensors, their records, an event log."""
_MAX_FILE = 0xFFFF


class _Guid(Property):
    """A UUID, or ``auto`` for a random one."""

    expected = "string"

    def write(self, instance: Any, value: Any, *, keyval: bool = False) -> None:
        if not isinstance(value, str):
            raise self.mismatch()
        try:
            found = uuid.uuid4() if value == "auto" else uuid.UUID(value)
        except ValueError:
            raise QobraError(f"Property '{instance.type_name}.{self.name}' doesn't take value '{value}'")
        instance.values[self.name] = str(found)

    def show(self, value: Any) -> Any:
        return value or "00000000-0000-0000-0000-000000000000"


@registry.register("ipmi-bmc-sim")
class IpmiBmcSim(ipmi.Bmc):
    """It knows the commands about itself, the chassis, events, sensors, inventory and its watchdog."""

    type_name = "ipmi-bmc-sim"

    fruareasize = Int(1024, type="uint16")
    frudatafile = String(type="str")
    sdrfile = String(type="str")
    device_id = Int(0x20, type="uint8", name="device_id")
    ipmi_version = Int(0x02, type="uint8", name="ipmi_version")
    device_rev = Int(0, type="uint8", name="device_rev")
    fwrev1 = Int(0, type="uint8")
    fwrev2 = Int(0, type="uint8")
    mfg_id = Int(0, type="uint32", name="mfg_id")
    product_id = Int(0, type="uint16", name="product_id")
    guid = _Guid("str", None, description='UUID (aka GUID) or "auto" for random value (default)')

    vmstate = VmState(part("_controller"))

    def realize(self) -> None:
        content = _file(self.frudatafile)
        inventory = Inventory(max(self.fruareasize, len(content)), content)
        identity = bytes((self.device_id, self.device_rev, self.fwrev1, self.fwrev2, self.ipmi_version, _SUPPORT))
        identity += (self.mfg_id & 0xFFFFFF).to_bytes(3, "little") + self.product_id.to_bytes(2, "little")
        guid = uuid.UUID(self.guid).bytes_le if self.guid is not None else None
        self._controller = Simulated(
            self.machine,
            self.board.clock,
            self,
            identity=identity,
            guid=guid,
            records=self._records(),
            inventory=inventory,
        )

    def _records(self) -> list[bytes]:
        if not self.sdrfile:
            return [WATCHDOG_RECORD]
        try:
            return parse_records(_file(self.sdrfile))
        except ValueError as error:
            raise QobraError(f"sdrfile '{self.sdrfile}': {error}")

    def unrealize(self) -> None:
        self._controller.close()

    def handle(self, request: bytes, respond: Callable[[bytes], None]) -> None:
        respond(self._controller.answer(request))


def _file(path: str | None) -> bytes:
    if not path:
        return b""
    try:
        if os.stat(path).st_size > _MAX_FILE:
            raise QobraError(f"'{path}' has more than {_MAX_FILE} bytes")
        with open(path, "rb") as stream:
            return stream.read(_MAX_FILE)
    except OSError as error:
        raise QobraError(f"Could not open '{path}': {strerror(error)}", errno=error.errno)
