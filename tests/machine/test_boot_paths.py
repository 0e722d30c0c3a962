"""What the firmware is told of devices to boot from: their order, their paths, their geometry."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from qobra.cli._system import table
from qobra.cli._system.build import Builder
from qobra.errors import QobraError
from qobra.qmp import dispatch

_NODES = [text for name in "abcdef" for text in ("-blockdev", f"null-co,node-name={name}")]


@pytest.fixture
def build() -> Iterator[Callable[..., Any]]:
    builders: list[Builder] = []

    def make(*arguments: str) -> Any:
        options = ["-nodefaults", "-display", "none", "-accel", "qtest", "-m", "32", *_NODES, *arguments]
        builder = Builder("x86_64", table.scan(options))
        builders.append(builder)
        with builder.machine.control:
            builder.build_early()
            builder.build_board()
        return builder.machine

    yield make
    for builder in builders:
        builder.machine.close()
        builder.close()


def _devices(*texts: str) -> list[str]:
    return [word for text in texts for word in ("-device", text)]


def _lines(machine: Any, name: str) -> list[str]:
    data: bytes = machine.board.fw_cfg.file(name)
    assert data.endswith(b"\0")
    return data[:-1].decode().splitlines()


def test_the_order_of_devices(build: Callable[..., Any]) -> None:
    machine = build(
        *("-M", "pc", "-boot", "strict=on"),
        *_devices(
            "ide-hd,drive=a,bus=ide.1,unit=1,bootindex=3",
            "virtio-blk-pci,drive=b,addr=5,bootindex=0",
            "virtio-scsi-pci,id=s,addr=6.1,multifunction=on",
            "scsi-hd,drive=c,bus=s.0,scsi-id=4,lun=17,bootindex=10",
            "nvme,drive=d,serial=x,addr=7,bootindex=2",
            "e1000,addr=8,bootindex=1",
            "virtio-net-pci,addr=9",
            "pci-bridge,id=bridge,chassis_nr=1,addr=a,shpc=off",
            "virtio-blk-pci,drive=e,bus=bridge,addr=3,bootindex=11",
        ),
    )
    assert _lines(machine, "bootorder") == [
        "/pci@i0cf8/scsi@5/disk@0,0",
        "/pci@i0cf8/ethernet@8/ethernet-phy@0",
        "/pci@i0cf8/pci1b36,0010@7/namespace@1,0",
        "/pci@i0cf8/ide@1,1/drive@1/disk@1",
        "/pci@i0cf8/scsi@6,1/channel@0/disk@4,11",
        "/pci@i0cf8/pci-bridge@a/scsi@3/disk@0,0",
        "HALT",
    ]


def test_geometries_follow_the_devices(build: Callable[..., Any]) -> None:
    machine = build(
        *("-M", "q35"),
        *_devices(
            "ide-hd,drive=a,bus=ide.2,lcyls=10000,lheads=120,lsecs=30",
            "pcie-root-port,id=rp,addr=2",
            "virtio-blk-pci,drive=b,bus=rp,id=gone,lcyls=1",
            "virtio-blk-pci,drive=c,addr=4",
        ),
    )
    sata = "/pci@i0cf8/pci8086,2922@1f,2/drive@2/disk@0 10000 120 30"
    assert sorted(_lines(machine, "bios-geometry")) == ["/pci@i0cf8/pci-bridge@2/scsi@0/disk@0,0 1 0 0", sata]
    with machine.control:
        dispatch.call(machine, "device_del", {"id": "gone"})
        machine.board.reset_all()
        machine.board.reset_all()
    assert _lines(machine, "bios-geometry") == [sata]


def test_two_devices_want_to_be_first(build: Callable[..., Any]) -> None:
    with pytest.raises(QobraError, match="The bootindex 1 has already been used"):
        build(*_devices("ide-hd,drive=a,bootindex=1", "ide-hd,drive=b,bootindex=1"))
