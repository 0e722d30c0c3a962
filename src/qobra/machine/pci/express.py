"""The PCI Express capability (PCI Express Base 3.0, section 7.8)."""

from __future__ import annotations

from qobra.machine.pci import regs
from qobra.machine.pci.device import PciDevice

ENDPOINT, ROOT_PORT, UPSTREAM, DOWNSTREAM, TO_PCI, INTEGRATED = 0, 4, 5, 6, 7, 9
_SIZE = 0x3C
_ASPM_L0S = 0x400
LINK_ACTIVE_REPORTING = 0x00300000

DEVICE_CAPABILITIES, DEVICE_CONTROL, DEVICE_STATUS = 0x04, 0x08, 0x0A
LINK_CAPABILITIES, LINK_CONTROL, LINK_STATUS = 0x0C, 0x10, 0x12
SLOT_CAPABILITIES, SLOT_CONTROL, SLOT_STATUS = 0x14, 0x18, 0x1A
ROOT_CONTROL, ROOT_STATUS = 0x1C, 0x20
DEVICE_CAPABILITIES_2, DEVICE_CONTROL_2 = 0x24, 0x28
LINK_CAPABILITIES_2, LINK_CONTROL_2 = 0x2C, 0x30


def add_capability(device: PciDevice, port_type: int, *, offset: int | None = None, slot: bool = False) -> int:
    """The capability for a function of ``port_type``; returns its offset."""
    start = device.add_capability(regs.CAP_EXPRESS, _SIZE, offset=offset)
    device.put(start + 2, 2, 2 | port_type << 4 | (0x100 if slot else 0))
    device.put(start + DEVICE_CAPABILITIES, 4, 0x8000)
    device.writable[start + DEVICE_CONTROL] = 0x0F
    # End-to-end prefixes; ports forward to alternative routing ids as well.
    forwards = 0x20 if port_type in (ROOT_PORT, DOWNSTREAM) else 0
    device.put(start + DEVICE_CAPABILITIES_2, 4, 0x00300000 | forwards)
    device.writable[start + DEVICE_CONTROL_2 : start + DEVICE_CONTROL_2 + 2] = bytes((forwards, 0x80))
    return start


def add_link(device: PciDevice, start: int, *, speed: int = 1, width: int = 1, port: int = 0) -> None:
    """A link of ``width`` lanes at the speed grade ``speed``, which is up."""
    device.put(start + LINK_CAPABILITIES, 4, port << 24 | _ASPM_L0S | width << 4 | speed)
    device.put(start + LINK_STATUS, 2, 1 << 4 | 1)


_AER, _ACS = 0x0001, 0x000D
_AER_SIZE = 0x48
_SEVERITY, _CORRECTABLE_MASK, _AER_CONTROL, _ROOT_ERROR_COMMAND = 0x0C, 0x14, 0x18, 0x2C
_ACS_SERVICES = 0x5F


def add_error_reporting(device: PciDevice, start: int) -> None:
    """Advanced error reporting of a root port (7.8.4), and access control services behind it (7.7.7)."""
    services = start + _AER_SIZE
    device.writable[start : services + 8] = bytes(_AER_SIZE + 8)
    device.put(start, 4, services << 20 | 2 << 16 | _AER)
    for offset, mask in (
        (_SEVERITY, 0x03FFF030),
        (_CORRECTABLE_MASK, 0xF1C1),
        (_AER_CONTROL, 0x0540),
        (_ROOT_ERROR_COMMAND, 0x7),
    ):
        device.writable[start + offset : start + offset + 4] = mask.to_bytes(4, "little")
    device.put(services, 4, 1 << 16 | _ACS)
    device.put(services + 4, 4, _ACS_SERVICES)
    device.writable[services + 6] = _ACS_SERVICES


def reset_error_reporting(device: PciDevice, start: int) -> None:
    """As after power-on: errors of the usual kinds are fatal, advisory and internal ones are masked."""
    device.put(start + _SEVERITY, 4, 0x00462030)
    device.put(start + _CORRECTABLE_MASK, 4, 0xE000)
    device.put(start + _AER_CONTROL, 4, 0x02A0)
    device.put(start + _ROOT_ERROR_COMMAND, 4, 0)
    device.put(start + _AER_SIZE + 6, 2, 0)


def add_endpoint_capability(device: PciDevice) -> int:
    """The capability of an endpoint behind a port."""
    start = add_capability(device, ENDPOINT)
    add_link(device, start, speed=1, width=1)
    device.put(start + LINK_CAPABILITIES_2, 4, 2)
    device.put(start + LINK_CONTROL_2, 2, 1)
    return start
