"""``vmcoreinfo``: the guest's kernel says where its note for crash dumps lies, which dumps then carry."""

from __future__ import annotations

from struct import Struct
from typing import Any

from qobra.errors import QobraError
from qobra.machine.board import find_devices
from qobra.machine.devices import registry
from qobra.machine.fw_cfg import FwCfg
from qobra.machine.qdev import Device
from qobra.machine.vmstate import VmState, raw

_FILE = "etc/vmcoreinfo"
_PLACE = Struct("<HHIQ")
"""The format that the host takes, the one that the guest gives, the note's length and its physical address."""

_ELF = 1
_AT_RESET = _PLACE.pack(_ELF, 0, 0, 0)
_MAX_NOTE = 1 << 20
_NOTE = Struct("<III")
_OWNER = b"VMCOREINFO"


@registry.register("vmcoreinfo")
class VmCoreInfo(Device):
    """A file of fw_cfg that the guest writes."""

    type_name = "vmcoreinfo"
    hotpluggable_class = False

    vmstate = VmState(raw("_place"))

    def realize(self) -> None:
        board: Any = self.board
        firmware: FwCfg | None = board.fw_cfg
        if firmware is None or not firmware.dma_enabled:
            raise QobraError("vmcoreinfo device requires fw_cfg with DMA")
        if any(True for _device in find_devices(board, self.type_name)):
            raise QobraError("at most one vmcoreinfo device is permitted")
        self._place = bytearray(_AT_RESET)
        firmware.add_file(_FILE, _AT_RESET, on_write=self._written)

    def reset(self) -> None:
        self._place[:] = _AT_RESET

    def _written(self, offset: int, data: bytes) -> None:
        self._place[offset : offset + len(data)] = data

    def note(self) -> bytes:
        """The guest's note as it lies in memory; empty where there is none, or what is there is none."""
        _host, form, length, address = _PLACE.unpack(self._place)
        if form != _ELF or not _NOTE.size <= length <= _MAX_NOTE:
            return b""
        found: bytes = self.board.memory.read(address, length)
        name_length, body_length, _kind = _NOTE.unpack_from(found)
        name_end = _NOTE.size + name_length
        whole = _NOTE.size + _padded(name_length) + _padded(body_length)
        if whole > length or found[_NOTE.size : name_end].rstrip(b"\0") != _OWNER:
            return b""
        return found[:whole]


def _padded(length: int) -> int:
    return (length + 3) & ~3
