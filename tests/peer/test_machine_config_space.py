"""Configuration space of every PCI device on every board, and what a reset leaves of it: the same as QEMU's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qobra.testing.system import SystemProgram, peer_available

pytestmark = pytest.mark.skipif(not peer_available("x86_64"), reason="qemu-system-x86_64 is not installed")

_NODES = [f"null-co,node-name=n{n},size=1048576,read-zeroes=on" for n in range(6)]
_ROOT = (
    "virtio-blk-pci,drive=n0",
    "virtio-scsi-pci",
    "nvme,drive=n1,serial=x",
    "ich9-ahci",
    "virtio-serial-pci",
    "virtio-net-pci",
    "e1000",
    "e1000-82544gc",
    "e1000-82545em",
    "i6300esb",
    "pvpanic-pci",
    "virtio-gpu-pci",
    "VGA",
    "secondary-vga",
    "bochs-display",
    "virtio-vga",
    "pci-bridge,chassis_nr=3",
    "sdhci-pci",
    "piix3-usb-uhci",
    "piix4-usb-uhci",
    "ich9-usb-uhci1",
    "ich9-usb-uhci6",
    "usb-ehci",
    "ich9-usb-ehci1",
    "pci-ohci",
    "qemu-xhci",
    "nec-usb-xhci",
    "nec-usb-xhci,msix=off",
    "virtio-blk-pci-transitional,drive=n2",
    "virtio-rng-pci-non-transitional",
)
_CARDS = (
    "pci-serial",
    "pci-serial-4x",
    "edu",
    "pci-testdev,membar=1M",
    "e1000e,mac=52:54:00:12:34:99",
    "rtl8139",
    "pvscsi",
    "lsi53c810",
    "lsi53c895a",
    "intel-hda",
    "ich9-intel-hda,msi=off",
    "AC97",
    "pci-serial-2x",
    "e1000-82544gc",
    "nvme,serial=x",
)
_PORTS = (
    "virtio-blk-pci,drive=n3",
    "pcie-pci-bridge",
    "nvme,serial=y,drive=n4",
    "virtio-net-pci",
    "virtio-rng-pci,ats=on",
    "pvscsi",
    "e1000e,mac=52:54:00:12:34:98",
    "qemu-xhci",
    "nec-usb-xhci",
)
_BOARDS = {"pc": ("x86_64", "pci.0"), "q35": ("x86_64", "pcie.0"), "virt": ("riscv64", "pcie.0")}


class _Config:
    """Configuration space by ports, or in memory where there is PCI Express."""

    def __init__(self, program: SystemProgram, board: str) -> None:
        self._guest = program.guest
        self.size = 256 if board == "pc" else 4096
        self._base = {"pc": 0, "q35": 0xB0000000, "virt": 0x30000000}[board]
        if board == "q35":
            self._by_ports(0, 0x60, self._base | 1)
        self.functions = self._number_buses()

    def _by_ports(self, bdf: int, offset: int, value: int | None) -> int:
        self._guest.port_out(0xCF8, 4, 0x80000000 | bdf << 8 | offset)
        if value is None:
            return self._guest.port_in(0xCFC, 4)
        self._guest.port_out(0xCFC, 4, value)
        return value

    def get(self, bdf: int, offset: int) -> int:
        if not self._base:
            return self._by_ports(bdf, offset, None)
        return self._guest.load(self._base + (bdf << 12) + offset, 4)

    def put(self, bdf: int, offset: int, value: int) -> None:
        if not self._base:
            self._by_ports(bdf, offset, value)
        else:
            self._guest.store(self._base + (bdf << 12) + offset, 4, value)

    def is_bridge(self, bdf: int) -> bool:
        return bool(self.get(bdf, 0x0C) & 0x10000)

    def _number_buses(self) -> list[int]:
        found, buses = [], [0]
        for bus in buses:
            for bdf in range(bus << 8, (bus << 8) + 256):
                if self.get(bdf, 0) == 0xFFFFFFFF:
                    continue
                if bdf != 0xFB:  # the chipset's SMBus, which is not there
                    found.append(bdf)
                if self.is_bridge(bdf):
                    buses.append(len(buses))
                    self.put(bdf, 0x18, bus | buses[-1] << 8 | buses[-1] << 16)
        return found

    def writable(self, bdf: int) -> list[int]:
        """Where writing has no effect beyond the function itself."""
        away = {0x60, 0x64} if not bdf else set()
        if self.is_bridge(bdf):
            away |= {0x18, 0x3C}
            at = self.get(bdf, 0x34) & 0xFF
            while at:
                capability = self.get(bdf, at)
                if capability & 0xFF == 0x10:
                    away.add(at + 0x18)  # the power of the slot
                at = capability >> 8 & 0xFF
        return [offset for offset in range(4, self.size, 4) if offset not in away]


def _look(program: SystemProgram, board: str) -> dict[Any, int]:
    seen: dict[Any, int] = {}
    config = _Config(program, board)
    for bdf in config.functions:
        for offset in range(0, config.size, 4):
            seen["cold", bdf, offset] = config.get(bdf, offset)
    for bdf in config.functions:
        for offset in config.writable(bdf):
            before = config.get(bdf, offset)
            for value in (0xFFFFFFFF, 0, 0x5AA5C33C, before):
                config.put(bdf, offset, value)
                seen[hex(value), bdf, offset] = config.get(bdf, offset)
    for bdf in reversed(config.functions):
        if bdf:
            for offset in config.writable(bdf):
                config.put(bdf, offset, 0x7FFF7FFF)
    program.qmp("system_reset")
    program.wait_event("RESET")
    config = _Config(program, board)
    for bdf in config.functions:
        for offset in range(0, config.size, 4):
            seen["reset", bdf, offset] = config.get(bdf, offset)
    return seen


@pytest.mark.parametrize("devices", [_ROOT, _CARDS, _PORTS], ids=["root", "cards", "ports"])
@pytest.mark.parametrize("board", _BOARDS)
def test_configuration_space(tmp_path: Path, board: str, devices: tuple[str, ...]) -> None:
    ports = devices is _PORTS
    if ports and board == "pc":
        pytest.skip("it has no PCI Express")
    architecture, bus = _BOARDS[board]
    if not peer_available(architecture):
        pytest.skip(f"qemu-system-{architecture} is not installed")
    arguments = ["-machine", board, "-m", "256"]
    for node in _NODES:
        arguments += ["-blockdev", node]
    for number, device in enumerate(devices):
        if ports:
            arguments += ["-device", f"pcie-root-port,id=p{number},chassis={number + 1},bus={bus}"]
        arguments += ["-device", f"{device},bus={f'p{number}' if ports else bus}"]
    seen = []
    for peer in (False, True):
        with SystemProgram(tmp_path, architecture, *arguments, peer=peer) as program:
            seen.append(_look(program, board))
    differing = {key: (seen[0].get(key), value) for key, value in seen[1].items() if seen[0].get(key) != value}
    assert not differing
    assert seen[0].keys() == seen[1].keys()
