"""What users say of the cards' monitors and memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qobra.display.edid import edid
from qobra.machine.pci.device import PciDevice
from qobra.object.property import Bool, Int

if TYPE_CHECKING:
    from qobra.machine.qdev import Device

_MIB = 1 << 20
_MOST_MIB = 512
_WIDTH, _HEIGHT = 1280, 800


def memory_size(mib: int) -> int:
    """Bytes of memory for ``mib``: a power of two that is not less, up to 512 MiB."""
    return (1 << (min(max(mib, 1), _MOST_MIB) - 1).bit_length()) * _MIB


class WithMonitor(PciDevice):
    """A card whose monitor says of itself what users want it to."""

    abstract = True
    edid: Any
    """Whether it says anything."""

    xres = Int(0, type="uint32")
    yres = Int(0, type="uint32")
    xmax = Int(0, type="uint32")
    ymax = Int(0, type="uint32")
    refresh_rate = Int(0, type="uint32", name="refresh_rate")

    def identity(self, size: int) -> bytes:
        """What the monitor says (E-EDID), in ``size`` bytes; nothing with ``edid=off``.

        The properties show which size it likes where nobody said so.
        """
        if not self.edid:
            return b""
        self.values["xres"], self.values["yres"] = self.xres or _WIDTH, self.yres or _HEIGHT
        return edid(
            self.xres,
            self.yres,
            max_width=self.xmax,
            max_height=self.ymax,
            refresh_mhz=self.refresh_rate,
            size=size,
        )


def _order(device: Any) -> Any:
    return device.byte_order


def _set_order(device: Device, value: bool) -> None:
    _order(device).default = _order(device).big_endian = value


def big_endian_framebuffer() -> Bool:
    """Whether the first byte of a pixel is the highest; for devices with a ``byte_order``."""
    return Bool(
        name="big-endian-framebuffer",
        get=lambda device: _order(device).big_endian,
        set=_set_order,
        show_default=False,
        live=True,
    )
