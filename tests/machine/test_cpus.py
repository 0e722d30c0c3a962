"""CPUs: topology from options, and plugging more in."""

from __future__ import annotations

from typing import Any

import pytest

from qobra.errors import QobraError
from qobra.machine.cpu import Topology
from qobra.machine.launch import attach_board, find_board, simple_machine
from qobra.machine.machine import Machine
from qobra.qmp import dispatch
from qobra.testing.guest import BoardAccess

_SECOND = {"socket-id": 1, "core-id": 0, "thread-id": 0}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (1, 1, 1, 1, 1, 1)),
        ({"cpus": 4}, (4, 4, 1, 1, 4, 1)),
        ({"cpus": 4, "sockets": 2}, (4, 4, 2, 1, 2, 1)),
        ({"cpus": 2, "maxcpus": 8, "sockets": 2, "threads": 2}, (2, 8, 2, 1, 2, 2)),
        ({"cores": 2, "threads": 2}, (4, 4, 1, 1, 2, 2)),
        ({"cpus": 8, "dies": 2, "cores": 2}, (8, 8, 2, 2, 2, 1)),
    ],
)
def test_topology(options: dict[str, int], expected: tuple[int, ...]) -> None:
    t = Topology.from_options(options, dies_supported=True, limit=255, board="b")
    assert (t.cpus, t.max_cpus, t.sockets, t.dies, t.cores, t.threads) == expected


@pytest.fixture
def machine() -> Any:
    machine = Machine(capabilities=frozenset(("board", "x86_64")))
    with machine.control:
        board = attach_board(machine, find_board("x86_64", "pc"))
        board.set_topology({"cpus": 1, "maxcpus": 4, "sockets": 2, "cores": 2})
        board.set_memory(1 << 20)
        board.start()
        board.finish()
    yield machine
    machine.close()


def _call(machine: Machine, command: str, **arguments: Any) -> Any:
    with machine.control:
        return dispatch.call(machine, command, {key.replace("_", "-"): value for key, value in arguments.items()})


def test_hot_plug(machine: Machine) -> None:
    places = _call(machine, "query-hotpluggable-cpus")
    assert [("qom-path" in place, place["props"]) for place in places] == [
        (False, {"socket-id": 1, "core-id": 1, "thread-id": 0}),
        (False, {"socket-id": 1, "core-id": 0, "thread-id": 0}),
        (False, {"socket-id": 0, "core-id": 1, "thread-id": 0}),
        (True, {"socket-id": 0, "core-id": 0, "thread-id": 0}),
    ]
    place = places[0]
    with machine.control:
        dispatch.call(machine, "device_add", {"driver": place["type"], "id": "c3"} | place["props"])
    _call(machine, "cpu-add", id=1)
    cpus = _call(machine, "query-cpus-fast")
    assert [(cpu["cpu-index"], cpu["qom-path"]) for cpu in cpus] == [
        (0, "/machine/unattached/device[0]"),
        (3, "/machine/peripheral/c3"),
        (1, "/machine/peripheral-anon/device[0]"),
    ]
    assert [each.get("qom-path") is not None for each in _call(machine, "query-hotpluggable-cpus")] == [
        True, False, True, True,
    ]  # fmt: skip
    # A device has as many queues as the board began with CPUs, or it would not fit after a migration.
    _call(machine, "device_add", driver="virtio-scsi-pci", id="s")
    assert _call(machine, "qom-get", path="s", property="num_queues") == 1


def test_what_cpus_are(machine: Machine) -> None:
    _call(machine, "cpu-add", id=1)
    first, second = _call(machine, "query-cpus")
    assert first == {
        "CPU": 0, "current": True, "halted": False, "qom_path": "/machine/unattached/device[0]", "arch": "x86",
        "thread_id": first["thread_id"], "pc": 0xFFFFFFF0, "props": {"socket-id": 0, "core-id": 0, "thread-id": 0},
    }  # fmt: skip
    # The others of a PC wait for the first to start them.
    assert (second["halted"], second["current"], second["props"]["core-id"]) == (True, False, 1)
    fast = _call(machine, "query-cpus-fast")[1]
    assert (fast["arch"], fast["target"], fast["props"]) == ("x86", "x86_64", second["props"])


def test_harts_begin_at_the_reset_vector() -> None:
    machine = simple_machine("riscv64", "virt", memory=1 << 20)
    (hart,) = _call(machine, "query-cpus")
    assert (hart["arch"], hart["pc"], hart["halted"]) == ("riscv", 0x1000, False)
    assert _call(machine, "query-cpus-fast")[0]["arch"] == "riscv"
    machine.close()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"socket-id": 0, "core-id": 0, "thread-id": 0}, "CPU[0] with APIC ID 0 exists"),
        ({"core-id": 0, "thread-id": 0}, "CPU socket-id is not set"),
        ({"socket-id": 9, "core-id": 0, "thread-id": 0}, "Invalid CPU socket-id: 9 must be in range 0:1"),
        ({"driver": "max-x86_64-cpu"}, "Invalid CPU type, expected cpu type: 'qemu64-x86_64-cpu'"),
    ],
)
def test_refusals(machine: Machine, options: dict[str, Any], text: str) -> None:
    with pytest.raises(QobraError) as caught, machine.control:
        dispatch.call(machine, "device_add", {"driver": "qemu64-x86_64-cpu", "id": "c"} | options)
    assert caught.value.desc == text
    assert len(_call(machine, "query-cpus-fast")) == 1
    with pytest.raises(QobraError, match="it already exists"):
        _call(machine, "cpu-add", id=0)
    with pytest.raises(QobraError, match="Boot CPU is unpluggable"):
        _call(machine, "device_del", id="/machine/unattached/device[0]")


def test_a_guest_lets_go_of_a_cpu(machine: Machine) -> None:
    guest, base, events = BoardAccess(machine), 0xAF00, 0xAFE0
    seen: list[tuple[str, Any]] = []
    machine.events.subscribe(lambda event: seen.append((event["event"], event.get("data"))))
    with pytest.raises(QobraError, match="unplug request for not supported device type: qemu64-x86_64-cpu"):
        _call(machine, "device_add", driver="qemu64-x86_64-cpu", id="c2", **_SECOND)
        _call(machine, "device_del", id="c2")
    assert guest.port_in(base, 1) == 0b101  # the map, by APIC ids
    assert guest.port_in(events, 1) == 1 << 2
    guest.port_out(base, 4, 0)
    _call(machine, "device_del", id="c2")
    guest.port_out(base + 5, 1, 0)
    assert guest.port_in(base + 8, 4) == 2  # the CPU with something to tell
    assert guest.port_in(base + 4, 1) == 0b101
    guest.port_out(base + 4, 1, 8)
    assert [cpu["cpu-index"] for cpu in _call(machine, "query-cpus-fast")] == [0]
    assert ("DEVICE_DELETED", {"device": "c2", "path": "/machine/peripheral/c2"}) in seen
    guest.port_out(base + 5, 1, 1)
    guest.port_out(base + 8, 4, 3)
    guest.port_out(base + 5, 1, 2)
    guest.port_out(base + 8, 4, 0x80)
    report = {"slot": "2", "slot-type": "CPU", "source": 3, "status": 0x80}
    assert seen[-1] == ("ACPI_DEVICE_OST", {"info": report})
    assert _call(machine, "query-acpi-ospm-status")[-2] == report
    _call(machine, "device_add", driver="qemu64-x86_64-cpu", id="c2", **_SECOND)
    guest.port_out(base + 5, 1, 0)
    assert guest.port_in(base + 4, 1) == 0b011
