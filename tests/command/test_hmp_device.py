"""Devices, objects and backends in the human monitor: what it tells of them, and descriptors that it is given."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qobra.machine.launch import simple_machine
from qobra.machine.plug import find_device
from qobra.qmp import hmp


@pytest.fixture
def machine() -> Iterator[Any]:
    machine = simple_machine("x86_64", "pc", memory=2 << 20)
    yield machine
    machine.close()


def _run(machine: Any, line: str, monitor: hmp.HmpMonitor | None = None) -> str:
    return hmp.execute(machine, line, monitor).replace("\r\n", "\n")


def test_what_there_is_to_add(machine: Any) -> None:
    assert 'name "virtio-rng-pci", bus PCI, alias "virtio-rng"' in _run(machine, "device_add help")
    assert _run(machine, "device_add e1000,help").startswith("e1000 options:\n  acpi-index=<uint32>")
    assert _run(machine, "device_add nope,?") == "Device 'nope' not found\n"
    assert "\nhubport\n" in _run(machine, "netdev_add help")
    assert "  iothread\n" in _run(machine, "object_add help")
    assert "  poll-max-ns=<int>\n" in _run(machine, "object_add iothread,help")


def test_backends_that_cannot_be(machine: Any) -> None:
    again = 'Try "help netdev_add" for more information\n'
    assert _run(machine, "netdev_add") == "Error: Parameter 'id' is missing\n"
    assert _run(machine, "netdev_add hubport,id=a,hubid=1") == ""
    assert _run(machine, "netdev_add hubport,id=a,hubid=1") == again
    assert _run(machine, "netdev_add hubport,id=1,hubid=1") == again
    assert _run(machine, "device_add") == "Error: Parameter 'driver' is missing\n"


def test_properties_from_json(machine: Any) -> None:
    assert _run(machine, "qom-set -j /machine graphics false") == ""
    assert _run(machine, "qom-get /machine graphics") == "false\n"
    assert _run(machine, "qom-set -j /machine graphics 1").startswith("Error: Invalid parameter type for 'graphics'")
    assert _run(machine, "qom-set /machine graphics on") == ""
    assert _run(machine, "qom-get /machine graphics") == "true\n"


def test_descriptors_by_name(machine: Any) -> None:
    reader, writer = os.pipe()
    os.close(writer)
    monitor = hmp.HmpMonitor(take_fd=lambda: reader)
    assert _run(machine, "getfd pipe") == "Error: No file descriptor supplied via SCM_RIGHTS\n"
    assert _run(machine, "getfd pipe", monitor) == ""
    assert _run(machine, "closefd pipe") == ""
    with pytest.raises(OSError):
        os.fstat(reader)
    assert _run(machine, "closefd pipe") == "Error: File descriptor named 'pipe' not found\n"


def test_what_was_typed_before(machine: Any) -> None:
    monitor = hmp.HmpMonitor()
    monitor.history += ["info status", "help"]
    assert _run(machine, "info history", monitor) == "0: 'info status'\n1: 'help'\n"


def test_the_device_tree(machine: Any, tmp_path: Path) -> None:
    assert _run(machine, f"dumpdtb {tmp_path}/t") == "Error: This machine doesn't have a FDT\n"
    other = simple_machine("riscv64", "virt", memory=2 << 20)
    try:
        assert _run(other, f"dumpdtb {tmp_path}/t") == f"info: dtb dumped to {tmp_path}/t\n"
        assert (tmp_path / "t").read_bytes()[:4] == b"\xd0\x0d\xfe\xed"
    finally:
        other.close()


def test_how_fast_memory_changes(machine: Any) -> None:
    assert _run(machine, "calc_dirty_rate 0") == "Incorrect period length specified!\n"
    text = "Either dirty ring or dirty bitmap can be specified!\n"
    assert _run(machine, "calc_dirty_rate -r -b 1") == text
    assert _run(machine, "calc_dirty_rate 1").startswith("Starting dirty rate measurement with period 1 seconds\n")
    assert _run(machine, "info dirty_rate").startswith("Status: measuring\n")


def test_where_functions_of_pci_are(machine: Any) -> None:
    assert _run(machine, "device_add virtio-rng-pci,id=r,addr=9.1,multifunction=on") == ""
    tree = _run(machine, "info qtree")
    assert "        addr = 09.1\n" in tree
    shown = tree.partition("pci id 1af4:1005")[2].splitlines()
    assert shown[0] == " (sub 1af4:0004)"
    nowhere = (1 << 64) - 1
    device: Any = find_device(machine, "r")
    assert device.bars
    for line, (_number, bar) in zip(shown[1:], sorted(device.bars.items()), strict=False):
        kind = "mem" if bar.number else "i/o"
        assert line == f"        bar {bar.number}: {kind} at {nowhere:#x} [{bar.size - 2:#x}]"
