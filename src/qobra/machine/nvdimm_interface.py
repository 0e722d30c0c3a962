"""How the guest's ACPI code reaches NVDIMMs: their table, and the methods on their labels.

The code puts a request into a page of memory and writes the page's address to a port; the answer is in the page then.
Formats: NFIT in ACPI 6.4, section 5.2.25; the methods in Intel's "NVDIMM DSM Interface" 1.6 (functions 4, 5, 6); the
page and the root's method "read FIT" are QEMU's (docs/specs/acpi_nvdimm).
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import TYPE_CHECKING, Any
from uuid import UUID

from qobra.machine.device.nvdimm import Nvdimm
from qobra.machine.dma import GuestMemory
from qobra.machine.memory import Registers
from qobra.machine.vmstate import VmState, flag

if TYPE_CHECKING:
    from qobra.machine.board import Board
    from qobra.machine.memory_slots import MemorySlots

PORT = 0x0A18
GPE_BIT = 4
_PAGE = 4096
_REQUEST = Struct("<III")
_RANGE = Struct("<II")
_ROOT, _FIT_READER = 0, 0x10000
_SUCCESS, _UNSUPPORTED, _NO_DEVICE, _INVALID, _FIT_CHANGED = 0, 1, 2, 3, 0x100
_LABEL_SIZE, _GET_LABELS, _SET_LABELS = 4, 5, 6
_FIT_CHUNK = _PAGE - 8
_LABEL_CHUNK = _PAGE - _REQUEST.size - _RANGE.size

_SPA_RANGE = Struct("<HHHHII16sQQQ")
_MEMORY_MAP = Struct("<HHIHHHHQQQHHHH")
_CONTROL_REGION = Struct("<HHHHHHHHHBBHHIHHQQQQQH6x")
_PLATFORM = Struct("<HHB3xII")
_PROMISES = {"cpu": 0b11, "mem-ctrl": 0b10}
"""Whether caches of CPUs, and whether those of memory controllers, are written back when power fails."""
_PERSISTENT_MEMORY = UUID("66f0d379-b4f3-4074-ac43-0d3318b78cdb").bytes_le
_HOT_PLUGGED, _HAS_DOMAIN, _CACHED, _WRITE_BACK, _NON_VOLATILE = 1, 2, 8, 0, 0x8000
_NOT_ARMED = 1 << 3
_VENDOR, _PRODUCT, _REVISION, _FORMAT = 0x8086, 1, 1, 0x0301


class NvdimmInterface:
    """The port and what is behind it. ``notify`` raises the general-purpose event."""

    vmstate = VmState(flag("_fit_changed"))

    def __init__(self, board: Board, slots: MemorySlots, notify: Callable[[], None]) -> None:
        self._board: Any = board
        self._memory = GuestMemory(board.memory)
        self._slots = slots
        self._notify = notify
        self._fit_changed = False
        self.registers = Registers("nvdimm-acpi-io", 4, lambda _o, _w: 0, self._write, valid=(4, 4), impl=(4, 4))

    def plugged(self) -> None:
        """A module has come: the guest shall read the table again."""
        self._fit_changed = True
        self._notify()

    def fit(self) -> bytes:
        """The structures of the NFIT: three for each module, and what the platform promises, if the user said so."""
        promise = self._board.nvdimm_persistence
        platform = _PLATFORM.pack(7, _PLATFORM.size, 1, _PROMISES[promise], 0) if promise else b""
        return b"".join(_structures(module) for module in self._modules()) + platform

    def _modules(self) -> list[Nvdimm]:
        return [module for _slot, module in sorted(self._slots.dimms.items()) if isinstance(module, Nvdimm)]

    def _write(self, _offset: int, _width: int, address: int) -> None:
        request = self._memory.read(address, _PAGE)
        handle, _revision, function = _REQUEST.unpack_from(request)
        answer = self._answer(handle, function, request[_REQUEST.size :])
        self._memory.write(address, (len(answer) + 4).to_bytes(4, "little") + answer)

    def _answer(self, handle: int, function: int, argument: bytes) -> bytes:
        if handle == _FIT_READER:
            return self._read_fit(function, argument)
        module = next((each for each in self._modules() if each.handle == handle), None)
        if function == 0:
            labels = module is not None and module.label_size > 0
            return _number(0x71 if labels else 0)
        if module is None:
            return _number(_UNSUPPORTED if handle == _ROOT else _NO_DEVICE)
        return _label_function(module, function, argument)

    def _read_fit(self, function: int, argument: bytes) -> bytes:
        if function != 1:
            return _number(3 if function == 0 else _UNSUPPORTED)
        offset = int.from_bytes(argument[:4], "little")
        fit = self.fit()
        if offset == 0:
            self._fit_changed = False
        elif self._fit_changed:
            return _number(_FIT_CHANGED)
        if offset > len(fit):
            return _number(_INVALID)
        return _number(_SUCCESS) + fit[offset : offset + _FIT_CHUNK]


def _number(value: int) -> bytes:
    return value.to_bytes(4, "little")


def _label_function(module: Nvdimm, function: int, argument: bytes) -> bytes:
    if not module.label_size:
        return _number(_UNSUPPORTED)
    if function == _LABEL_SIZE:
        return _number(_SUCCESS) + _number(module.label_size) + _number(min(_LABEL_CHUNK, module.label_size))
    offset, length = _RANGE.unpack_from(argument)
    if function not in (_GET_LABELS, _SET_LABELS):
        return _number(_UNSUPPORTED)
    if length > _LABEL_CHUNK or offset + length > module.label_size:
        return _number(_INVALID)
    labels = module.labels[offset : offset + length]
    if function == _GET_LABELS:
        return _number(_SUCCESS) + bytes(labels)
    labels[:] = argument[_RANGE.size : _RANGE.size + length]
    return _number(_SUCCESS)


def _structures(module: Nvdimm) -> bytes:
    """Where a module is, which module it is, and how it is reached."""
    slot, handle = module.slot, module.handle
    spa_index, region_index = (slot + 1) * 2, (slot + 1) * 2 + 1
    spa = _SPA_RANGE.pack(
        0, _SPA_RANGE.size, spa_index, _HOT_PLUGGED | _HAS_DOMAIN, 0, module.node, _PERSISTENT_MEMORY,
        module.addr, module.memory_length, _CACHED | _NON_VOLATILE,
    )  # fmt: skip
    flags = _NOT_ARMED if module.unarmed else 0
    place = _MEMORY_MAP.pack(
        1, _MEMORY_MAP.size, handle, 0, 0, spa_index, region_index,
        module.memory_length, 0, module.addr, 0, 1, flags, 0,
    )  # fmt: skip
    serial = 0x123456 + slot
    region = _CONTROL_REGION.pack(
        4, _CONTROL_REGION.size, region_index, _VENDOR, _PRODUCT, _REVISION, 0, 0, 0, 0, 0, 0, 0, serial,
        _FORMAT, 0, 0, 0, 0, 0, 0, 0,
    )  # fmt: skip
    return spa + place + region
