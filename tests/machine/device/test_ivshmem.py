"""Memory that machines share: by a backend, and by a server with doorbells."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qobra.errors import QobraError
from qobra.machine.launch import simple_machine
from qobra.machine.machine import Machine
from qobra.machine.plug import add_device
from qobra.qmp import dispatch, hmp
from qobra.testing.guest import BoardAccess, PciFunction
from qobra.testing.ivshmem import IvshmemServer, send
from qobra.testing.waiting import wait_until


def _plug(machine: Machine, options: dict[str, str]) -> PciFunction:
    with machine.control:
        add_device(machine, options | {"addr": "5"}, keyval=True)
    function = PciFunction(BoardAccess(machine), 5 << 3)
    function.enable()
    return function


@pytest.fixture
def machines() -> Iterator[list[Machine]]:
    made = [simple_machine(memory=16 << 20) for _ in range(2)]
    yield made
    for each in made:
        each.close()


def test_a_file_that_two_machines_map(machines: list[Machine], tmp_path: Path) -> None:
    functions = []
    for machine in machines:
        with machine.control:
            options = {"size": 1 << 20, "mem-path": str(tmp_path / "shared"), "share": True}
            machine.objects.create("memory-backend-file", "m", options)
        functions.append(_plug(machine, {"driver": "ivshmem-plain", "memdev": "m"}))
    first, second = (BoardAccess(machine) for machine in machines)
    first.write(functions[0].bars[2] + 100, b"hello")
    assert second.read(functions[1].bars[2] + 100, 5) == b"hello"


@pytest.mark.parametrize("master", ["on", "off"])
def test_whose_memory_is_others_too_stays(machines: list[Machine], master: str) -> None:
    machine = machines[0]
    with machine.control:
        machine.objects.create("memory-backend-ram", "m", {"size": 1 << 20, "share": True})
    _plug(machine, {"driver": "ivshmem-plain", "memdev": "m", "master": master})
    reason = "Migration is disabled when using feature 'peer mode' in device 'ivshmem'"
    with machine.control:
        if master == "on":
            assert "blocked-reasons" not in dispatch.call(machine, "query-migrate", {})
            return
        assert dispatch.call(machine, "query-migrate", {}) == {"blocked-reasons": [reason]}
        with pytest.raises(QobraError, match=reason):
            dispatch.call(machine, "migrate", {"uri": "exec:false"})
    assert hmp.execute(machine, "info migrate").splitlines() == ["Outgoing migration blocked:", f"  {reason}"]


def test_registers_without_interrupts(machines: list[Machine]) -> None:
    machine = machines[0]
    with machine.control:
        machine.objects.create("memory-backend-ram", "m", {"size": 1 << 20})
    function = _plug(machine, {"driver": "ivshmem-plain", "memdev": "m", "id": "it"})
    guest, base = BoardAccess(machine), function.bars[0]
    guest.store(base, 4, 0xFFFFFFFF)
    guest.store(base + 4, 4, 1)
    assert [guest.load(base + at, 4) for at in (0, 4, 4, 8)] == [0xFFFFFFFF, 1, 0, 0]
    guest.store(base + 12, 4, 8 << 16)
    assert guest.load(base, 1) == 0
    device: Any = machine.board.peripheral.children["it"]  # type: ignore[union-attr]
    assert device.migration_blocker() is not None
    with machine.control, pytest.raises(QobraError, match="already busy memdev: m"):
        add_device(machine, {"driver": "ivshmem-plain", "memdev": "m"}, keyval=True)


def _connect(machine: Machine, path: str) -> None:
    address = {"type": "unix", "data": {"path": path}}
    with machine.control:
        machine.chardevs.create("server", {"type": "socket", "data": {"addr": address, "server": False}})


def test_doorbells(machines: list[Machine], tmp_path: Path) -> None:
    server = IvshmemServer(tmp_path, vectors=3)
    guests = []
    for machine in machines:
        _connect(machine, server.path)
        function = _plug(machine, {"driver": "ivshmem-doorbell", "chardev": "server", "vectors": "2", "id": "it"})
        function.set_config(0x42, 2, 0x8000)  # messages on; each vector is masked, so that it is pending
        guests.append((BoardAccess(machine), function))
    (first, one), (second, two) = guests
    assert (first.load(one.bars[0] + 8, 4), second.load(two.bars[0] + 8, 4)) == (0, 1)
    pending = two.bars[1] + 0x800

    def rung(vectors: int) -> bool:
        first.store(one.bars[0] + 12, 4, 1 << 16 | 1)
        return second.load(pending, 4) == vectors

    wait_until(lambda: rung(2))
    first.store(one.bars[0] + 12, 4, 1 << 16 | 2)  # no such vector for this one
    first.store(one.bars[0] + 12, 4, 77 << 16)  # nobody
    first.store(one.bars[0] + 12, 4, 0)  # oneself
    wait_until(lambda: first.load(one.bars[1] + 0x800, 4) == 1)
    second.write(two.bars[2], b"shared")
    assert first.read(one.bars[2], 6) == os.pread(server.memory, 6, 0) == b"shared"
    with machines[1].control:
        device: Any = machines[1].board.peripheral.children["it"]  # type: ignore[union-attr]
        device.unparent()
    first.store(one.bars[0] + 12, 4, 1 << 16)
    server.close()


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([1], "server sent version 1, expecting 0"),
        ([0, -5], "server sent invalid ID message"),
        ([0, 1 << 40], "server sent invalid ID message"),
        ([0, 3, 1 << 20], "server sent invalid message"),
        ([0, 3], "the server closed the connection"),
    ],
)
def test_servers_that_break_the_protocol(
    machines: list[Machine], tmp_path: Path, messages: list[int], text: str
) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "bad"))
    listener.listen()

    def serve() -> None:
        connection, _address = listener.accept()
        for message in messages:
            send(connection, message)
        connection.close()

    thread = threading.Thread(target=serve)
    thread.start()
    _connect(machines[0], str(tmp_path / "bad"))
    with machines[0].control, pytest.raises(QobraError, match=text):
        add_device(machines[0], {"driver": "ivshmem-doorbell", "chardev": "server"}, keyval=True)
    thread.join()
    listener.close()
