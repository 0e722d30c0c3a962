"""What users say of the cards' monitors and memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qobra.display.edid import edid
from qobra.object.property import Bool

if TYPE_CHECKING:
    from qobra.machine.qdev import Device

_MIB = 1 << 20
_MOST_MIB = 512
_WIDTH, _HEIGHT = 1280, 800


def memory_size(mib: int) -> int:
    """Bytes of memory for ``mib``: a power of two that is not less, up to 512 MiB."""
    return (1 << (min(max(mib, 1), _MOST_MIB) - 1).bit_length()) * _MIB


def monitor(device: Any, size: int) -> bytes:
    """What the monitor of ``device`` says of itself, by its properties, in ``size`` bytes; nothing with ``edid=off``.

    The properties show which size it likes where nobody said so.
    """
    if not device.edid:
        return b""
    device.values["xres"], device.values["yres"] = device.xres or _WIDTH, device.yres or _HEIGHT
    return edid(
        device.xres,
        device.yres,
        max_width=device.xmax,
        max_height=device.ymax,
        refresh_mhz=device.refresh_rate,
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
