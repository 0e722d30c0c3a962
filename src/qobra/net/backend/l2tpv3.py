"""``l2tpv3``: Ethernet over a static L2TPv3 tunnel (RFC 3931 and RFC 4719), over UDP or over IP itself."""

from __future__ import annotations

import socket
import struct
import threading

from qobra.errors import QobraError
from qobra.net.netdev import MAX_PACKET, Netdev, registry

_PROTOCOL = 115
_DATA = struct.Struct(">HH")
"""Over UDP: the flags and the version of a data message, and two bytes of nothing."""
_DATA_MESSAGE = 0x3
_IPV4_HEADER = 20


@registry.register("l2tpv3")
class L2tpv3Netdev(Netdev):
    """Both ends know sessions and cookies beforehand; what does not carry ours is no packet for us."""

    kind = "l2tpv3"

    def start(self) -> None:
        options = self.options
        self._udp: bool = options.get("udp", False)
        self._ipv6: bool = options.get("ipv6", False)
        self._counter = 0
        self._socket: socket.socket | None = None
        if self._udp and not ("srcport" in options and "dstport" in options):
            raise QobraError("l2tpv3_open : need both src and dst port for udp")
        width = ">Q" if options.get("cookie64") else ">I"
        try:
            self._their_cookie = struct.pack(width, options["txcookie"]) if "txcookie" in options else b""
            self._our_cookie = struct.pack(width, options["rxcookie"]) if "rxcookie" in options else b""
            self._their_session = struct.pack(">I", options["txsession"])
            self._our_session = struct.pack(">I", options.get("rxsession", options["txsession"]))
        except struct.error:
            raise QobraError("l2tpv3_open : a session or cookie does not fit in its field")
        self._padding = bytes(options.get("offset", 0))
        self._open()
        threading.Thread(target=self._read, name=f"net {self.id}", daemon=True).start()

    def _open(self) -> None:
        family = socket.AF_INET6 if self._ipv6 else socket.AF_INET
        kind, protocol = (socket.SOCK_DGRAM, 0) if self._udp else (socket.SOCK_RAW, _PROTOCOL)
        ends = {}
        for end in ("src", "dst"):
            port = self.options[f"{end}port"] if self._udp else None
            try:
                ends[end] = socket.getaddrinfo(self.options[end], port, family, kind)[0][4]
            except socket.gaierror as error:
                raise QobraError(f"l2tpv3_open : could not resolve {end}, errno = {error.strerror}")
        sock = None
        try:
            sock = socket.socket(family, kind, protocol)
            sock.bind(ends["src"])
            sock.connect(ends["dst"])
        except OSError as error:
            if sock is not None:
                sock.close()
            raise QobraError.from_os("l2tpv3_open : socket creation failed", error)
        self._socket = sock

    def describe(self) -> str:
        return "l2tpv3,l2tpv3: connected"

    def close(self) -> None:
        sock = self._socket
        if sock is not None:
            self._socket = None
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def send(self, packet: bytes) -> None:
        sock = self._socket
        if sock is None:
            return
        header = _DATA.pack(_DATA_MESSAGE, 0) if self._udp else b""
        header += self._their_session + self._their_cookie
        if self._counts:
            header += struct.pack(">I", self._counter)
            if not self.options.get("pincounter"):
                self._counter = (self._counter + 1) & 0xFFFFFFFF
        try:
            sock.send(header + self._padding + packet)
        except OSError:
            pass  # a network loses packets

    @property
    def _counts(self) -> bool:
        return bool(self.options.get("counter") or self.options.get("pincounter"))

    def _read(self) -> None:
        sock = self._socket
        assert sock is not None
        expected = self._our_session + self._our_cookie
        before = _DATA.size if self._udp else 0 if self._ipv6 else _IPV4_HEADER
        after = 4 * self._counts + len(self._padding)
        while self._socket is not None:
            try:
                data = sock.recv(MAX_PACKET)
            except ConnectionError:
                continue  # nobody at the other end yet
            except OSError:
                break
            end = before + len(expected)
            if data[before:end] == expected:
                self.deliver(data[end + after :])
        sock.close()
