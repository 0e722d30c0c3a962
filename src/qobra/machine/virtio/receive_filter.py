"""Which packets a driver of virtio-net wants (virtio 1.2, section 5.1.6.5): modes, addresses and VLANs."""

from __future__ import annotations

from typing import Any

from qobra.machine.vmstate import Field, NumberSet, Raw, VmState, flag, listed

VLANS = 4096
_MODES = ("promiscuous", "all_multicast", "all_unicast", "no_multicast", "no_unicast", "no_broadcast")
"""By the number of the command that sets them."""
_MAX_TABLE = 64
"""Addresses in both tables; a table with more counts as one that holds all."""
_ADDRESS = 6
_BROADCAST = b"\xff" * _ADDRESS
_TAG = b"\x81\x00"


class ReceiveFilter:
    """The filter of a card. What a driver asks for is refused with False, and changes nothing then."""

    vmstate = VmState(
        flag(*_MODES),
        flag("unicast_overflow", "multicast_overflow"),
        listed("unicast", "multicast", kind=Raw(_ADDRESS), maximum=_MAX_TABLE),
        Field("vlans", NumberSet(VLANS)),
    )

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Let everything in."""
        self.promiscuous, self.all_multicast, self.all_unicast = True, False, False
        self.no_multicast = self.no_unicast = self.no_broadcast = False
        self.unicast: list[bytes] = []
        self.multicast: list[bytes] = []
        self.unicast_overflow = self.multicast_overflow = False
        self.vlans: set[int] = set()

    def accepts(self, packet: bytes, address: bytes) -> bool:
        """Whether the card whose address is ``address`` takes ``packet``. From any thread."""
        if self.promiscuous:
            return True
        target = packet[:_ADDRESS]
        if packet[12:14] == _TAG and int.from_bytes(packet[14:16], "big") & (VLANS - 1) not in self.vlans:
            return False
        if target[:1] and target[0] & 1:
            if target == _BROADCAST:
                return not self.no_broadcast
            if self.no_multicast:
                return False
            return self.all_multicast or self.multicast_overflow or target in self.multicast
        if self.no_unicast:
            return False
        return self.all_unicast or self.unicast_overflow or target == address or target in self.unicast

    def set_mode(self, number: int, data: bytes) -> bool:
        """Switch a mode, as the first byte of ``data`` says."""
        if number >= len(_MODES) or not data:
            return False
        setattr(self, _MODES[number], bool(data[0]))
        return True

    def set_vlan(self, number: int, data: bytes) -> bool:
        """Let a VLAN in (``number`` 0) or no more (1)."""
        vlan = int.from_bytes(data[:2], "little")
        if len(data) < 2 or vlan >= VLANS or number > 1:
            return False
        (self.vlans.add if number == 0 else self.vlans.discard)(vlan)
        return True

    def set_tables(self, data: bytes) -> bool:
        """Replace the tables: of each its length (4 bytes, little-endian) and the addresses."""
        tables = []
        for _ in range(2):
            count = int.from_bytes(data[:4], "little")
            if len(data) < 4 + _ADDRESS * count:
                return False
            tables.append([data[4 + _ADDRESS * i : 4 + _ADDRESS * (i + 1)] for i in range(count)])
            data = data[4 + _ADDRESS * count :]
        if data:
            return False
        unicast, multicast = tables
        self.unicast_overflow = len(unicast) > _MAX_TABLE
        self.unicast = [] if self.unicast_overflow else unicast
        self.multicast_overflow = len(multicast) + len(self.unicast) > _MAX_TABLE
        self.multicast = [] if self.multicast_overflow else multicast
        return True

    def describe(self, *, vlans_filtered: bool) -> dict[str, Any]:
        """What RxFilterInfo says of it."""

        def state(none: bool, all_of_it: bool) -> str:
            return "none" if none else "all" if all_of_it else "normal"

        return {
            "promiscuous": self.promiscuous,
            "multicast": state(self.no_multicast, self.all_multicast),
            "unicast": state(self.no_unicast, self.all_unicast),
            "vlan": "normal" if vlans_filtered else "all",
            "broadcast-allowed": not self.no_broadcast,
            "multicast-overflow": self.multicast_overflow,
            "unicast-overflow": self.unicast_overflow,
            "vlan-table": sorted(self.vlans if vlans_filtered else range(VLANS), reverse=True),
            "unicast-table": [each.hex(":") for each in self.unicast],
            "multicast-table": [each.hex(":") for each in self.multicast],
        }
