"""What the ports of TI's XIO3130 switch have in common."""

from __future__ import annotations

from qobra.machine.pci import express, regs
from qobra.machine.pci.msix import Msi
from qobra.machine.pci.port import ERROR_REPORTING, PciePort

_MESSAGES, _SUBSYSTEM, _CAPABILITY = 0x70, 0x80, 0x90


def add_capabilities(port: PciePort, *, slot: bool) -> tuple[int, Msi]:
    """The express capability, which is to be completed with the link, at its offset; and the messages."""
    messages = Msi(port, 1, offset=_MESSAGES)
    port.add_capability(regs.CAP_SSVID, 8, offset=_SUBSYSTEM)
    start = express.add_capability(
        port, port.port_type, offset=_CAPABILITY, slot=slot, reports_errors=False, resets=True
    )
    express.add_port_error_reporting(port, ERROR_REPORTING, root=False)
    return start, messages
