"""Cylinders, heads and sectors: what a disk is said to have that has none of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qobra.errors import QobraError

if TYPE_CHECKING:
    from qobra.block.backend import BlockBackend

_HEADS, _SECTORS, _MAX_CYLINDERS = 16, 63, 16383

# What a BIOS that moves bits from cylinders to heads ("large") can reach at most.
_MAX_LARGE_TRACKS = 1024 * 128

Geometry = tuple[int, int, int]


def choose(device: Any, limits: Geometry) -> tuple[Geometry, str]:
    """The user's geometry of a device, checked against ``limits``, or one guessed from the medium; and its translation.

    The translation, how a BIOS is to show it, is one of BiosAtaTranslation. Raises QobraError.
    """
    asked = (device.cyls, device.heads, device.secs)
    if not any(asked):
        return guess(device.backend)
    for name, value, limit in zip(("cyls", "heads", "secs"), asked, limits, strict=True):
        if not 1 <= value <= limit:
            raise QobraError(f"{name} must be between 1 and {limit}")
    return asked, _usual_translation(asked)


def guess(backend: BlockBackend) -> tuple[Geometry, str]:
    """What a partition table was made for, if there is one that can be used; else the usual geometry."""
    sectors = backend.length // 512
    usual = (min(max(sectors // (_HEADS * _SECTORS), 2), _MAX_CYLINDERS), _HEADS, _SECTORS)
    found = None
    if backend.length >= 512 and backend.node is not None:
        try:
            # Of the node: what the machine wants to know on its own account is no I/O of the guest.
            found = _from_partitions(backend.inserted().read(0, 512), sectors)
        except (OSError, QobraError):
            pass
    if found is None:
        return usual, _usual_translation(usual)
    if found[1] > _HEADS:
        # Partitions that a translating BIOS made.
        return usual, "large" if usual[0] * usual[1] <= _MAX_LARGE_TRACKS else "lba"
    return found, "none"


def _usual_translation(geometry: Geometry) -> str:
    return "none" if geometry[0] <= 1024 and geometry[1] <= _HEADS and geometry[2] <= _SECTORS else "lba"


def _from_partitions(table: bytes, sectors: int) -> Geometry | None:
    # The last head and sector of the first partition that has any are the highest there are.
    if table[510:512] != b"\x55\xaa":
        return None
    for at in range(446, 510, 16):
        entry = table[at : at + 16]
        heads, per_track, size = entry[5] + 1, entry[6] & 63, int.from_bytes(entry[12:16], "little")
        if size and entry[5]:
            if not per_track:
                continue
            cylinders = sectors // (heads * per_track)
            if 1 <= cylinders <= _MAX_CYLINDERS:
                return cylinders, heads, per_track
    return None
