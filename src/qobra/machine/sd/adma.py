"""The descriptor table of ADMA2: pieces of memory that one transfer goes through (section 1.13)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qobra.machine.dma import GuestMemory

_VALID, _END, _TRANSFER, _LINK = 0x01, 0x02, 0x20, 0x30
_MAX_DESCRIPTORS = 4096
"""Descriptors that are read for one request to the card at most: a table may link to itself."""

FETCHING, TRANSFERRING = 1, 3
"""States that an error is told with."""


class TableError(Exception):
    """The table cannot be used."""

    def __init__(self, state: int) -> None:
        super().__init__(state)
        self.state = state


class Table:
    """The table at ``address``; ``wide`` ones have addresses of 64 bits."""

    def __init__(self, memory: GuestMemory, address: int, *, wide: bool) -> None:
        self._memory = memory
        self._address = address
        self._wide = wide
        self._ended = False
        self._pieces: list[tuple[int, int]] = []

    def room(self, wanted: int) -> int:
        """How many of ``wanted`` bytes there is memory for; descriptors are read as needed. Raises TableError."""
        room = sum(size for _address, size in self._pieces)
        for _ in range(_MAX_DESCRIPTORS):
            if room >= wanted or self._ended:
                break
            room += self._fetch()
        if not room:
            raise TableError(TRANSFERRING)
        return min(room, wanted)

    def take(self, length: int) -> list[tuple[int, int]]:
        """The next ``length`` bytes as pieces, as far as there are such."""
        taken = []
        while length and self._pieces:
            address, size = self._pieces.pop(0)
            if size > length:
                self._pieces.insert(0, (address + length, size - length))
                size = length
            taken.append((address, size))
            length -= size
        return taken

    def _fetch(self) -> int:
        size = 12 if self._wide else 8
        raw = self._memory.read(self._address, size)
        attributes, length = raw[0], int.from_bytes(raw[2:4], "little") or 0x10000
        address = int.from_bytes(raw[4:], "little")
        if not attributes & _VALID:
            raise TableError(FETCHING)
        self._ended = bool(attributes & _END)
        kind = attributes & _LINK
        self._address = address if kind == _LINK else self._address + size
        if kind != _TRANSFER:
            return 0
        self._pieces.append((address, length))
        return length
