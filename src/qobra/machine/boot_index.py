"""``bootindex``: where a device comes in the order in which the firmware tries what it can boot from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qobra.errors import QobraError
from qobra.object.property import Int

if TYPE_CHECKING:
    from qobra.machine.qdev import Device


class BootIndex(Int):
    """Each index is one device's; -1 is no place. The firmware sees a change at the next reset."""

    def __init__(self) -> None:
        super().__init__(-1, type="int32", show_default=False, live=True, set=self._take)

    def _take(self, device: Device, index: int) -> None:
        from qobra.machine.board import find_devices

        if index >= 0:
            for other in find_devices(device.board, "device"):
                if other is not device and other.bootindex == index:
                    raise QobraError(f"The bootindex {index} has already been used")
        device.values[self.name] = index
