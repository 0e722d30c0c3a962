"""``sd-card``: an SD memory card in the slot of a controller."""

from __future__ import annotations

from typing import Any

from qobra.errors import QobraError
from qobra.machine.block_requests import BlockRequests
from qobra.machine.blockdev import PlainFrontEnd
from qobra.machine.devices import registry
from qobra.machine.sd.card import Card
from qobra.machine.vmstate import VmState, part


@registry.register("sd-card")
class SdCard(PlainFrontEnd):
    """A card. Its size is a power of two, as that of every real one."""

    type_name = "sd-card"
    bus_type = "sd-bus"
    rerror: Any = "report"
    werror: Any = "report"

    vmstate = VmState(part("card"))

    def realize(self) -> None:
        if self.backend is None or self.backend.node is None:
            raise QobraError(
                "drive property not set" if self.backend is None else "Device needs media, but drive is empty"
            )
        if self.backend.node.read_only:
            raise QobraError("Cannot use read-only drive as SD card")
        size = self.backend.length
        if size & size - 1 or size < 512:
            raise QobraError(
                f"Invalid SD card size: {size} bytes",
                hint="SD card size has to be a power of 2.\n"
                "You can resize disk images with 'qemu-img resize <imagefile> <new-size>'\n"
                "(note that this will lose data if you make the image smaller than it currently is).",
            )
        self.realize_block()
        self.requests = BlockRequests(self)
        self.card = Card(self)

    def unrealize(self) -> None:
        self.requests.close()

    def reset(self) -> None:
        self.requests.cancel()
        self.card.reset()

    @property
    def length(self) -> int:
        """Bytes on the card."""
        return self.backend.length if self.backend is not None else 0

    @property
    def read_only(self) -> bool:
        """Whether it cannot be written."""
        return self.backend is None or self.backend.node is None or self.backend.node.read_only
