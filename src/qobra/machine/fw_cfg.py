"""QEMU's firmware configuration: named blobs that firmware and kernels read (docs/specs/fw_cfg of QEMU)."""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Any

from qobra.errors import QobraError
from qobra.machine.memory import Mapping
from qobra.machine.qdev import SysBusDevice
from qobra.machine.vmstate import MAX_BYTES, Field, Listed, Raw, VmState, u16, u32, u64
from qobra.object.property import Bool
from qobra.report import report_error

SIGNATURE, ID, UUID, RAM_SIZE, NOGRAPHIC, NB_CPUS, MACHINE_ID = 0, 1, 2, 3, 4, 5, 6
KERNEL_ADDR, KERNEL_SIZE, INITRD_ADDR, INITRD_SIZE = 0x7, 0x8, 0xA, 0xB
BOOT_DEVICE, NUMA, BOOT_MENU, MAX_CPUS = 0xC, 0xD, 0xE, 0xF
KERNEL_ENTRY = 0x10
KERNEL_DATA, INITRD_DATA, CMDLINE_ADDR, CMDLINE_SIZE, CMDLINE_DATA = 0x11, 0x12, 0x13, 0x14, 0x15
SETUP_ADDR, SETUP_SIZE, SETUP_DATA = 0x16, 0x17, 0x18
FILE_DIR, FILE_FIRST = 0x19, 0x20
IRQ0_OVERRIDE, HPET = 0x8002, 0x8004

_FILE_SLOTS = 0x20
_NAME_LENGTH = 56
_FILE_ENTRY = Struct(">IHH56s")
_DMA_REQUEST = Struct(">IIQ")
_DMA_ERROR, _DMA_READ, _DMA_SKIP, _DMA_SELECT, _DMA_WRITE = 1, 2, 4, 8, 16
_DMA_SIGNATURE = 0x51454D5520434647  # "QEMU CFG"
_WRITABLE_MASK = 0x4000
_MAX_SPLASH = 16 << 20
_INVALID = 0xFFFF


class FwCfg(SysBusDevice):
    """The selector, the data and the DMA register; boards map them in ports or in memory."""

    type_name = "fw_cfg"
    abstract = True

    dma_enabled = Bool(True, name="dma_enabled")

    vmstate = VmState(
        u16("_selected"),
        u32("_offset"),
        u64("_dma_address"),
        Field("written", Listed(Raw(MAX_BYTES))),
    )

    def realize(self) -> None:
        self._items: dict[int, bytes] = {}
        self._files: dict[str, bytes] = {}
        self._writers: dict[str, Callable[[int, bytes], None]] = {}
        self._directory: list[str] = []
        self._late: Callable[[], dict[str, bytes]] | None = None
        self._late_made = False
        self._mappings: list[Mapping] = []
        self._selected, self._offset, self._dma_address = _INVALID, 0, 0
        self.set_item(SIGNATURE, b"QEMU")
        self.set_number(ID, 3 if self.dma_enabled else 1, 4)
        uuid = self.machine.uuid
        self.set_item(UUID, uuid.bytes if uuid is not None else bytes(16))
        board: Any = self.board
        self.set_number(NOGRAPHIC, int(not board.graphics), 2)
        self.set_number(BOOT_MENU, 0, 2)

    def unrealize(self) -> None:
        for mapping in self._mappings:
            mapping.remove()

    def reset(self) -> None:
        self._select(0)
        self._late_made = False

    # -- what boards put in

    def set_item(self, key: int, data: bytes) -> None:
        """The blob behind a fixed key."""
        self._items[key] = data

    def set_number(self, key: int, value: int, width: int) -> None:
        """A little-endian number behind a fixed key."""
        self._items[key] = value.to_bytes(width, "little")

    def add_file(self, name: str, data: bytes, *, on_write: Callable[[int, bytes], None] | None = None) -> None:
        """A named blob; ``on_write`` makes it writable by DMA. Raises QobraError for a name that cannot be."""
        if len(name.encode()) >= _NAME_LENGTH:
            raise QobraError(f"name too long (max. {_NAME_LENGTH - 1} char)")
        if name not in self._files and len(self._files) >= _FILE_SLOTS:
            raise QobraError("too many firmware configuration files")
        self._files[name] = data
        if on_write is not None:
            self._writers[name] = on_write
        self._lay_out()

    def add_users_files(self, files: list[tuple[str, bytes]]) -> None:
        """The user's own blobs, none of which takes the place of another. Raises QobraError."""
        for name, data in files:
            if name in self._files:
                raise QobraError(f"duplicate fw_cfg file name: {name}")
            self.add_file(name, data)

    def add_late_files(self, make: Callable[[], dict[str, bytes]]) -> None:
        """Files that are made when the guest first looks for files after a reset."""
        self._late = make

    def _make_late(self) -> None:
        if self._late is not None and not self._late_made:
            self._late_made = True
            for name, data in self._late().items():
                self.add_file(name, data)

    def file(self, name: str) -> bytes | None:
        """The blob of that name."""
        self._make_late()
        return self._files.get(name)

    def _lay_out(self) -> None:
        self._directory = sorted(self._files)
        entries = [
            _FILE_ENTRY.pack(len(self._files[name]), FILE_FIRST + i, 0, name.encode())
            for i, name in enumerate(self._directory)
        ]
        self._items[FILE_DIR] = len(entries).to_bytes(4, "big") + b"".join(entries)

    # -- access

    def _map(self, mapping: Mapping) -> None:
        self._mappings.append(mapping)

    def _data(self) -> bytes:
        key = self._selected & ~_WRITABLE_MASK
        if key >= FILE_DIR:
            self._make_late()
        index = key - FILE_FIRST
        if 0 <= index < len(self._directory):
            return self._files[self._directory[index]]
        return self._items.get(key, b"")

    def _select(self, key: int) -> None:
        self._selected, self._offset = key & 0xFFFF, 0

    def read_data(self, _offset: int, width: int) -> int:
        """The next bytes of the selected blob, most significant first; zeroes beyond its end."""
        data = self._data()[self._offset : self._offset + width]
        self._offset += len(data)
        return int.from_bytes(data.ljust(width, b"\0"), "big")

    def write_selector(self, _offset: int, _width: int, value: int) -> None:
        """Choose a blob, from its start."""
        self._select(value)

    def read_dma(self, offset: int, width: int) -> int:
        """The signature, by which drivers know that there is DMA."""
        return _DMA_SIGNATURE >> 8 * (8 - offset - width) & ((1 << 8 * width) - 1)

    def write_dma(self, offset: int, width: int, value: int) -> None:
        """The address of a request, in one piece or high half first; the low half starts it."""
        if width == 8:
            self._dma_address = value
        elif width == 4 and offset == 0:
            self._dma_address = value << 32
            return
        elif width == 4 and offset == 4:
            self._dma_address |= value
        else:
            return
        address, self._dma_address = self._dma_address, 0
        self._transfer(address)

    def _transfer(self, address: int) -> None:
        memory = self.board.memory
        control, length, target = _DMA_REQUEST.unpack(memory.read(address, _DMA_REQUEST.size))
        if control & _DMA_SELECT:
            self._select(control >> 16)
        status = 0
        if control & _DMA_READ:
            status = self._dma_read(target, length)
        elif control & _DMA_WRITE:
            status = self._dma_write(target, length)
        elif control & _DMA_SKIP:
            self._offset = min(self._offset + length, len(self._data()))
        memory.write(address, status.to_bytes(4, "big"))

    def _dma_read(self, target: int, length: int) -> int:
        memory = self.board.memory
        data = self._data()[self._offset : self._offset + length]
        self._offset += len(data)
        memory.write(target, data)
        # The rest is zeroes, as far as there is memory for it.
        missing = length - len(data)
        if missing > 0:
            rest = memory.ram(target + len(data), missing, writable=True)
            if rest is None:
                return _DMA_ERROR
            rest[:] = bytes(missing)
        return 0

    def _dma_write(self, target: int, length: int) -> int:
        index = (self._selected & ~_WRITABLE_MASK) - FILE_FIRST
        name = self._directory[index] if 0 <= index < len(self._directory) else ""
        writer, data = self._writers.get(name), self._data()
        if writer is None or self._offset + length > len(data):
            return _DMA_ERROR
        written = self.board.memory.read(target, length)
        self._files[name] = data[: self._offset] + written + data[self._offset + length :]
        writer(self._offset, written)
        self._offset += length
        return 0

    @property
    def written(self) -> list[bytes]:
        """The blobs that the guest may write, in the order of their names."""
        return [self._files[name] for name in sorted(self._writers)]

    @written.setter
    def written(self, blobs: list[bytes]) -> None:
        for name, blob in zip(sorted(self._writers), blobs, strict=True):
            if len(blob) != len(self._files[name]):
                raise QobraError(f"length mismatch: {name}: {len(blob)} != {len(self._files[name])}")
            self._files[name] = blob


def add_boot_options(device: FwCfg, boot: dict[str, Any]) -> None:
    """What ``-boot`` says of the firmware's menu and waiting. Raises QobraError for what cannot be."""
    if "splash" in boot:
        try:
            device.add_file(*_splash(boot["splash"]))
        except QobraError as error:
            report_error(error)  # a picture is nothing that a machine cannot do without
    device.set_number(BOOT_MENU, int(boot.get("menu", False)), 2)
    if "splash-time" in boot:
        if not 0 <= boot["splash-time"] <= 0xFFFF:
            raise QobraError("splash-time is invalid,it should be a value between 0 and 65535")
        device.add_file("etc/boot-menu-wait", boot["splash-time"].to_bytes(2, "little"))
    timeout = boot.get("reboot-timeout", -1)
    if not -1 <= timeout <= 0xFFFF:
        raise QobraError("reboot timeout is invalid,it should be a value between -1 and 65535")
    device.add_file("etc/boot-fail-wait", (timeout & 0xFFFFFFFF).to_bytes(4, "little"))


def _splash(path: str) -> tuple[str, bytes]:
    try:
        with open(path, "rb") as stream:
            data = stream.read(_MAX_SPLASH)
    except OSError:
        raise QobraError(f"failed to find file '{path}'")
    if data[:2] == b"\xff\xd8":
        return "bootsplash.jpg", data
    if data[:2] == b"BM" and data[28:30] == b"\x18\0":  # 24 bits a pixel
        return "bootsplash.bmp", data
    raise QobraError(f"splash file '{path}' format not recognized; must be JPEG or 24 bit BMP")
