"""The tables of SMBIOS (System Management BIOS reference specification 2.8 and 3.0, DMTF DSP0134) of a PC.

They are QEMU's: the same structures, handles and strings, as guests and what licenses them look at them. The firmware
finds the structures and the entry point in the firmware configuration and puts them where operating systems look.
"""

from __future__ import annotations

from struct import pack
from typing import TYPE_CHECKING, Any

from qobra.errors import QobraError
from qobra.machine.board import find_devices
from qobra.machine.device.x86_64_cpu import X86Cpu
from qobra.machine.pci.device import PciDevice
from qobra.machine.smbios import settings

if TYPE_CHECKING:
    from qobra.machine.pc import PcBoard

TABLES, ANCHOR = "etc/smbios/smbios-tables", "etc/smbios/smbios-anchor"
_KIB, _MIB, _GIB = 1 << 10, 1 << 20, 1 << 30
_MAX_MODULE = 16 * _GIB
_MAX_LENGTH_21 = 0xFFFF
_NONE, _UNKNOWN, _OTHER = 0, 2, 1
_NO_HANDLE, _NO_ERROR_HANDLE = 0xFFFF, 0xFFFE
_CHASSIS_HANDLE, _MEMORY_ARRAY_HANDLE = 0x300, 0x1000
_SPEED_MHZ = 2000


class Structure:
    """One structure under construction: its formatted part, and the strings that it refers to by number."""

    def __init__(self, kind: int, handle: int) -> None:
        self._kind = kind
        self._handle = handle
        self._formatted = bytearray()
        self._strings: list[bytes] = []

    def add(self, layout: str, *values: Any) -> None:
        """Fields, as ``struct`` packs them; those of one byte that are texts become numbers of strings."""
        numbers = [self.text(value) if value is None or isinstance(value, str) else value for value in values]
        self._formatted += pack("<" + layout, *numbers)

    def text(self, value: str | bytes | None) -> int:
        """The number of a string; 0 for none."""
        if not value:
            return 0
        self._strings.append(value if isinstance(value, bytes) else value.encode())
        return len(self._strings)

    def __bytes__(self) -> bytes:
        head = pack("<BBH", self._kind, 4 + len(self._formatted), self._handle)
        strings = b"".join(text + b"\0" for text in self._strings) or b"\0"
        return head + bytes(self._formatted) + strings + b"\0"


def files(board: PcBoard) -> dict[str, bytes]:
    """The structures and their entry point, by the names of the files. Raises QobraError for what cannot be told."""
    said = board.smbios
    structures = list(said.structures)
    wide = board.smbios_entry_point_type == "64"
    for kind, make in _MAKERS:
        if not said.given(kind):
            structures += [bytes(structure) for structure in make(board, said.fields.get(kind, {}))]
    tables = b"".join(structures)
    return {TABLES: tables, ANCHOR: _entry_point_30(tables) if wide else _entry_point_21(tables, structures)}


def _entry_point_21(tables: bytes, structures: list[bytes]) -> bytes:
    # The firmware fills in the address and the checksums.
    if len(tables) > _MAX_LENGTH_21:
        raise QobraError(f"SMBIOS 2.1 table length {len(tables)} exceeds {_MAX_LENGTH_21}")
    longest = max(map(len, structures))
    head = pack("<4sBBBBHB5x", b"_SM_", 0, 31, 2, 8, longest, 0)
    return head + pack("<5sBHIHB", b"_DMI_", 0, len(tables), 0, len(structures), 0x28)


def _entry_point_30(tables: bytes) -> bytes:
    return pack("<5sBBBBBBBIQ", b"_SM3_", 0, 24, 3, 0, 0, 1, 0, len(tables), 0)


# -- the structures


def _bios(board: PcBoard, said: dict[str, Any]) -> list[Structure]:
    # The firmware has one of its own, which only gives way to what a user says.
    if settings.BIOS not in board.smbios.fields:
        return []
    made = Structure(settings.BIOS, 0)
    extended = 0x14 | (0x08 if said.get("uefi") else 0)  # targeted content distribution, a virtual machine, UEFI
    made.add("BBHBB", said.get("vendor"), said.get("version"), 0xE800, said.get("date"), 0)
    made.add("QBB", 0x08, 0, extended)  # characteristics are not supported
    made.add("2sBB", said.get("release", bytes(2)), 0xFF, 0xFF)
    return [made]


def _names(board: PcBoard, said: dict[str, Any], *, product: bool = True) -> list[str]:
    # Manufacturer, product and version, which users can give each another of.
    names = {"manufacturer": "QEMU", "product": board.description, "version": board.machine_name}
    return [said.get(name, default) for name, default in names.items() if product or name != "product"]


def _system(board: PcBoard, said: dict[str, Any]) -> list[Structure]:
    made = Structure(settings.SYSTEM, 0x100)
    uuid = board.machine.uuid
    made.add("4B", *_names(board, said), said.get("serial"))
    made.add("16sB", uuid.bytes_le if uuid is not None else bytes(16), 0x06)  # woken by the power switch
    made.add("BB", said.get("sku"), said.get("family"))
    return [made]


def _base_board(board: PcBoard, said: dict[str, Any]) -> list[Structure]:
    if settings.BASE_BOARD not in board.smbios.fields:
        return []
    made = Structure(settings.BASE_BOARD, 0x200)
    made.add("5B", *_names(board, said), said.get("serial"), said.get("asset"))
    made.add("BBHBB", 0x01, said.get("location"), _CHASSIS_HANDLE, 0x0A, 0)  # hosting, in the chassis, a motherboard
    return [made]


def _chassis(board: PcBoard, said: dict[str, Any]) -> list[Structure]:
    made = Structure(settings.CHASSIS, _CHASSIS_HANDLE)
    manufacturer, version = _names(board, said, product=False)
    made.add("5B", manufacturer, _OTHER, version, said.get("serial"), said.get("asset"))
    made.add("4BI4B", 3, 3, 3, _UNKNOWN, 0, 0, 0, 0, 0)  # all states are safe, security is unknown
    made.add("B", said.get("sku"))
    return [made]


def _processors(board: PcBoard, said: dict[str, Any]) -> list[Structure]:
    assert board.topology is not None
    topology, cpu = board.topology, board.cpus[0]
    assert isinstance(cpu, X86Cpu)
    identity = said.get("processor-id", 0) or cpu.processor_id()
    cores = topology.dies * topology.cores
    threads = cores * topology.threads
    wide = board.smbios_entry_point_type == "64"
    found = []
    for socket in range(topology.sockets):
        made = Structure(settings.PROCESSOR, 0x400 + socket)
        manufacturer, version = _names(board, said, product=False)
        made.add("BBBB", f"{said.get('sock_pfx', 'CPU')} {socket}", 3, _OTHER, manufacturer)  # a central processor
        made.add("QBBH", identity, version, 0, 0)
        made.add("HH", said.get("max-speed", _SPEED_MHZ), said.get("current-speed", _SPEED_MHZ))
        made.add("BB3H", 0x41, _OTHER, *[_NO_HANDLE] * 3)  # there, and enabled; of its caches nothing is told
        made.add("3B", said.get("serial"), said.get("asset"), said.get("part"))
        made.add("3B", min(cores, 0xFF), min(cores, 0xFF), min(threads, 0xFF))
        made.add("HH", 0x02, _OTHER)  # characteristics and family are unknown
        if wide:
            made.add("3H", cores, cores, threads)
        found.append(made)
    return found


def _ports(board: PcBoard, _said: dict[str, Any]) -> list[Structure]:
    found = []
    for number, port in enumerate(board.smbios.ports):
        made = Structure(settings.PORT, number)
        made.add("BBB", port.get("internal_reference"), 0, port.get("external_reference"))
        made.add("BB", port.get("connector_type", 0) & 0xFF, port.get("port_type", 0) & 0xFF)
        found.append(made)
    return found


def _oem_strings(board: PcBoard, _said: dict[str, Any]) -> list[Structure]:
    strings = board.smbios.oem_strings
    if not strings:
        return []
    made = Structure(settings.OEM_STRINGS, 0xE00)
    made.add("B", len(strings) & 0xFF)
    for text in strings:
        made.text(text)
    return [made]


def _memory_array(board: PcBoard, _said: dict[str, Any]) -> list[Structure]:
    made = Structure(settings.MEMORY_ARRAY, _MEMORY_ARRAY_HANDLE)
    made.add("BBB", _OTHER, 3, 6)  # of the system's memory, with error correction
    small = board.ram_size < 1 << 41
    made.add("I", -(-board.ram_size // _KIB) if small else 0x80000000)
    made.add("HHQ", _NO_ERROR_HANDLE, _modules(board), 0 if small else board.ram_size)
    return [made]


def _modules(board: PcBoard) -> int:
    return max(-(-board.ram_size // _MAX_MODULE), 1)


def _memory_devices(board: PcBoard, said: dict[str, Any]) -> list[Structure]:
    found = []
    speed = said.get("speed", 0) & 0xFFFF
    for number in range(_modules(board)):
        made = Structure(settings.MEMORY_DEVICE, 0x1100 + number)
        size = min(board.ram_size - number * _MAX_MODULE, _MAX_MODULE)
        made.add("HHHHH", _MEMORY_ARRAY_HANDLE, _NO_ERROR_HANDLE, 0xFFFF, 0xFFFF, -(-size // _MIB))
        made.add("BBBB", 0x09, 0, f"{said.get('loc_pfx', 'DIMM')} {number}", said.get("bank"))  # a DIMM, in no set
        made.add("BHH", 0x07, _UNKNOWN, speed)  # RAM
        made.add("4B", said.get("manufacturer", "QEMU"), *(said.get(name) for name in ("serial", "asset", "part")))
        made.add("BIH3H", 0, 0, speed, 0, 0, 0)
        found.append(made)
    return found


def _mapped_addresses(board: PcBoard, _said: dict[str, Any]) -> list[Structure]:
    found = []
    for number, (start, length) in enumerate(board.ram_ranges()):
        made = Structure(settings.MAPPED_ADDRESS, 0x1300 + number)
        first, last = start // _KIB, (start + length - 1) // _KIB
        if last < 0xFFFFFFFF:
            made.add("IIHBQQ", first, last, _MEMORY_ARRAY_HANDLE, 1, 0, 0)
        else:
            made.add("IIHBQQ", 0xFFFFFFFF, 0xFFFFFFFF, _MEMORY_ARRAY_HANDLE, 1, start, start + length - 1)
        found.append(made)
    return found


def _boot_status(_board: PcBoard, _said: dict[str, Any]) -> list[Structure]:
    made = Structure(settings.BOOT, 0x2000)
    made.add("6xB", 0)  # no errors detected
    return [made]


def _onboard(board: PcBoard, _said: dict[str, Any]) -> list[Structure]:
    found = []
    for number, device in enumerate(board.smbios.onboard):
        made = Structure(settings.ONBOARD, 0x2900 + number)
        made.add("B", device.get("designation"))
        made.add("BB", 0x80 | device["kind"], device.get("instance", 1) & 0xFF)
        made.add("HBB", 0, 0, _function(board, device))
        found.append(made)
    return found


def _function(board: PcBoard, said: dict[str, Any]) -> int:
    # The device and function number of the device that a user names.
    id = said.get("pcidev")
    if id is None:
        return 0
    device = board.peripheral.children.get(id)
    if not isinstance(device, PciDevice):
        name = said.get("designation", "(null)")
        raise QobraError(f"No PCI device {id} for SMBIOS type 41 entry {name}")
    if device.bus is not board.pci_root:
        raise QobraError(f"Cannot create type 41 entry for PCI device {id}: not attached to the root bus")
    return device.devfn


def _management_devices(board: PcBoard, _said: dict[str, Any]) -> list[Structure]:
    found = []
    for device in find_devices(board, "ipmi-interface"):
        each: Any = device
        if isinstance(device, PciDevice):
            continue  # which is found by its class
        on_bus = each.type_name == "smbus-ipmi"
        base = each.address << 1 if on_bus else each.ioport | 1  # ports
        made = Structure(settings.MANAGEMENT, 0x3000)
        made.add("BBBB", each.kind, 0x20, each.controller.slave_addr, 0)
        made.add("QBB", base, 1, 0 if on_bus else max(each.irq, 0) & 0xFF)
        found.append(made)
    return found


def _end(_board: PcBoard, _said: dict[str, Any]) -> list[Structure]:
    return [Structure(settings.END, 0x7F00)]


_MAKERS = (
    (settings.BIOS, _bios),
    (settings.SYSTEM, _system),
    (settings.BASE_BOARD, _base_board),
    (settings.CHASSIS, _chassis),
    (settings.PROCESSOR, _processors),
    (settings.PORT, _ports),
    (settings.OEM_STRINGS, _oem_strings),
    (settings.MEMORY_ARRAY, _memory_array),
    (settings.MEMORY_DEVICE, _memory_devices),
    (settings.MAPPED_ADDRESS, _mapped_addresses),
    (settings.BOOT, _boot_status),
    (settings.ONBOARD, _onboard),
    (settings.MANAGEMENT, _management_devices),
    (settings.END, _end),
)
"""Who makes the structures of each type, in their order."""
