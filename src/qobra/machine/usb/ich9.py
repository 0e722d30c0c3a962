"""The USB host controllers of the ICH9: six for full and low speed beside two for high speed (Intel 316972)."""

from __future__ import annotations

from qobra.machine.usb.companion import Companion
from qobra.machine.usb.uhci_function import UhciFunction
from qobra.machine.vmstate import VmState


class Ich9Uhci(Companion, UhciFunction):
    """One of the six, which share their ports with an EHCI controller."""

    abstract = True
    hotpluggable_class = False
    revision = 3

    vmstate = VmState(partial=True)
