"""``nvdimm``: a memory module whose contents last, with an area for labels at its end."""

from __future__ import annotations

from typing import Any

from qobra.errors import QobraError
from qobra.machine.device.pc_dimm import PcDimm
from qobra.machine.devices import registry
from qobra.machine.memory_backend import MemoryBackend
from qobra.machine.vmstate import VmState
from qobra.object.property import Bool, Int, Property

MIN_LABEL_SIZE = 128 << 10
_NO_UUID = "00000000-0000-0000-0000-000000000000"


class _Uuid(Property):
    def check(self, value: Any) -> str:
        if not isinstance(value, str):
            raise self.mismatch("string")
        plain = value.replace("-", "").lower()
        if len(value) != 36 or len(plain) != 32 or any(c not in "0123456789abcdef" for c in plain):
            raise QobraError(f"Property 'nvdimm.{self.name}' has invalid value")
        return value.lower()


@registry.register("nvdimm")
class Nvdimm(PcDimm):
    """A module that the guest finds by the NFIT, and whose labels it reaches by a device-specific method."""

    type_name = "nvdimm"
    category = "Storage"
    description = "DIMM memory module"
    memory_kind = "nvdimm"

    label_size = Int(0, set=lambda self, value: self.set_label_size(value), show_default=False)
    uuid = _Uuid("QemuUUID", _NO_UUID, show_default=False)
    unarmed = Bool(False)

    vmstate = VmState()

    @property
    def memory_length(self) -> int:
        # What the guest sees begins and ends at multiples of the alignment; the labels are not part of it.
        length: int = super().memory_length - self.label_size
        return max(0, length - length % self.memory_alignment)

    @property
    def labels(self) -> memoryview:
        """The area for labels."""
        ram = self._backend.ram
        assert ram is not None
        return ram.piece(ram.size - self.label_size, self.label_size)

    @property
    def handle(self) -> int:
        """The NFIT device handle."""
        slot: int = self.slot
        return slot + 1

    def set_label_size(self, size: int) -> None:
        """How much of the end is for labels. Raises QobraError."""
        if size < MIN_LABEL_SIZE:
            raise QobraError(
                f"Property 'nvdimm.label-size' (0x{size & (1 << 64) - 1:x}) is required at least 0x{MIN_LABEL_SIZE:x}"
            )
        self.values["label-size"] = size

    def realize(self) -> None:
        if not getattr(self.board, "nvdimm", False):
            raise QobraError("nvdimm is not enabled: missing 'nvdimm' in '-M'")
        backend: MemoryBackend | None = self.memdev
        if backend is not None and not self.memory_length:
            raise QobraError(
                f"the size of memdev {backend.id} (0x{backend.size:x}) is too small to contain nvdimm label "
                f"(0x{self.label_size:x}) and aligned PMEM (0x{self.memory_alignment:x})"
            )
        super().realize()

    def announce(self) -> None:
        board: Any = self.board
        board.nvdimm_interface.plugged()

    def request_removal(self) -> None:
        raise QobraError("nvdimm device hot unplug is not supported yet.")
