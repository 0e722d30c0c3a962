"""VNC servers of a machine: where they listen, their passwords, their clients."""

from __future__ import annotations

import errno
import itertools
import os
import socket
import threading
from typing import TYPE_CHECKING, Any

from qobra.chardev import address
from qobra.chardev.layer.websocket import WebSocketLayer
from qobra.display.console import Console
from qobra.display.vnc import options as parse
from qobra.display.vnc.client import Input, VncClient
from qobra.display.vnc.handshake import Admission
from qobra.display.vnc.security import Security
from qobra.display.vnc.wire import Gone, Wire, basic_info
from qobra.errors import DEVICE_NOT_ACTIVE, QobraError
from qobra.socket_address import serves_ipv6_only

if TYPE_CHECKING:
    from collections.abc import Iterator

    from qobra.display.vnc.updates import Updates
    from qobra.machine.board import Board
    from qobra.machine.machine import Machine

DEFAULT_ID = "default"
_CONNECTING = 32
"""How many clients may be on their way in."""
_MOST_CLIENTS = 128
"""How many may look on: each takes threads and pictures of its own."""
_PAUSE = 0.1


class VncServer:
    """A server as ``-vnc`` describes it. Its sockets accept in threads; all that decides runs in the control strand."""

    def __init__(self, machine: Machine, id: str, options: dict[str, Any]) -> None:
        """Check ``options``, and listen, or connect with ``reverse``. Raises QobraError."""
        self._machine = machine
        self.id = id
        self._options = options
        self._share = parse.share(options)
        self.security = Security(machine, options)
        self._audiodev = machine.audiodevs.find(options["audiodev"]) if "audiodev" in options else None
        if "audiodev" in options and self._audiodev is None:
            raise QobraError(f"Audiodev '{options['audiodev']}' not found")
        if "display" in options:
            self._console()
        self._sockets: list[socket.socket] = []
        self._web_sockets: list[socket.socket] = []
        self._connecting: list[VncClient] = []
        self._clients: list[VncClient] = []
        self._views: list[Updates] = []
        self._board.consoles.on_selected.append(self._follow)
        self._closed = False
        self._pause = threading.Event()
        self._open(parse.addresses(options))

    def _open(self, where: dict[str, Any] | None) -> None:
        web = parse.web_addresses(self._options, where)
        if where is None:
            return
        if self._options.get("reverse"):
            self._welcome(socket.socket(fileno=address.connect(self._machine, where).detach()))
            return
        self._sockets = _listen(self._machine, where)
        if web is not None:
            try:
                self._web_sockets = _listen(self._machine, web)
            except QobraError:
                self._stop_listening()
                raise
        for each in self._sockets:
            threading.Thread(target=self._accept, args=(each, False), name=f"vnc {self.id}", daemon=True).start()
        for each in self._web_sockets:
            threading.Thread(target=self._accept, args=(each, True), name=f"vnc {self.id} web", daemon=True).start()

    # -- clients

    def _accept(self, listener: socket.socket, web: bool) -> None:
        while True:
            try:
                sock, _peer = listener.accept()
            except OSError:
                if listener not in (*self._sockets, *self._web_sockets):
                    listener.close()
                    return
                self._pause.wait(_PAUSE)  # out of descriptors, which may pass
                continue
            with self._machine.control:
                self._welcome(sock, web=web)

    def _welcome(self, sock: socket.socket, *, known: bool = False, web: bool = False) -> None:
        """A new connection, over a WebSocket if ``web``; one that is ``known`` needs no password."""
        try:
            target = Input(self._input, self._takes_places, self._select)
            client = VncClient(Wire(sock), target, websocket=web)
        except OSError:  # gone already
            sock.close()
            return
        if self._closed:
            client.wire.close()
            return
        self._connecting.append(client)
        if len(self._connecting) > self._options.get("connections", _CONNECTING):
            # Nobody keeps others out by saying nothing.
            self._connecting.pop(0).close()
        self._emit("VNC_CONNECTED", client)
        threading.Thread(target=self._run, args=(client, known), name=f"vnc {self.id} client", daemon=True).start()

    def adopt(self, fd: int, *, known: bool) -> None:
        """add_client: a client on a socket that somebody else accepted."""
        self._welcome(socket.socket(fileno=fd), known=known)

    def _admit(self, client: VncClient, known: bool) -> None:
        """Let ``client`` in, or raise Gone."""
        security = self.security
        admission = Admission(client.wire, security)
        if client.info["websocket"]:
            if security.creds is not None:
                admission.secure()
            client.wire.add(WebSocketLayer())
        admission.welcome(security.inner if client.info["websocket"] else "none" if known else security.auth)
        if admission.certified is not None:
            client.info["x509_dname"] = admission.certified
        if admission.user is not None:
            client.info["sasl_username"] = admission.user

    def _run(self, client: VncClient, known: bool) -> None:
        updates = None
        try:
            self._admit(client, known)
            client.shared = client.wire.number(1) != 0
            with self._machine.control:
                if client not in self._connecting or not self._make_room(client):
                    raise Gone
                updates = client.look_at(self._console(), self._machine.control, self._audiodev)
                self._views.append(updates)
                self._connecting.remove(client)
                self._clients.append(client)
                self._emit("VNC_INITIALIZED", client)
            client.serve(self._name())
        except (Gone, QobraError):
            pass
        finally:
            client.close()
            with self._machine.control:
                if updates is not None:
                    self._views.remove(updates)
                    client.leave()
                for group in (self._connecting, self._clients):
                    if client in group:
                        group.remove(client)
                self._emit("VNC_DISCONNECTED", client)
            client.wire.close()

    def _make_room(self, client: VncClient) -> bool:
        """Whether ``client`` may come in beside the others, which leave if it may have the screen for itself."""
        if len(self._clients) >= _MOST_CLIENTS and (client.shared or self._share != "allow-exclusive"):
            return False
        if self._share == "ignore" or (self._share == "force-shared" and client.shared):
            return True
        if self._share == "force-shared":
            return False
        if client.shared:
            return all(each.shared for each in self._clients)
        self.disconnect()
        return True

    def disconnect(self) -> None:
        """Have all clients that are in leave."""
        for client in tuple(self._clients):
            client.close()

    def _input(self, events: list[dict[str, Any]]) -> None:
        with self._machine.control:
            self._board.input.deliver(events, self._console_of_input())

    def _takes_places(self) -> bool:
        return self._board.input.is_absolute(self._console_of_input())

    def _console_of_input(self) -> Console | None:
        return self._console() if "display" in self._options else None

    def _console(self) -> Console:
        id = self._options.get("display")
        consoles = self._board.consoles
        if id is not None:
            return consoles.find(self._board.peripheral.children.get(id), self._options.get("head", 0), id)
        return consoles.active() or Console(None, 0)

    def _select(self, number: int) -> None:
        if "display" not in self._options:
            with self._machine.control:
                self._board.consoles.select(number)

    def _follow(self) -> None:
        """Another console is shown."""
        if "display" not in self._options:
            for updates in self._views:
                updates.look_at(self._console())

    @property
    def _board(self) -> Board:
        board = self._machine.board
        assert board is not None
        return board

    def _name(self) -> str:
        return f"QEMU ({self._machine.name})" if self._machine.name else "QEMU"

    @property
    def has_clients(self) -> bool:
        """Whether somebody looks on."""
        return bool(self._clients)

    # -- what is told

    def _emit(self, event: str, client: VncClient) -> None:
        sock = self._sockets[0] if self._sockets else client.wire.sock
        server = {**_own_end(sock, False), "auth": self.security.text}
        self._machine.events.emit(event, {"server": server, "client": dict(client.info)})

    def listens_at(self) -> dict[str, Any] | None:
        """VncServerInfo of the first socket; None without one."""
        return {**_own_end(self._sockets[0], False), "auth": self.security.text} if self._sockets else None

    def servers(self) -> list[dict[str, Any]]:
        """VncServerInfo2 of each socket, those of WebSockets first and the latest first among each."""
        return [
            {**_own_end(each, web), **self.security.describe(websocket=web)}
            for sockets, web in ((self._web_sockets, True), (self._sockets, False))
            for each in reversed(sockets)
        ]

    def clients(self) -> list[dict[str, Any]]:
        """VncClientInfo of all that are connected."""
        return [dict(client.info) for client in (*self._clients, *self._connecting)]

    def describe(self) -> dict[str, Any]:
        """VncInfo2 of the reference."""
        info = {"id": self.id, "server": self.servers(), "clients": self.clients()}
        info |= self.security.describe()
        if "display" in self._options:
            info["display"] = self._options["display"]
        return info

    def close(self) -> None:
        """Listen no more, and have everybody leave."""
        self._closed = True
        if self._follow in (listeners := self._board.consoles.on_selected):
            listeners.remove(self._follow)
        for client in (*self._clients, *self._connecting):
            client.close()
        self._stop_listening()

    def move(self, where: str) -> None:
        """Listen at ``where`` from now on. Raises QobraError; where that is no address, all is as it was."""
        place = parse.addresses({**self._options, "vnc": where})
        self._stop_listening()
        self._open(place)

    def _stop_listening(self) -> None:
        stopped = [*self._sockets, *self._web_sockets]
        self._sockets, self._web_sockets = [], []
        for each in stopped:
            path = each.getsockname() if each.family == socket.AF_UNIX else None
            try:
                each.shutdown(socket.SHUT_RDWR)
                if path:
                    os.unlink(path)
            except OSError:
                pass


class VncServers:
    """The servers of one machine."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._servers: dict[str, VncServer] = {}

    def __iter__(self) -> Iterator[VncServer]:
        return iter(tuple(self._servers.values()))

    def open(self, options: dict[str, Any]) -> None:
        """Add the server that ``options``, those of ``-vnc``, describe. Raises QobraError."""
        id = options.get("id") or self._free_id()
        if id in self._servers:
            raise QobraError(f"Duplicate ID '{id}' for vnc")
        self._servers[id] = VncServer(self._machine, id, options)

    def change(self, where: str) -> None:
        """Have the first server listen at ``where`` instead, in the form of ``-vnc``. Raises QobraError."""
        server = self.first()
        if server is None:
            raise QobraError("VNC is not in use", DEVICE_NOT_ACTIVE)
        server.move(where)

    def _free_id(self) -> str:
        names = itertools.chain((DEFAULT_ID,), (f"vnc{number}" for number in itertools.count(2)))
        return next(name for name in names if name not in self._servers)

    def first(self) -> VncServer | None:
        """The server that commands mean which name none."""
        return next(iter(self), None)

    def close(self) -> None:
        """Close all of them."""
        for server in self:
            server.close()
        self._servers.clear()


def _own_end(sock: socket.socket, websocket: bool) -> dict[str, Any]:
    """VncBasicInfo of the end that ``sock`` is bound to."""
    try:
        return basic_info(sock, sock.getsockname(), websocket=websocket)
    except OSError:
        return {"host": "", "service": "", "family": "unknown", "websocket": websocket}


def _listen(machine: Machine, where: dict[str, Any]) -> list[socket.socket]:
    """A socket for each address that ``where`` stands for."""
    data = where["data"]
    if where["type"] != "inet":
        return [socket.socket(fileno=address.listen(machine, where).detach())]
    first = int(data["port"])
    failure = QobraError("Failed to create a socket")
    for port in range(first, data.get("to", first) + 1):
        opened: list[socket.socket] = []
        try:
            found = address.resolve({**data, "port": str(port)}, passive=True)
            only_v6 = serves_ipv6_only(data, {family for family, _name in found})
            for family, name in found:
                opened.append(_bind(family, name, only_v6))
            return opened
        except OSError as error:
            for each in opened:
                each.close()
            text = "Failed to find an available port" if error.errno in _TAKEN else "Failed to bind socket"
            failure = QobraError.from_os(text, error)
            if error.errno not in _TAKEN:
                break
    raise failure


_TAKEN = frozenset((errno.EADDRINUSE,))


def _bind(family: int, name: Any, only_v6: bool) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(only_v6))
        sock.bind(name)
        sock.listen(1)
    except OSError:
        sock.close()
        raise
    return sock
