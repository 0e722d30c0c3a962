"""What the DSDT tells of interfaces to management controllers that are no PCI functions (IPMI 2.0, appendix C3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qobra.machine.acpi_tables import aml, resources
from qobra.machine.board import find_devices

if TYPE_CHECKING:
    from qobra.machine.pc import PcBoard

_REVISION = 0x0200


def isa_devices(board: PcBoard) -> bytes:
    """The devices of the ISA bus."""
    found: list[Any] = [*find_devices(board, "isa-ipmi-kcs"), *find_devices(board, "isa-ipmi-bt")]
    return b"".join(_device(device, number, *_ports(device)) for number, device in enumerate(found, 1))


def smbus_devices(board: PcBoard) -> bytes:
    """The functions of PCI that have the devices of the System Management Bus."""
    found: list[Any] = list(find_devices(board, "smbus-ipmi"))
    if not found:
        return b""
    host = found[0].bus.owner
    if not host.implements("ICH9-SMB"):
        return b""  # the older one is not told of
    devices = (_device(device, number, resources.i2c(device.address)) for number, device in enumerate(found, 1))
    place = aml.define("_ADR", aml.integer(host.slot << 16 | host.function))
    return aml.device(f"S{host.devfn:02X}", place, *devices)


def _ports(device: Any) -> list[bytes]:
    base = device.ioport
    decodes = [resources.io(base, device.ports, limit=base + device.ports - 1)]
    if device.irq > 0:
        decodes.append(resources.irq(device.irq))
    return decodes


def _device(device: Any, number: int, *decodes: bytes) -> bytes:
    return aml.device(
        f"MI{number}",
        aml.define("_HID", aml.eisa_id("IPI0001")),
        aml.define("_STR", aml.string(device.label)),
        aml.define("_UID", aml.integer(number)),
        aml.define("_CRS", resources.template(*decodes)),
        aml.define("_IFT", aml.integer(device.kind)),
        aml.define("_SRV", aml.integer(_REVISION)),
    )
