"""A block layer with an NBD server that tests connect to over pairs of sockets, and a node that does as it is told."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qobra.block.export.nbd import serving
from qobra.block.export.nbd.server import NbdServer
from qobra.block.extents import COMPUTED, Extent
from qobra.block.layer import BlockLayer
from qobra.block.node import BlockNode, drivers
from qobra.nbd import Client, connect

MIB = 1 << 20


@drivers.register("test-told")
class ToldNode(BlockNode):
    """Bytes in memory. ``hold`` makes reads wait, ``failing`` names the operations that fail with an errno."""

    driver = "test-told"

    def open(self, opening: Any) -> None:
        self.data = bytearray(opening.options.get("size", MIB))
        self.length = len(self.data)
        self.hold: threading.Event | None = None
        self.entered = threading.Semaphore(0)
        self.failing: dict[str, int] = {}
        self.log: list[tuple[Any, ...]] = []

    def plain_filename(self, options: dict[str, Any]) -> str:
        return ""

    def map(self, offset: int, length: int, want_zero: bool = True) -> list[Extent]:
        return [Extent(length, COMPUTED)]

    def _begin(self, what: str, *details: Any) -> None:
        self.log.append((what, *details))
        if self.hold is not None and what == "read":
            self.entered.release()
            assert self.hold.wait(60)
        if what in self.failing:
            raise OSError(self.failing[what], errno.errorcode[self.failing[what]])

    def _read(self, offset: int, view: memoryview) -> None:
        self._begin("read", offset, len(view))
        view[:] = self.data[offset : offset + len(view)]

    def _write(self, offset: int, data: Any) -> None:
        self._begin("write", offset, len(data))
        self.data[offset : offset + len(data)] = data

    def _write_zeroes(self, offset: int, length: int, may_unmap: bool, no_fallback: bool) -> bool:
        self._begin("zero", offset, length, may_unmap, no_fallback)
        self.data[offset : offset + length] = bytes(length)
        return True

    def _discard(self, offset: int, length: int) -> None:
        self._begin("discard", offset, length)

    def _flush(self) -> None:
        self._begin("flush")

    def _truncate(self, length: int, preallocation: str, exact: bool) -> None:
        self.length = length


class Exporter:
    """A layer with a server, exports made by hand, and clients."""

    def __init__(self, tmp_path: Path) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.objects: dict[str, Any] = {}
        self.layer = BlockLayer(
            emit=lambda name, data: self.events.append((name, data or {})),
            find_object=lambda name, kind=None: self.objects.get(name),
        )
        self.layer.find_iothread = self.objects.get
        self.tmp_path = tmp_path
        self._servers: list[NbdServer] = []
        self._clients: list[Client] = []

    @property
    def exports(self) -> Any:
        return self.layer.exports

    def start(self, **options: Any) -> NbdServer:
        path = str(self.tmp_path / "nbd.sock")
        with self.layer.control:
            return self.exports.start_nbd_server({"type": "unix", "path": path}, **options)

    def file(self, name: str, content: bytes, **options: Any) -> BlockNode:
        """A raw node over a file of that content."""
        path = self.tmp_path / f"{name}.raw"
        path.write_bytes(content)
        file = {"driver": "file", "filename": str(path), "discard": "unmap"}
        return self.add({"driver": "raw", "node-name": name, "file": file, "discard": "unmap", **options})

    def told(self, name: str = "told", size: int = MIB, **options: Any) -> ToldNode:
        node = self.add({"driver": "test-told", "node-name": name, "size": size, "discard": "unmap", **options})
        assert isinstance(node, ToldNode)
        return node

    def add(self, options: dict[str, Any]) -> BlockNode:
        with self.layer.control:
            return self.layer.add_node(options)

    def export(self, node: str, **options: Any) -> Any:
        if self.exports.nbd_server is None:
            self.start()
        with self.layer.control:
            return self.exports.add({"type": "nbd", "id": node, "node-name": node, "writable": True, **options})

    def socket(self) -> socket.socket:
        """The client's end of a new connection."""
        ours, theirs = socket.socketpair()
        self.exports.nbd_server.serve(theirs)
        return ours

    def connect(self, export: str, **options: Any) -> Client:
        client = connect(self.socket(), export, timeout=60, **options)
        self._clients.append(client)
        return client

    def close(self) -> None:
        for client in self._clients:
            client.abort()
        with self.layer.control:
            self.layer.close()


@pytest.fixture(scope="session", params=["pure", "compiled"])
def form(request: pytest.FixtureRequest) -> str:
    """Which form of the loop serves the connections."""
    if request.param == "compiled" and serving.native is None:
        pytest.skip("the compiled form was not built")
    return str(request.param)


@pytest.fixture
def exporter(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Exporter]:
    monkeypatch.setattr(serving, "use_compiled", form == "compiled")
    made = Exporter(tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="session")
def make_exporter() -> type[Exporter]:
    """For tests that share an exporter; they close it."""
    return Exporter
