"""The far end of a network backend, for tests: a card that only keeps what comes."""

from __future__ import annotations


class RecordingCard:
    """What a backend may have for its peer; see :class:`qobra.net.netdev.Peer`."""

    def __init__(self) -> None:
        self.packets: list[bytes] = []
        self.link_changes = 0

    def receive_packet(self, packet: bytes) -> None:
        """Keep a packet."""
        self.packets.append(packet)

    def link_changed(self) -> None:
        """Count how often the backend's link went down or up."""
        self.link_changes += 1


class RecordingWire:
    """What a card may have for its backend: keeps what is sent; see :class:`qobra.net.netdev.Netdev`."""

    link_up = True
    peer: object = None

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def take(self, packet: bytes) -> None:
        """Keep a packet."""
        self.sent.append(packet)

    def catch_up(self) -> None:
        """Nothing arrives here by itself."""
