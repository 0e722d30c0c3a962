"""Streams inside TLS, for which ``tls-creds`` names the credentials (``tls-hostname`` and ``tls-authz`` the peers)."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from qobra.chardev.layer.tls import TlsLayer
from qobra.errors import QobraError
from qobra.migration.channel import Channel

if TYPE_CHECKING:
    from qobra.machine.machine import Machine

_MAX_WRITE = 1 << 20
_HANDSHAKE_S = 30.0


class TlsChannel:
    """A channel inside a TLS session over ``channel``, of which this is the owner once it is made.

    One thread may read while another writes. Raises QobraError where no session comes about.
    """

    def __init__(self, channel: Channel, layer: TlsLayer) -> None:
        self._channel = channel
        self._layer = layer
        self._plain = bytearray()
        self._lock = threading.Lock()
        # What the session makes is sent in that order.
        self.two_way = True
        if not channel.two_way:
            raise QobraError("TLS handshake failed: the other side cannot answer")
        channel.write(layer.begin())
        while not layer.ready:
            if not channel.readable(_HANDSHAKE_S):
                raise QobraError("TLS handshake failed: the other side says nothing")
            if not self._feed():
                raise QobraError("TLS handshake failed: The TLS connection was non-properly terminated.")

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """As :meth:`Channel.write`."""
        view = memoryview(data).cast("B")
        for at in range(0, len(view), _MAX_WRITE):
            with self._lock:
                self._channel.write(self._layer.outgoing(bytes(view[at : at + _MAX_WRITE])))

    def read(self, length: int) -> bytes:
        """As :meth:`Channel.read`."""
        while len(self._plain) < length and self._feed():
            pass
        data = bytes(self._plain[:length])
        del self._plain[:length]
        return data

    def readable(self, timeout: float) -> bool:
        """As :meth:`Channel.readable`."""
        while not self._plain:
            if not self._channel.readable(timeout):
                return False
            if not self._feed():
                break
        return True

    def hang_up(self) -> None:
        """As :meth:`Channel.hang_up`."""
        self._channel.hang_up()

    def cancel(self) -> None:
        """As :meth:`Channel.cancel`."""
        self._channel.cancel()

    def close(self) -> None:
        """As :meth:`Channel.close`."""
        self._channel.close()

    def abort(self) -> None:
        """As :meth:`Channel.abort`."""
        self._channel.abort()

    def _feed(self) -> bool:
        # What comes goes through the session; false at the end.
        data = self._channel.receive() if not self._layer.ended else b""
        if not data:
            return False
        with self._lock:
            plain, answer = self._layer.incoming(data)
            if answer:
                self._channel.write(answer)
        self._plain += plain
        return True


def connect(machine: Machine, parameters: dict[str, Any], channel: Channel, hostname: str | None) -> TlsChannel:
    """The client's side of TLS over ``channel``, which leads to ``hostname``. Raises QobraError, OSError, GivenUp."""
    from qobra.block.nbd_tls import find_tls_creds

    context = find_tls_creds(machine.objects.find, parameters["tls-creds"]).client_context()
    name = parameters["tls-hostname"] or hostname
    if context.check_hostname and not name:
        raise QobraError("No hostname available for TLS")
    return TlsChannel(channel, TlsLayer(context, server=False, hostname=name))


def accept(machine: Machine, parameters: dict[str, Any], channel: Channel) -> TlsChannel:
    """The server's side of TLS over ``channel``. Raises QobraError, OSError, GivenUp."""
    from qobra.block.nbd_tls import find_tls_creds

    context = find_tls_creds(machine.objects.find, parameters["tls-creds"]).server_context()
    authz = parameters["tls-authz"]

    def check_peer(session: Any) -> None:
        from qobra.crypto.authz import is_allowed
        from qobra.crypto.identity import distinguished_name

        certificate = session.getpeercert(True)
        identity = distinguished_name(certificate) if certificate else ""
        if not is_allowed(machine.objects.find, authz, identity):
            raise QobraError(f"TLS x509 authz check for {identity} is denied")

    return TlsChannel(channel, TlsLayer(context, server=True, check_peer=check_peer if authz else None))
