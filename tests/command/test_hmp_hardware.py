"""Interrupt controllers, USB and virtio devices in the human monitor."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from qobra.machine.launch import simple_machine
from qobra.machine.plug import add_device
from qobra.qmp import hmp
from qobra.testing.guest import BoardAccess, Memory, ModernPci, PciFunction, Queue, driver_ok, start_driver


@pytest.fixture
def machine() -> Iterator[Any]:
    machine = simple_machine("x86_64", "pc", memory=32 << 20)
    yield machine
    machine.close()


@pytest.fixture
def virt() -> Iterator[Any]:
    machine = simple_machine("riscv64", "virt", memory=2 << 20)
    yield machine
    machine.close()


def _run(machine: Any, line: str) -> str:
    return hmp.execute(machine, line).replace("\r\n", "\n")


def _plug(machine: Any, driver: str, **options: str) -> Any:
    with machine.control:
        return add_device(machine, {"driver": driver} | options, keyval=True)


def test_an_io_apic(machine: Any) -> None:
    guest = BoardAccess(machine)

    def write(register: int, value: int) -> None:
        guest.store(0xFEC00000, 4, register)
        guest.store(0xFEC00010, 4, value)

    for register, value in ((0, 0x02000000), (0x12, 0x931), (0x13, 0x15 << 24), (0x14, 0x1A471), (0x15, 0x1C << 24)):
        write(register, value)
    lines = _run(machine, "info pic").splitlines()
    assert lines[0] == "ioapic0: ver=0x20 id=0x02 sel=0x15 (redir[2])"
    assert lines[1] == "  pin 0  0x0000000000010000 dest=0 vec=0   active-hi edge  masked fixed  physical"
    assert lines[2] == "  pin 1  0x1500000000000931 dest=15 vec=49  active-hi edge         lowest logical"
    assert lines[3] == "  pin 2  0x1c0000000001a471 dest=c vec=113 active-lo level masked NMI    physical"
    assert lines[25:27] == ["  IRR      (none)", "  Remote IRR (none)"]
    board: Any = machine.board
    with machine.control:
        board.gsi[0].set(1)
    assert _run(machine, "info pic").splitlines()[25] == "  IRR      2  "


def test_interrupt_controllers_of_the_at(machine: Any) -> None:
    guest = BoardAccess(machine)
    for port, values in ((0x20, (0x11,)), (0x21, (0x20, 4, 0x11, 0x5A)), (0xA0, (0x11,)), (0xA1, (0x28, 2, 1, 0xF0))):
        for value in values:
            guest.port_out(port, 1, value)
    guest.port_out(0x20, 1, 0x0B)
    guest.port_out(0x4D1, 1, 0x0C)
    assert _run(machine, "info pic").splitlines()[-2:] == [
        "pic1: irr=00 imr=f0 isr=00 hprio=0 irq_base=28 rr_sel=0 elcr=0c fnm=0",
        "pic0: irr=00 imr=5a isr=00 hprio=0 irq_base=20 rr_sel=1 elcr=00 fnm=1",
    ]


def test_how_often_lines_rose(machine: Any) -> None:
    assert _run(machine, "info irq") == "IRQ statistics for ioapic:\nIRQ statistics for isa-i8259:\n"
    board: Any = machine.board
    with machine.control:
        for level in (1, 1, 0, 1):
            board.gsi[12].set(level)
    told = _run(machine, "info irq").splitlines()
    assert told == ["IRQ statistics for ioapic:", "12: 2", "IRQ statistics for isa-i8259:", " 2: 1", "12: 2"]


def test_other_boards_have_other_controllers(virt: Any) -> None:
    assert _run(virt, "info pic") == _run(virt, "info irq") == ""
    assert _run(virt, "info usb") == "Error: USB support not enabled\n"
    assert _run(virt, "info virtio") == "No VirtIO devices\n"


def test_kvm_is_for_guests_of_the_host_s_architecture(machine: Any, virt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(machine="x86_64"))
    assert _run(machine, "info kvm") == "kvm support: disabled\n"
    assert _run(virt, "info kvm") == "kvm support: not compiled\n"


def test_usb_devices(machine: Any) -> None:
    _plug(machine, "piix3-usb-uhci", id="usb")
    assert _run(machine, "info usb") == ""
    keyboard = _plug(machine, "usb-kbd", port="2", id="keys")
    _plug(machine, "usb-tablet", port="1")
    keyboard.address = 5
    assert _run(machine, "info usb").splitlines() == [
        "  Device 0.5, Port 2, Speed 12 Mb/s, Product QEMU USB Keyboard, ID: keys",
        "  Device 0.0, Port 1, Speed 12 Mb/s, Product QEMU USB Tablet",
    ]


def test_virtio_devices(machine: Any) -> None:
    _plug(machine, "virtio-rng-pci", id="r", addr="5")
    _plug(machine, "virtio-serial-pci", id="s")
    path = "/machine/peripheral/r/virtio-backend"
    assert _run(machine, "info virtio").splitlines() == [
        "/machine/peripheral/s/virtio-backend [virtio-serial]",
        f"{path} [virtio-rng]",
    ]
    assert "  device_name:             virtio-rng \n" in _run(machine, f"info virtio-status {path}")
    assert "\tVIRTIO_CONSOLE_F_MULTIPORT,\n" in _run(machine, "info virtio-status /machine/peripheral/s/virtio-backend")
    for line in (f"{path} 1", f"{path} 5000"):
        assert _run(machine, f"info virtio-queue-status {line}").startswith("Error: Invalid virtqueue number ")
    for wrong in ("/nope", "/machine/peripheral/r"):
        for line in (f"info virtio-status {wrong}", f"info virtio-queue-status {wrong} 0"):
            assert _run(machine, line) == f"Error: Path {wrong} is not a VirtIODevice\n"


def test_where_a_queue_stands(machine: Any) -> None:
    _plug(machine, "virtio-rng-pci", id="r", addr="5")
    path = "/machine/peripheral/r/virtio-backend"
    function = PciFunction(BoardAccess(machine), 5 << 3)
    function.enable()
    transport = ModernPci(function)
    start_driver(transport, 1 << 32 | 1 << 28)
    memory = Memory()
    queue = Queue(transport, memory, 0)
    driver_ok(transport)
    status = _run(machine, f"info virtio-status {path}")
    assert "  started:                 true\n" in status and "\tVIRTIO_CONFIG_S_FEATURES_OK\n" in status
    assert "  Guest features:\n\tVIRTIO_RING_F_INDIRECT_DESC,\n\tVIRTIO_F_VERSION_1\n" in status
    for _ in range(3):
        queue.send([(memory.take(16), 16, True)])
        queue.wait_used()
    lines = _run(machine, f"info virtio-queue-status {path} 0").splitlines()
    assert lines[:2] == [f"{path}:", "  device_name:          virtio-rng"]
    assert "  used_idx:             3" in lines and "  last_avail_idx:       3" in lines
    assert "  inuse:                0" in lines and "    num:          8" in lines
    assert f"    used:         0x{queue.used:016x}" in lines


def test_types_of_devices(machine: Any) -> None:
    lines = _run(machine, "info qdm").splitlines()
    assert "Network devices:" in lines
    assert any(line.startswith('name "e1000", bus PCI') and not line.endswith(", no-user") for line in lines)
    assert any(line.startswith('name "port92", bus ISA') and line.endswith(", no-user") for line in lines)


def test_what_a_machine_is_not(machine: Any) -> None:
    assert _run(machine, "info replay") == "Record/replay is not active\n"
    assert _run(machine, "info sev") == "SEV is not enabled\n"
