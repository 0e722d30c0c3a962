"""The transceiver behind MDIC (section 8.7; IEEE 802.3, clause 22), which has always agreed on 1000 Mbit/s."""

from __future__ import annotations

from qobra.machine.vmstate import Number, VmState, listed

_CONTROL, _STATUS = 0, 1
_RESET, _RESTART = 0x8000, 0x0200
_LINK, _NEGOTIATED = 0x0004, 0x0020
_SPECIFIC_STATUS, _SPECIFIC_LINK = 17, 0x0400
_OP_WRITE, _OP_READ, _READY, _ERROR = 1, 2, 0x10000000, 0x40000000
_ADDRESS = 1
# Control, capabilities, the identity, what was offered by both ends; then the maker's own.
_INITIAL = {
    0: 0x1140, 1: 0x796D, 2: 0x0141, 3: 0x0000, 4: 0x0DE1, 5: 0x45E1, 6: 0x0001,
    9: 0x0E00, 10: 0x3C00, 16: 0x0360, 17: 0xAC08, 20: 0x0D60, 21: 0x0000,
}  # fmt: skip
_WRITABLE = frozenset((0, 4, 9, 16, 20))


class Phy:
    """The transceiver at address 1. ``id`` is the second word of its identity.

    ``also`` are registers that this kind has besides, or has otherwise, and ``writable`` those that can be set.
    """

    vmstate = VmState(listed("_registers", kind=Number(2)))

    def __init__(self, id: int, also: dict[int, int] | None = None, writable: frozenset[int] = _WRITABLE) -> None:
        self._initial = _INITIAL | {3: id} | (also or {})
        self._writable = writable
        self.reset()

    def reset(self) -> None:
        """As after power-on; the link is as it was."""
        link = self.link if "_registers" in self.__dict__ else True
        self._registers = [self._initial.get(n, 0) for n in range(32)]
        self.link = link

    @property
    def link(self) -> bool:
        """Whether there is a partner."""
        return bool(self._registers[_STATUS] & _LINK)

    @link.setter
    def link(self, up: bool) -> None:
        for number, bits in ((_STATUS, _LINK | _NEGOTIATED), (_SPECIFIC_STATUS, _SPECIFIC_LINK)):
            value = self._registers[number]
            self._registers[number] = value | bits if up else value & ~bits

    def transact(self, request: int, before: int) -> int:
        """MDIC after ``request`` was written to it, where it was ``before``."""
        number, operation = request >> 16 & 31, request >> 26 & 3
        if request >> 21 & 31 != _ADDRESS:
            return before | _ERROR | _READY
        if operation not in (_OP_READ, _OP_WRITE):
            return request | _READY
        if number not in (self._initial if operation == _OP_READ else self._writable):
            return request | _ERROR | _READY
        if operation == _OP_READ:
            return request & ~0xFFFF | self._registers[number] | _READY
        value = request & 0xFFFF
        if number == _CONTROL and value & _RESET:
            self.reset()
        elif number == _CONTROL:
            self._registers[number] = value & ~_RESTART
        else:
            self._registers[number] = value
        return request | _READY
