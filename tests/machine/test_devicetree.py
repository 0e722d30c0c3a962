"""Device trees: what is written can be read, what is damaged is refused; and what `virt` starts with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from struct import pack, unpack_from
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qobra.errors import QobraError
from qobra.machine import devicetree
from qobra.machine.launch import attach_board, find_board
from qobra.machine.machine import Machine


def _sample() -> devicetree.Node:
    root = devicetree.Node()
    root.text("compatible", "a", "bc")
    root.child("cpus").cells("reg", 1, devicetree.wide(1 << 32))
    root.child("cpus").child("cpu@0").flag("there")
    return root


def _plain(node: devicetree.Node) -> tuple[dict[str, bytes], dict[str, Any]]:
    return node.properties, {name: _plain(child) for name, child in node.children.items()}


def test_a_tree_comes_back() -> None:
    blob = devicetree.flatten(_sample())
    assert _plain(devicetree.parse(blob)) == _plain(_sample())
    assert _plain(devicetree.parse(blob))[1]["cpus"][0] == {"reg": pack(">III", 1, 1, 0)}


@given(st.data())
def test_damaged_trees_are_refused_or_read(data: st.DataObject) -> None:
    blob = bytearray(devicetree.flatten(_sample()))
    for _ in range(data.draw(st.integers(1, 4))):
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    try:
        devicetree.parse(bytes(blob[: data.draw(st.integers(0, len(blob)))]))
    except QobraError as error:
        assert error.desc.startswith("FDT_ERR_")


@pytest.fixture
def start() -> Iterator[Callable[..., Machine]]:
    made: list[Machine] = []

    def start(**properties: Any) -> Machine:
        machine = Machine(capabilities=frozenset(("board", "riscv64")))
        made.append(machine)
        with machine.control:
            board = attach_board(machine, find_board("riscv64", "virt"))
            for name, value in ({"firmware": "none"} | properties).items():
                board.set(name, value)
            board.set_topology({"cpus": 2})
            board.set_memory(64 << 20)
            board.start()
            board.finish()
        return machine

    yield start
    for each in made:
        each.close()


def _found_tree(board: Any) -> devicetree.Node:
    place = unpack_from("<Q", board.mrom.view, 32)[0]
    size = int.from_bytes(board.memory.read(place + 4, 4), "big")
    return devicetree.parse(bytes(board.memory.read(place, size)))


def _elf(address: int, code: bytes, room: int, entry: int) -> bytes:
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + pack(
        "<HHIQQQIHHHHHH", 2, 243, 1, entry, 64, 0, 0, 64, 56, 1, 0, 0, 0
    )
    return header + pack("<IIQQQQQQ", 1, 5, 120, 0, address, len(code), room, 8) + code


def test_a_kernel_and_its_tree(start: Callable[..., Machine], tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(b"code" * 100)
    (tmp_path / "initrd").write_bytes(b"disk" * 100)
    machine = start(kernel=str(tmp_path / "kernel"), initrd=str(tmp_path / "initrd"), append="quiet")
    board: Any = machine.board
    first, _tree, _magic, _version, entry, mode = unpack_from("<6Q", board.mrom.view, 24)
    assert (first, entry, mode) == (0x80000000, 0x80000000, 1)
    chosen = _found_tree(board).child("chosen").properties
    assert chosen["bootargs"] == b"quiet\0"
    place = int.from_bytes(chosen["linux,initrd-start"], "big")
    assert int.from_bytes(chosen["linux,initrd-end"], "big") == place + 400
    assert bytes(board.memory.read(place, 4)) == b"disk"
    with machine.control:
        board.memory.write(0x80000000, b"gone")
        board.reset_all()
        assert bytes(board.memory.read(0x80000000, 4)) == b"code"


def test_programs_go_where_they_say(start: Callable[..., Machine], tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(_elf(0x80400000, b"text", 12, 0x80400004))
    machine = start(kernel=str(tmp_path / "kernel"))
    board: Any = machine.board
    assert unpack_from("<Q", board.mrom.view, 56)[0] == 0x80400004
    assert bytes(board.memory.read(0x80400000, 12)) == b"text".ljust(12, b"\0")


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("firmware", None, "Unable to load the RISC-V firmware"),
        ("kernel", bytes(65 << 20), "could not load kernel"),
        ("kernel", _elf(0x1000, b"", 1 << 40, 0), "could not load kernel"),
        ("kernel", _elf(0x80000000, b"", 0, 0)[:90], "could not load kernel"),
        ("dtb", b"nonsense" * 10, "FDT_ERR_BADMAGIC"),
        ("dtb", None, "Unable to get size of device tree file"),
    ],
)
def test_refusals(start: Callable[..., Machine], tmp_path: Path, name: str, data: bytes | None, reason: str) -> None:
    path = tmp_path / "file"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(QobraError, match=reason):
        start(**{name: str(path)})


def test_nodes_of_memory_and_cpus() -> None:
    machine = Machine(capabilities=frozenset(("board", "riscv64")))
    with machine.control:
        board = attach_board(machine, find_board("riscv64", "virt"))
        board.set("firmware", "none")
        board.set_topology({"cpus": 2})
        for number in range(2):
            machine.objects.create("memory-backend-ram", f"m{number}", {"size": 32 << 20})
            board.numa.set({"type": "node", "nodeid": number, "memdev": f"m{number}"})
        board.numa.set({"type": "dist", "src": 0, "dst": 1, "val": 30})
        board.set_memory(64 << 20)
        board.start()
        board.finish()
        assert [cpu.describe_fast()["props"] for cpu in board.cpus] == [
            {"core-id": number, "node-id": number} for number in (0, 1)
        ]
        root = _found_tree(board)
    nodes = [name for name in root.children if name.startswith("memory@")]
    assert nodes == ["memory@80000000", "memory@82000000"]
    assert [root.children[name].properties["numa-node-id"] for name in nodes] == [pack(">I", n) for n in (0, 1)]
    assert root.child("cpus").child("cpu@1").properties["numa-node-id"] == pack(">I", 1)
    matrix = unpack_from(">12I", root.child("distance-map").properties["distance-matrix"])
    assert matrix == (0, 0, 10, 0, 1, 30, 1, 0, 30, 1, 1, 10)
    machine.close()


def test_the_users_own_tree(start: Callable[..., Machine], tmp_path: Path) -> None:
    path = tmp_path / "tree"
    path.write_bytes(devicetree.flatten(_sample()))
    machine = start(dtb=str(path))
    assert _found_tree(machine.board).properties["compatible"] == b"a\0bc\0"
