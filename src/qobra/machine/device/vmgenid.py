"""``vmgenid``: an identity of the running machine, which changes when it is one of several copies."""

from __future__ import annotations

import os
from typing import Any

from qobra.errors import QobraError
from qobra.machine.board import find_devices
from qobra.machine.devices import registry
from qobra.machine.fw_cfg import FwCfg
from qobra.machine.qdev import Device
from qobra.machine.vmstate import VmState, raw
from qobra.object.property import Property

_GUID_FILE, _ADDRESS_FILE = "etc/vmgenid_guid", "etc/vmgenid_addr"
_FILE_SIZE, _GUID_OFFSET = 4096, 40


class _Guid(Property):
    """A UUID, or ``auto`` for a random one."""

    expected = "string"

    def write(self, instance: Any, value: Any, *, keyval: bool = False) -> None:
        if not isinstance(value, str):
            raise self.mismatch()
        if value == "auto":
            random = bytearray(os.urandom(16))
            random[6], random[8] = random[6] & 0x0F | 0x40, random[8] & 0x3F | 0x80
            text = bytes(random).hex()
        else:
            text = value.replace("-", "").lower()
            if len(value) != 36 or len(text) != 32 or any(c not in "0123456789abcdef" for c in text):
                raise QobraError(f"Property '{instance.type_name}.{self.name}' doesn't take value '{value}'")
        instance.values[self.name] = "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


@registry.register("vmgenid")
class VmGenId(Device):
    """The identity lies in guest memory, where the firmware says that it put it."""

    type_name = "vmgenid"
    category = "Misc"
    architectures = frozenset(("x86_64",))
    hotpluggable_class = False

    guid = _Guid("str", "auto", description='UUID (aka GUID) or "auto" for random value (default)', show_default=True)

    vmstate = VmState(raw("_address"))

    def realize(self) -> None:
        board: Any = self.board
        firmware: FwCfg | None = board.fw_cfg
        if firmware is None or not firmware.dma_enabled:
            raise QobraError("vmgenid requires DMA write support in fw_cfg, which this machine type does not provide")
        if any(True for _device in find_devices(board, "vmgenid")):
            raise QobraError("at most one vmgenid device is permitted")
        if self.guid == "auto":
            self.set("guid", "auto")
        self._address = bytearray(8)
        identity = bytes(_GUID_OFFSET) + self._little_endian()
        firmware.add_file(_GUID_FILE, identity.ljust(_FILE_SIZE, b"\0"))
        firmware.add_file(_ADDRESS_FILE, bytes(8), on_write=self._placed)

    def reset(self) -> None:
        self._address[:] = bytes(8)

    def _little_endian(self) -> bytes:
        # As ACPI wants it: the first three groups with their bytes turned round.
        raw = bytes.fromhex(self.guid.replace("-", ""))
        return raw[3::-1] + raw[5:3:-1] + raw[7:5:-1] + raw[8:]

    def _placed(self, offset: int, data: bytes) -> None:
        self._address[offset : offset + len(data)] = data
        base = int.from_bytes(self._address, "little")
        if base:
            self.board.memory.write(base + _GUID_OFFSET, self._little_endian())
