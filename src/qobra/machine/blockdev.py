"""The block side of a device model: which backend it uses, what it promises its guest, what it does about errors."""

from __future__ import annotations

from functools import partial
from typing import Any

from qobra.block import permissions
from qobra.block.backend import BlockBackend
from qobra.block.error_policy import ErrorPolicy
from qobra.block.media import remove_drive
from qobra.errors import QobraError
from qobra.machine.boot_index import BootIndex
from qobra.machine.qdev import Device
from qobra.object.property import Bool, Enum, Property, Size, String
from qobra.units import signed64

_MIN_BLOCK, _MAX_BLOCK = 512, 2 << 20
ON_OFF_AUTO = ("auto", "on", "off")
ON_ERROR = ("report", "ignore", "enospc", "stop", "auto")


_MAX_SHORT = (1 << 32) - 1


class Drive(Property):
    """The backend of a device: the id of a drive, or the name of a node."""

    expected = "string"

    def __init__(self) -> None:
        super().__init__("str", None, name="drive", description="Node name or ID of a block device to use as a backend")

    def write(self, instance: Any, value: Any, *, keyval: bool = False) -> None:
        if not isinstance(value, str):
            raise self.mismatch()
        instance.take_drive(value)

    def read(self, instance: Any) -> Any:
        backend: BlockBackend | None = instance.backend
        if backend is None:
            return ""
        return backend.name or (backend.node.node_name if backend.node is not None else "")


class _BlockSize(Size):
    """A power of two between 512 bytes and 2 MiB, or 0 for the backend's own."""

    def __init__(self, name: str) -> None:
        super().__init__(0, name=name, set=self._take, description="A power of two between 512 bytes and 2 MiB")

    def _take(self, device: Device, size: int) -> None:
        what = f"Property {device.user_id or ''}.{self.name} doesn't take value"
        if size and not _MIN_BLOCK <= size <= _MAX_BLOCK:
            raise QobraError(f"{what} {signed64(size)} (minimum: {_MIN_BLOCK}, maximum: {_MAX_BLOCK})")
        if size & (size - 1):
            raise QobraError(f"{what} '{size}', it's not a power of 2")
        device.values[self.name] = size


class _ShortSize(Size):
    """A size of 32 bits."""

    def __init__(self, name: str, default: int = 0) -> None:
        super().__init__(default, name=name, set=self._take)

    def _take(self, device: Device, size: int) -> None:
        if size > _MAX_SHORT:
            raise QobraError(
                f"Property {device.type_name}.{self.name} doesn't take value {size} (maximum: {_MAX_SHORT})"
            )
        device.values[self.name] = size


class BlockFrontEnd(Device):
    """A device model that stores. ``backend`` is its way into the block layer once it is realized."""

    category = "Storage"

    drive = Drive()
    backend_defaults = Enum("OnOffAuto", ON_OFF_AUTO, "auto", name="backend_defaults")
    logical_block_size = _BlockSize("logical_block_size")
    physical_block_size = _BlockSize("physical_block_size")
    min_io_size = _ShortSize("min_io_size")
    opt_io_size = _ShortSize("opt_io_size")
    discard_granularity = _ShortSize("discard_granularity", _MAX_SHORT)
    write_cache = Enum("OnOffAuto", ON_OFF_AUTO, "auto")
    share_rw = Bool(False)
    account_invalid = Enum("OnOffAuto", ON_OFF_AUTO, "auto")
    account_failed = Enum("OnOffAuto", ON_OFF_AUTO, "auto")
    rerror = Enum("BlockdevOnError", ON_ERROR, "auto")
    werror = Enum("BlockdevOnError", ON_ERROR, "auto")
    bootindex = BootIndex()
    serial = String(type="str", description="Serial number that the guest sees")

    backend: BlockBackend | None = None
    supports_iothreads = False
    """Whether it can work in the iothread that the node is in."""
    has_io_status = True
    """Whether queries tell whether a request of it failed."""
    is_removable = False
    has_tray = False
    tray_open = False
    medium_locked = False

    @property
    def writeback(self) -> bool:
        """Whether writes may stay in a cache, which the guest can say."""
        return self.backend is None or self.backend.writeback

    @writeback.setter
    def writeback(self, value: bool) -> None:
        if self.backend is not None:
            self.backend.writeback = value

    # -- taking the backend

    def take_drive(self, name: str) -> None:
        """Use the drive ``name``, or the node of that name through a backend of the device's own.

        A device that works keeps its backend, which goes on with another node.
        """
        if self.realized and self.backend is not None:
            self.backend.insert(self.machine.block.find_node(name))
            return
        if self.backend is not None:
            self.release_drive()
        if not name:
            return
        layer = self.machine.block
        backend = layer.backends.get(name)
        if backend is not None:
            if backend.device is not None:
                board = self.machine.board
                connected = board is not None and any(
                    drive.backend is backend and drive.interface != "none" for drive in board.drives
                )
                raise QobraError(
                    f"Drive '{name}' is already in use "
                    + (
                        "because it has been automatically connected to another device "
                        "(did you need 'if=none' in the drive options?)"
                        if connected
                        else "by another device"
                    )
                )
        else:
            node = layer.graph.find(name)
            if node is None:
                raise QobraError(f"Property '{self.type_name}.drive' can't find value '{name}'")
            backend = self._own_backend()
            if not self.supports_iothreads:
                layer.set_iothread(node, None)
            backend.insert(node, 0, permissions.ALL)
        backend.attach_device(self)
        self.backend = backend

    def settable_when_realized(self, name: str) -> bool:
        return name == "drive" and self.backend is not None

    def _own_backend(self) -> BlockBackend:
        return BlockBackend(
            self.machine.block, perm=0, shared=permissions.ALL, description=f"block device '{self.qom_path}'"
        )

    def release_drive(self) -> None:
        """Let the backend go."""
        backend, self.backend = self.backend, None
        if backend is None:
            return
        backend.policy = None
        backend.detach_device()
        if backend.name:
            if backend.node is not None:
                backend.set_permissions(0, permissions.ALL)
        else:
            backend.remove()

    def realize_block(self, *, writable: bool | None = None, resizable: bool | None = None) -> BlockBackend:
        """Take the permissions and settings that the device needs; QobraError where it cannot have them.

        ``writable`` None: if the node is. ``resizable`` None: if the medium stays. A removable device without a drive
        gets an empty one, for media that are only read.
        """
        if self.backend is None:
            if not self.is_removable:
                raise QobraError("drive property not set")
            self.backend = self._own_backend()
            self.backend.medium_read_only = True
            self.backend.attach_device(self)
        backend = self.backend
        self.check_sizes()
        perm = permissions.CONSISTENT_READ
        if writable is None:
            writable = not (backend.node.read_only if backend.node is not None else backend.medium_read_only)
        if writable:
            perm |= permissions.WRITE
        shared = permissions.CONSISTENT_READ | permissions.WRITE_UNCHANGED
        if not self.is_removable if resizable is None else resizable:
            shared |= permissions.RESIZE
        if self.share_rw:
            shared |= permissions.WRITE
        backend.set_permissions(perm, shared)
        if self.write_cache != "auto":
            backend.writeback = self.write_cache == "on"
        for name in ("account_invalid", "account_failed"):
            if getattr(self, name) != "auto":
                setattr(backend.accounting, name, getattr(self, name) == "on")
        self.machine.block.stop_machine = partial(self.machine.run_state.stop, "io-error")
        backend.policy = ErrorPolicy(
            backend,
            on_read_error=backend.on_error.get("rerror", "auto") if self.rerror == "auto" else self.rerror,
            on_write_error=backend.on_error.get("werror", "auto") if self.werror == "auto" else self.werror,
        )
        backend.policy.has_status = self.has_io_status
        self.logical_size: int = self.logical_block_size or _MIN_BLOCK
        self.physical_size: int = self.physical_block_size or _MIN_BLOCK
        # What is in force can be asked for.
        self.values |= {"logical_block_size": self.logical_size, "physical_block_size": self.physical_size}
        self.granularity: int = (
            self.logical_size if self.discard_granularity == 0xFFFFFFFF else self.discard_granularity
        )
        return backend

    def check_sizes(self) -> None:
        """Raise QobraError for sizes that contradict one another."""
        logical, physical = self.logical_block_size or 512, self.physical_block_size or 512
        if logical > physical:
            raise QobraError("logical_block_size > physical_block_size not supported")
        for name, value in (("min_io_size", self.min_io_size), ("opt_io_size", self.opt_io_size)):
            if value % logical:
                raise QobraError(f"{name} must be a multiple of logical_block_size")
        if self.discard_granularity != 0xFFFFFFFF and self.discard_granularity % logical:
            raise QobraError("discard_granularity must be a multiple of logical_block_size")

    def unparent(self) -> None:
        backend = self.backend
        goes = backend is not None and backend.auto_delete and (self.realized or self._was_realized)
        super().unparent()
        self.release_drive()
        if goes and backend is not None and backend.name and not self.tree.closing:
            # A drive of the command line, unlike a node, was made for its device alone.
            remove_drive(backend)

    # -- what the block layer asks of the device that uses a backend

    @property
    def qom_path(self) -> str:
        """The id that the user gave, or the path."""
        return self.user_id or self.path()

    def matches(self, id: str) -> bool:
        """Whether ``id``, an id or a path, means this device."""
        if id == self.user_id or id == self.path():
            return True
        try:
            found: Any = self.tree.resolve(id)
        except QobraError:
            return False
        # A proxy stands for the device that it carries.
        return found is self or found.children.get("virtio-backend") is self

    def eject_request(self, force: bool) -> None:
        """Ask the guest to let go of the medium."""

    def move_tray(self, opened: bool) -> None:
        """Open or close the tray for the user."""

    def medium_changed(self) -> None:
        """There is another medium, or none."""


class PlainFrontEnd(BlockFrontEnd):
    """A device model with a backend, of which nothing else can be set."""

    backend_defaults: Any = "auto"
    logical_block_size: Any = 0
    physical_block_size: Any = 0
    min_io_size: Any = 0
    opt_io_size: Any = 0
    discard_granularity: Any = 0xFFFFFFFF
    write_cache: Any = "auto"
    share_rw: Any = False
    account_invalid: Any = "auto"
    account_failed: Any = "auto"
    rerror: Any = "auto"
    werror: Any = "auto"
    bootindex: Any = None
    serial: Any = None
