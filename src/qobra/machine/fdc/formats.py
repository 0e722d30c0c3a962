"""Formats of diskettes by their size, and the drives that take them."""

from __future__ import annotations

SECTOR = 512

DRIVE_TYPES = ("144", "288", "120", "none", "auto")
"""The values of FdcDriveType: 1.44 MB and 2.88 MB of 3.5 inches, 1.2 MB of 5.25 inches."""

_SMALL = ("144", "288")

RATE_500K, RATE_300K, RATE_250K, RATE_1M = range(4)


class Format:
    """A format: sectors a track, tracks, sides, the data rate, and the type of drive."""

    __slots__ = ("drive", "rate", "sectors", "sides", "tracks")

    def __init__(self, drive: str, sectors: int, tracks: int, sides: int, rate: int) -> None:
        self.drive = drive
        self.sectors = sectors
        self.tracks = tracks
        self.sides = sides
        self.rate = rate

    @property
    def total(self) -> int:
        """Sectors of the whole diskette."""
        return self.sectors * self.tracks * self.sides


def _rows() -> list[Format]:
    rows = []
    for drive, rate, sides, pairs in (
        ("144", RATE_500K, 2, ((18, 80), (20, 80), (21, 80), (21, 82), (21, 83), (22, 80), (23, 80), (24, 80))),
        ("288", RATE_1M, 2, ((36, 80), (39, 80), (40, 80), (44, 80), (48, 80))),
        ("144", RATE_250K, 2, ((9, 80), (10, 80), (10, 82), (10, 83), (13, 80), (14, 80))),
        ("120", RATE_500K, 2, ((15, 80), (18, 80), (18, 82), (18, 83), (20, 80))),
        ("120", RATE_300K, 2, ((9, 80), (11, 80), (9, 40), (10, 41), (10, 42), (8, 40))),
        ("120", RATE_300K, 1, ((9, 40), (8, 40))),
        ("144", RATE_250K, 1, ((9, 80),)),
    ):
        rows += [Format(drive, sectors, tracks, sides, rate) for sectors, tracks in pairs]
    return rows


FORMATS = _rows()
_DEFAULTS = {"144": FORMATS[0], "288": FORMATS[8], "120": next(f for f in FORMATS if f.drive == "120")}


NO_DRIVE = Format("none", 0, 1, 1, RATE_500K)
"""What a controller takes the diskettes of a drive that is not there for."""


def unknown(before: Format) -> Format:
    """The format of no diskette: the drive lets its head go anywhere, and remembers the one ``before``."""
    return Format(before.drive, 255, 256, before.sides, before.rate)


def find(length: int, drive: str) -> Format:
    """The format of a diskette of ``length`` bytes in a drive of that type (``auto``: any).

    What has no format is taken for the type's usual one, or for the next smaller size of its own type.
    """
    sectors = length // SECTOR
    for each in FORMATS:
        if each.total == sectors and drive in ("auto", each.drive):
            return each
    # Drives of 3.5 inches take each other's diskettes.
    if drive in _SMALL:
        for each in FORMATS:
            if each.total == sectors and each.drive in _SMALL:
                return each
    return _DEFAULTS.get(drive, FORMATS[0])
