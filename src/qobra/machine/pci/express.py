"""The PCI Express capability (PCI Express Base 3.0, section 7.8)."""

from __future__ import annotations

from qobra.machine.pci import regs
from qobra.machine.pci.device import PciDevice

ENDPOINT, ROOT_PORT, UPSTREAM, DOWNSTREAM, TO_PCI, INTEGRATED = 0, 4, 5, 6, 7, 9
_SIZE, _FIRST_SIZE = 0x3C, 0x14
EXTENDED = 0x100
"""Where the first extended capability lies."""
_ASPM_L0S = 0x400
LINK_ACTIVE_REPORTING = 0x00300000
_FUNCTION_RESET, _INITIATE_RESET = 0x10000000, 0x80
_ERROR_REPORTS, _FORWARDS = 0x0F, 0x20
_LINK_OPTIONS = 0xC0
"""Common clock configuration, extended synchronization."""

DEVICE_CAPABILITIES, DEVICE_CONTROL, DEVICE_STATUS = 0x04, 0x08, 0x0A
LINK_CAPABILITIES, LINK_CONTROL, LINK_STATUS = 0x0C, 0x10, 0x12
SLOT_CAPABILITIES, SLOT_CONTROL, SLOT_STATUS = 0x14, 0x18, 0x1A
ROOT_CONTROL, ROOT_STATUS = 0x1C, 0x20
DEVICE_CAPABILITIES_2, DEVICE_CONTROL_2 = 0x24, 0x28
LINK_CAPABILITIES_2, LINK_CONTROL_2 = 0x2C, 0x30


def add_capability(
    device: PciDevice,
    port_type: int,
    *,
    offset: int | None = None,
    slot: bool = False,
    reports_errors: bool = True,
    resets: bool = False,
) -> int:
    """The capability for a function of ``port_type``; returns its offset.

    With ``resets`` the guest can reset the function alone, if the model calls :func:`reset_if_asked`.
    """
    if len(device.writable) > EXTENDED:
        # No extended capability begins there, unless one is added.
        device.writable[EXTENDED : EXTENDED + 4] = bytes(4)
    start = device.add_capability(regs.CAP_EXPRESS, _SIZE, offset=offset)
    device.put(start + 2, 2, 2 | port_type << 4 | (0x100 if slot else 0))
    device.put(start + DEVICE_CAPABILITIES, 4, 0x8000 | (_FUNCTION_RESET if resets else 0))
    device.writable[start + DEVICE_CONTROL + 1] = _INITIATE_RESET if resets else 0
    device.writable[start + DEVICE_CONTROL] = _ERROR_REPORTS if reports_errors else 0
    # End-to-end prefixes; ports and bridges forward to alternative routing ids as well.
    forwards = _FORWARDS if port_type in (ROOT_PORT, DOWNSTREAM, TO_PCI) else 0
    device.put(start + DEVICE_CAPABILITIES_2, 4, 0x00300000 | forwards)
    device.writable[start + DEVICE_CONTROL_2 : start + DEVICE_CONTROL_2 + 2] = bytes((forwards, 0x80))
    return start


def add_first_version(device: PciDevice, port_type: int, *, offset: int) -> int:
    """The capability as PCI Express Base 1.0 has it, of an endpoint, without what came later; returns its offset."""
    start = device.add_capability(regs.CAP_EXPRESS, _FIRST_SIZE, offset=offset)
    device.put(start + 2, 2, 1 | port_type << 4)
    device.put(start + DEVICE_CAPABILITIES, 4, 0x8000)
    return start


def add_link(device: PciDevice, start: int, *, speed: int = 1, width: int = 1, port: int = 0) -> None:
    """A link of ``width`` lanes at the speed grade ``speed``, which is up."""
    device.put(start + LINK_CAPABILITIES, 4, port << 24 | _ASPM_L0S | width << 4 | speed)
    device.put(start + LINK_STATUS, 2, 1 << 4 | 1)


def add_endpoint(
    device: PciDevice, *, offset: int | None = None, reports_errors: bool = True, resets: bool = True
) -> int:
    """The capability of a function that is no port, with its link; integrated in the root complex if it is there."""
    bus = device.pci_bus
    at_root = bus.implements("PCIE") and bus.parent_bridge is None
    kind = INTEGRATED if at_root else ENDPOINT
    start = add_capability(device, kind, offset=offset, reports_errors=reports_errors, resets=resets)
    add_link(device, start)
    return start


def allow_link_options(device: PciDevice, start: int) -> None:
    """Let the guest set the link's options, which change nothing."""
    device.writable[start + LINK_CONTROL] = _LINK_OPTIONS


def reset_controls(device: PciDevice, start: int) -> None:
    """As after power-on: no error is reported, the link's options are off, nothing is forwarded."""
    device.config[start + DEVICE_CONTROL] &= ~_ERROR_REPORTS
    device.config[start + LINK_CONTROL] &= ~_LINK_OPTIONS
    device.config[start + ROOT_CONTROL] = 0
    device.config[start + DEVICE_CONTROL_2] &= ~_FORWARDS


def reset_if_asked(device: PciDevice, start: int) -> None:
    """Reset the function if the guest has just asked for it (6.6.2)."""
    at = start + DEVICE_CONTROL + 1
    if device.config[at] & _INITIATE_RESET:
        device.config[at] &= ~_INITIATE_RESET
        device.reset_tree()


def add_power_management(device: PciDevice, *, offset: int | None = None, keeps_state: bool = False) -> int:
    """The capability by which the guest sets power states, which change nothing (PCI Power Management 1.2).

    Returns the offset of its control register.
    """
    start = device.add_capability(regs.CAP_PM, 8, offset=offset)
    device.put(start + 2, 2, 3)
    device.put(start + 4, 2, 8 if keeps_state else 0)
    device.writable[start + 4] = 0x03
    return start + 4


_ATS, _PAGE_ALIGNED = 0x000F, 0x20


def add_address_translation(device: PciDevice) -> None:
    """The extended capability of address translation services (PCI ATS 1.1), with nothing before it."""
    device.writable[EXTENDED : EXTENDED + 8] = bytes(8)
    device.put(EXTENDED, 4, 1 << 16 | _ATS)
    device.put(EXTENDED + 4, 2, _PAGE_ALIGNED)
    device.writable[EXTENDED + 6 : EXTENDED + 8] = b"\x0f\x80"


_AER, _SERIAL_NUMBER, _ACS = 0x0001, 0x0003, 0x000D
_AER_SIZE = 0x48
_SEVERITY, _CORRECTABLE_MASK, _AER_CONTROL, _ROOT_ERROR_COMMAND = 0x0C, 0x14, 0x18, 0x2C
_ACS_SERVICES = 0x5F
_MULTIPLE_HEADERS, _MULTIPLE_HEADERS_ENABLED = 0x02, 0x04


def add_error_reporting(device: PciDevice, start: int, *, version: int = 2) -> None:
    """Advanced error reporting (7.10), with one entry in its log of headers."""
    device.writable[start : start + _AER_SIZE] = bytes(_AER_SIZE)
    device.put(start, 4, version << 16 | _AER)
    for offset, mask in ((_SEVERITY, 0x03FFF030), (_CORRECTABLE_MASK, 0xF1C1), (_AER_CONTROL, 0x0140)):
        device.writable[start + offset : start + offset + 4] = mask.to_bytes(4, "little")
    # Errors of the usual kinds are fatal, advisory and internal ones are masked. A reset leaves it as the guest has it.
    device.put(start + _SEVERITY, 4, 0x00462030)
    device.put(start + _CORRECTABLE_MASK, 4, 0xE000)
    device.put(start + _AER_CONTROL, 4, 0x00A0)


def add_serial_number(device: PciDevice, start: int, number: bytes) -> None:
    """The extended capability with the eight bytes of a serial number (7.12), the last one there is."""
    device.writable[start : start + 12] = bytes(12)
    device.put(start, 4, 1 << 16 | _SERIAL_NUMBER)
    device.config[start + 4 : start + 12] = number
    before = EXTENDED
    while following := device.dword(before) >> 20:
        before = following
    device.put(before, 4, device.dword(before) | start << 20)


def add_port_error_reporting(device: PciDevice, start: int, *, root: bool) -> None:
    """Advanced error reporting of a port, which keeps the headers of several errors."""
    add_error_reporting(device, start)
    device.config[start + _AER_CONTROL + 1] |= _MULTIPLE_HEADERS
    device.writable[start + _AER_CONTROL + 1] |= _MULTIPLE_HEADERS_ENABLED
    device.writable[start + _ROOT_ERROR_COMMAND] = 0x7 if root else 0


def add_access_control(device: PciDevice, start: int) -> None:
    """Access control services (7.16) after the error reporting at ``start``."""
    services = start + _AER_SIZE
    device.put(start, 4, services << 20 | device.dword(start))
    device.writable[services : services + 8] = bytes(8)
    device.put(services, 4, 1 << 16 | _ACS)
    device.put(services + 4, 4, _ACS_SERVICES)
    device.writable[services + 6] = _ACS_SERVICES


def reset_root_error_reporting(device: PciDevice, start: int) -> None:
    """No error interrupts any more; nothing is blocked between the devices behind the port."""
    device.put(start + _ROOT_ERROR_COMMAND, 4, 0)
    if device.dword(start) >> 20:
        device.put(start + _AER_SIZE + 6, 2, 0)
