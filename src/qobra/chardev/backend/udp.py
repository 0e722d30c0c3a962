"""``udp``: datagrams to one peer, and from whoever sends to the local port."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING, Any

from qobra.chardev import address
from qobra.chardev.chardev import Chardev, registry
from qobra.errors import QobraError

if TYPE_CHECKING:
    from qobra.machine.machine import Machine

_MAX_DATAGRAM = 65536


@registry.register("udp")
class UdpChardev(Chardev):
    """A datagram socket. What is written goes out as datagrams, and may be lost."""

    kind = "udp"

    def __init__(self, machine: Machine, id: str, options: dict[str, Any]) -> None:
        super().__init__(machine, id, options)
        self._socket: socket.socket | None = None

    def start(self) -> None:
        remote = self.options["remote"]
        local = self.options.get("local")
        for each in (remote, local):
            if each is not None and each["type"] != "inet":
                raise QobraError("socket type unsupported for datagram")
        family, peer = address.resolve(remote["data"], passive=False, datagram=True)[0]
        sock = socket.socket(family, socket.SOCK_DGRAM)
        try:
            if local is not None:
                sock.bind(self._local_name(local["data"], family))
            sock.connect(peer)
        except OSError as error:
            sock.close()
            shown = f"{remote['data'].get('host', '')}:{remote['data']['port']}"
            raise QobraError.from_os(f"Failed to connect to '{shown}'", error)
        except QobraError:
            sock.close()
            raise
        self._socket = sock
        self.set_open(True)
        threading.Thread(target=self._read, args=(sock,), name=f"chardev {self.id}", daemon=True).start()

    def _local_name(self, data: dict[str, Any], family: int) -> Any:
        found = address.resolve(data, passive=True, datagram=True)
        names = [name for each, name in found if each == family]
        if not names:
            raise QobraError(f"address resolution failed for {data.get('host', '')}:{data.get('port', '')}")
        return names[0]

    def stop(self) -> None:
        if self._socket is not None:
            try:
                self._socket.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def _read(self, sock: socket.socket) -> None:
        while not self.closed and self.room():
            try:
                data = sock.recv(_MAX_DATAGRAM)
            except ConnectionRefusedError:
                continue  # an earlier datagram found nobody
            except OSError:
                break
            if not self.closed:
                self.deliver(data)
        self._socket = None
        sock.close()

    def transmit(self, data: bytes) -> int:
        sock = self._socket
        if sock is not None:
            try:
                sock.send(data[:_MAX_DATAGRAM], socket.MSG_DONTWAIT)
            except OSError:
                pass
        return len(data)
