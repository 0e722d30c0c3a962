"""virtio-mem: memory that grows and shrinks in blocks, as host and guest agree (virtio 1.2, section 5.15)."""

from __future__ import annotations

from struct import Struct
from typing import Any

from qobra.errors import QobraError
from qobra.machine.devices import registry
from qobra.machine.virtio.device import VirtioDevice
from qobra.machine.virtio.memory_device import VirtioMemoryDevice, VirtioMemoryPci
from qobra.machine.virtio.queue import Buffer, Queue, VirtioError
from qobra.machine.vmstate import Field, Number, VmState, raw, u64
from qobra.object.property import Bool, Enum, Int, Size
from qobra.report import report_warning

F_ACPI_PXM, F_UNPLUGGED_INACCESSIBLE = 0, 1
_PLUG, _UNPLUG, _UNPLUG_ALL, _STATE = range(4)
_ACK, _NACK, _BUSY, _ERROR = range(4)
_PLUGGED, _UNPLUGGED, _MIXED = range(3)
_CONFIG = Struct("<QH6xQQQQQ")
_REQUEST = Struct("<H6xQH6x")
_RESPONSE = Struct("<H6xH")
_MIN_BLOCK, _DEFAULT_BLOCK = 1 << 20, 2 << 20
_EXTRA = 256 << 20
"""How much more than requested the guest may see, so that it finds room for what it keeps in large pieces."""


@registry.register("virtio-mem")
class VirtioMem(VirtioMemoryDevice):
    """Blocks of its backend that the guest plugs and unplugs until their size is the requested one."""

    type_name = "virtio-mem"
    interfaces = ("qemu:ram-discard-manager",)
    category = "Misc"
    device_number = 24
    config_size = _CONFIG.size
    memory_kind = "virtio-mem"

    node = Int(0, type="uint32")
    prealloc = Bool(False)
    unplugged_inaccessible = Enum("OnOffAuto", ("auto", "on", "off"), "auto")
    size = Size(
        0,
        get=lambda self: self.plugged_size,
        set=lambda self, _value: self.refuse_size(),
        show_default=False,
    )
    requested_size = Size(0, set=lambda self, value: self.request(value), show_default=False)
    block_size = Size(
        _DEFAULT_BLOCK,
        guard=lambda self: self.keep_block_size(),
        set=lambda self, value: self.set_block_size(value),
        show_default=False,
    )

    _size = 0

    vmstate = VmState(
        u64("_size", "_usable"),
        raw("_blocks"),
        Field("requested_size", Number(8)),
    )

    # -- life

    @property
    def memory_alignment(self) -> int:
        return max(int(self.block_size), super().memory_alignment)

    def realize(self) -> None:
        self.check_backend("'memdev' property specifies a busy memdev: ")
        nodes = max(1, len(self.board.numa.nodes))
        if self.node >= nodes:
            raise QobraError(f"'node' property has value '{self.node}', which exceedsthe number of numa nodes: {nodes}")
        block, length = self.block_size, self.memory_length
        if self.requested_size % block:
            raise QobraError(f"'requested-size' property has to be multiples of 'block-size' (0x{block:x})")
        self.claim_memory()
        self._blocks = bytearray(length // block)
        self._usable = 0
        self._resize_usable(may_shrink=True)
        self._unplug_all()
        self.add_queue(128)

    def device_reset(self) -> None:
        """The device's memory outlives a reset of the device; a reset of the system unplugs it."""

    def system_reset(self) -> None:
        """The guest starts anew, with none of the memory."""
        self._unplug_all()

    def settable_when_realized(self, name: str) -> bool:
        return name in ("requested-size", "size", "block-size")

    def refuse_size(self) -> None:
        """The size is what the guest makes it."""
        raise QobraError(f"Property '{self.type_name}.size' is not writable")

    def keep_block_size(self) -> None:
        """Raises QobraError once the device works."""
        if self.realized:
            raise QobraError("'block-size' cannot be changed")

    def set_block_size(self, size: int) -> None:
        """How large the blocks are. Raises QobraError."""
        if size < _MIN_BLOCK:
            raise QobraError(f"'block-size' property has to be at least 0x{_MIN_BLOCK:x}")
        if size & (size - 1):
            raise QobraError("'block-size' property has to be a power of two")
        if size < _DEFAULT_BLOCK:
            report_warning("'block-size' property is smaller than the default block size (2 MiB)")
        self.values["block-size"] = size

    def request(self, size: int) -> None:
        """Ask the guest to plug or unplug blocks until it has ``size`` bytes. Raises QobraError."""
        if not self.realized:
            self.values["requested-size"] = size
            return
        if size % self.block_size:
            raise QobraError(f"'requested-size' has to be multiples of 'block-size' (0x{self.block_size:x})")
        if size > self.memory_length:
            raise QobraError(f"'requested-size' cannot exceed the memory backend size(0x{self.memory_length:x})")
        if size != self.requested_size:
            self.values["requested-size"] = size
            self._resize_usable(may_shrink=False)
            self.notify_config()

    def _resize_usable(self, *, may_shrink: bool) -> None:
        wanted = min(self.memory_length, self.requested_size + _EXTRA)
        wanted -= wanted % self.block_size
        if may_shrink or wanted > self._usable:
            self._usable = wanted

    # -- features and configuration

    @property
    def _inaccessible(self) -> bool:
        # Guests of old look at memory that is not plugged. That is harmless where reading it takes none.
        if self.unplugged_inaccessible == "auto":
            return bool(self.memdev.share) or self.ram.fd >= 0
        return bool(self.unplugged_inaccessible == "on")

    def device_features(self) -> int:
        features = 1 << F_ACPI_PXM if getattr(self.board, "acpi", "off") != "off" else 0
        return features | (1 << F_UNPLUGGED_INACCESSIBLE if self._inaccessible else 0)

    def validate_features(self) -> bool:
        return not self._inaccessible or self.has(F_UNPLUGGED_INACCESSIBLE)

    def read_config(self) -> bytes:
        return _CONFIG.pack(
            self.block_size,
            self.node,
            self.memory_address,
            self.memory_length,
            self._usable,
            self._size,
            self.requested_size,
        )

    # -- requests

    def kicked(self, queue: Queue) -> None:
        for buffer in self.buffers(queue):
            try:
                answer = self._serve(buffer)
            except VirtioError as error:
                self.fail(error)
                return
            self.push(queue, buffer, buffer.scatter(answer))
        self.notify(queue)

    def _serve(self, buffer: Buffer) -> bytes:
        request = buffer.gather(_REQUEST.size)
        if len(request) < _REQUEST.size:
            raise VirtioError("virtio-mem protocol violation: invalid request size")
        if buffer.writable_length < _RESPONSE.size:
            raise VirtioError("virtio-mem protocol violation: not enough space for the response")
        kind, address, count = _REQUEST.unpack(request)
        if kind == _PLUG:
            return _RESPONSE.pack(self._change(address, count, plug=True), 0)
        if kind == _UNPLUG:
            return _RESPONSE.pack(self._change(address, count, plug=False), 0)
        if kind == _UNPLUG_ALL:
            self._unplug_all()
            return _RESPONSE.pack(_ACK, 0)
        if kind == _STATE:
            blocks = self._range(address, count)
            if blocks is None:
                return _RESPONSE.pack(_ERROR, 0)
            found = self._blocks[blocks]
            state = _MIXED if 0 in found and 1 in found else _PLUGGED if 1 in found else _UNPLUGGED
            return _RESPONSE.pack(_ACK, state)
        raise VirtioError(f"virtio-mem protocol violation: unknown request type: {kind}")

    def _range(self, address: int, count: int) -> slice | None:
        """The blocks that a request names, if it may."""
        offset, length = address - self.memory_address, count * self.block_size
        if not count or offset < 0 or offset % self.block_size or offset + length > self._usable:
            return None
        first = offset // self.block_size
        return slice(first, first + count)

    def _change(self, address: int, count: int, *, plug: bool) -> int:
        blocks = self._range(address, count)
        if blocks is None or self._blocks[blocks] != bytes((not plug,)) * count:
            return _ERROR
        length = count * self.block_size
        if plug:
            if self._size + length > self.requested_size:
                return _NACK
        else:
            self.ram.discard(address - self.memory_address, length)
        self._blocks[blocks] = bytes((plug,)) * count
        self._set_size(self._size + (length if plug else -length))
        return _ACK

    def _unplug_all(self) -> None:
        if self._size:
            self.ram.discard(0, self.memory_length)
            self._blocks[:] = bytes(len(self._blocks))
            self._set_size(0)
        self._resize_usable(may_shrink=True)

    def _set_size(self, size: int) -> None:
        self._size = size
        data = {"size": size, "qom-path": self.owner_device.path()}
        if self.memory_id is not None:
            data["id"] = self.memory_id
        self.machine.events.emit("MEMORY_DEVICE_SIZE_CHANGE", data)

    # -- queries

    @property
    def plugged_size(self) -> int:
        return self._size

    def info(self) -> dict[str, Any]:
        """VirtioMEMDeviceInfo of the reference."""
        return super().info() | {
            "node": self.node,
            "requested-size": self.requested_size,
            "max-size": self.memory_length,
            "block-size": self.block_size,
        }


@registry.register("virtio-mem-pci")
class VirtioMemPci(VirtioMemoryPci):
    """virtio-mem as a PCI function."""

    type_name = "virtio-mem-pci"
    ancestors = {"virtio-mem-pci-base": ("memory-device",)}
    backend_type = "virtio-mem"
    device_id = 0x1058

    vmstate = VmState()

    def reset(self) -> None:
        super().reset()
        device: VirtioDevice = self.device
        assert isinstance(device, VirtioMem)
        device.system_reset()
