"""What a kernel finds when it starts, in memory or in the firmware configuration: the same as with QEMU."""

from __future__ import annotations

from pathlib import Path
from struct import pack_into, unpack_from
from typing import Any

import pytest

from qobra.machine import devicetree
from qobra.testing import elf
from qobra.testing.system import SystemProgram, peer_available

# CPU features that need a CPU; a bus for devices that are not there; chance.
_ABSENT = ("pmu",)
_DRIVES = ("-drive", "if=pflash,driver=null-co,size=32M,read-zeroes=on,unit=1")


def _tree(node: devicetree.Node, handles: dict[int, str], path: str = "") -> dict[str, Any]:
    """Every node's properties, handles as the paths that they stand for."""
    if "phandle" in node.properties:
        handles[int.from_bytes(node.properties["phandle"], "big")] = path
    found: dict[str, Any] = {path: dict(node.properties)}
    for name, child in node.children.items():
        found |= _tree(child, handles, f"{path}/{name}")
    return found


def _comparable(root: devicetree.Node) -> dict[str, Any]:
    handles: dict[int, str] = {}
    for name in _ABSENT:
        root.children.pop(name, None)
    root.children["chosen"].properties.pop("rng-seed", None)
    nodes = _tree(root, handles)
    for path, properties in nodes.items():
        properties.pop("phandle", None)
        for name in ("interrupt-parent", "regmap", "cpu"):
            if name in properties:
                properties[name] = handles[int.from_bytes(properties[name], "big")]
        for name, stride, at in (("interrupts-extended", 2, 0), ("interrupt-map", 6, 4)):
            if name in properties:
                cells = list(unpack_from(f">{len(properties[name]) // 4}I", properties[name]))
                properties[name] = [handles[n] if i % stride == at else n for i, n in enumerate(cells)]
        assert path in nodes
    return nodes


@pytest.mark.skipif(not peer_available("riscv64"), reason="qemu-system-riscv64 is not installed")
@pytest.mark.parametrize(
    "more",
    [
        (),
        ("-smp", "3"),
        ("-m", "5G"),
        ("-kernel", "{kernel}", "-append", "root=/dev/vda"),
        ("-kernel", "{kernel}", "-initrd", "{initrd}"),
        ("-kernel", "{kernel}", *_DRIVES),
    ],
    ids=lambda more: " ".join(more[:1]) + str(len(more)),
)
def test_memory_at_the_start(tmp_path: Path, more: tuple[str, ...]) -> None:
    kernel, initrd = tmp_path / "kernel", tmp_path / "initrd"
    kernel.write_bytes(b"kernel" * 3000)
    initrd.write_bytes(b"initrd" * 2000)
    firmware = tmp_path / "firmware"
    firmware.write_bytes(b"firmware" * 1000)
    arguments = [each.format(kernel=kernel, initrd=initrd) for each in more]
    answers = []
    for peer in (False, True):
        base = ("-machine", "virt", "-m", "128M", "-bios", str(firmware))
        with SystemProgram(tmp_path, "riscv64", *base, *arguments, peer=peer) as program:
            guest = program.guest
            vector = guest.read(0x1000, 88)
            place, entry = unpack_from("<Q", vector, 32)[0], unpack_from("<Q", vector, 56)[0]
            header = guest.read(place, 8)
            blob = guest.read(place, int.from_bytes(header[4:], "big"))
            found: list[Any] = [vector, guest.read(0x80000000, 8000), _comparable(devicetree.parse(blob))]
            if entry:
                found.append(guest.read(entry, 20000))
            if "-initrd" in more:
                found.append(guest.read(entry + (64 << 20), 12000))
            answers.append(found)
    assert answers[0] == answers[1]


_NUMBERS = (0x07, 0x08, 0x0A, 0x0B, 0x10, 0x13, 0x14, 0x16, 0x17)
_DATA = ((0x11, 0x08), (0x12, 0x0B), (0x15, 0x14), (0x18, 0x17))


def _image(protocol: int, flags: int = 1, limit: int = 0x7FFFFFFF) -> bytes:
    setup = bytearray(3 * 512)
    setup[0x1F1], setup[0x211] = 2, flags
    setup[0x202:0x206] = b"HdrS" if protocol else b"none"
    pack_into("<H", setup, 0x206, protocol)
    pack_into("<I", setup, 0x22C, limit)
    return bytes(setup) + b"kernel" * 500


@pytest.mark.skipif(not peer_available("x86_64"), reason="qemu-system-x86_64 is not installed")
@pytest.mark.parametrize(
    ("image", "memory", "more"),
    [
        (_image(0x20C), "128M", ("-append", "root=/dev/sda vga=ask")),
        (_image(0x20C), "5G", ("-append", "vga=0x317", "-initrd", "{initrd}")),
        (_image(0x204, limit=0x37FFFFFF), "2G", ("-initrd", "{initrd}")),
        (_image(0x201), "64M", ("-append", "quiet", "-initrd", "{initrd}")),
        (_image(0x200, flags=0), "64M", ("-initrd", "{initrd}")),
        (_image(0), "64M", ("-append", "quiet")),
        (elf.program(b"kernel" * 50, 1 << 20, entry=0x100010, zeroes=50), "64M", ("-initrd", "{initrd}")),
        (elf.program(b"kernel" * 50, 2 << 20, entry=0x200000, bits=32), "5G", ("-append", "q", "-initrd", "{initrd}")),
    ],
    ids=["2.12", "beyond 4 GiB", "2.4", "2.1", "2.0", "old", "PVH", "PVH of 32 bits"],
)
def test_parts_of_a_kernel_on_a_pc(tmp_path: Path, image: bytes, memory: str, more: tuple[str, ...]) -> None:
    kernel, initrd = tmp_path / "kernel", tmp_path / "initrd"
    kernel.write_bytes(image)
    initrd.write_bytes(b"initrd" * 2000)
    arguments = [each.format(initrd=initrd) for each in more]
    answers = []
    for peer in (False, True):
        base = ("-machine", "pc", "-m", memory, "-kernel", str(kernel))
        with SystemProgram(tmp_path, "x86_64", *base, *arguments, peer=peer) as program:
            guest = program.guest

            def item(key: int, length: int, guest: Any = guest) -> bytes:
                guest.port_out(0x510, 2, key)
                return bytes(guest.port_in(0x511, 1) for _ in range(min(length, 2000)))

            found: list[Any] = [int.from_bytes(item(key, 4), "little") for key in _NUMBERS]
            found += [guest.read(1 << 20, 400), guest.read(2 << 20, 400)]
            found += [item(key, int.from_bytes(item(size, 4), "little")) for key, size in _DATA]
            answers.append(found)
    assert answers[0] == answers[1]
