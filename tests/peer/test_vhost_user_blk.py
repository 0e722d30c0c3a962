"""A real machine boots from a vhost-user-blk export: SeaBIOS reads and writes it through QEMU's front end."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from qobra.machine.machine import Machine
from qobra.testing.guest import Memory, ModernPci, PciFunction
from qobra.testing.guest_drivers import BlockDriver
from qobra.testing.system import SystemProgram
from qobra.testing.waiting import wait_until

PASSED = 0x10
SECTORS = 64


def boot_sector() -> bytes:
    """16-bit code: read SECTORS sectors from LBA 1, write them to LBA 1001, and leave through the debug port."""
    origin = 0x7C00
    packets = origin + 0x100
    code = bytes.fromhex("31c0 8ed8 8ec0")  # ds = es = 0
    code += b"\xbe" + packets.to_bytes(2, "little") + bytes.fromhex("b442 cd13 7210")  # int 13h, ah=42h; jc fail
    code += b"\xbe" + (packets + 16).to_bytes(2, "little") + bytes.fromhex("b80043 cd13 7204")  # ah=43h; jc fail
    code += bytes([0xB0, PASSED, 0xEB, 0x02])  # al = PASSED; skip
    code += bytes.fromhex("b020")  # fail: al = 20h
    code += bytes.fromhex("ba0105 ee f4 ebfd")  # out 501h, al; hlt for ever
    disk_packet = bytes([16, 0, SECTORS, 0]) + (0x8000).to_bytes(2, "little") + bytes(2)
    code = code.ljust(0x100, b"\0")
    code += disk_packet + (1).to_bytes(8, "little") + disk_packet + (1001).to_bytes(8, "little")
    return code.ljust(510, b"\0") + b"\x55\xaa"


@pytest.mark.parametrize(("driver", "memory"), [("raw", "memfd"), ("qcow2", "memfd"), ("raw", "file")])
def test_boot(tmp_path: Path, peer: Callable[[str], str], driver: str, memory: str) -> None:
    emulator = peer("qemu-system-x86_64")
    content = bytearray(2 << 20)
    content[:512] = boot_sector()
    content[512 : 512 * (1 + SECTORS)] = random.Random(1).randbytes(512 * SECTORS)
    raw = tmp_path / "disk.raw"
    raw.write_bytes(content)
    image = tmp_path / f"disk.{driver}"
    if driver != "raw":
        subprocess.run([peer("qemu-img"), "convert", "-f", "raw", "-O", driver, raw, image], check=True)
    sock = tmp_path / "vhost.sock"
    place = f",mem-path={tmp_path / 'memory'}" if memory == "file" else ""
    machine = Machine()
    with machine.control:
        machine.block.add_node(
            {"driver": driver, "node-name": "disk", "file": {"driver": "file", "filename": str(image)}}
        )
        machine.block.exports.add(
            {
                "type": "vhost-user-blk",
                "id": "e",
                "node-name": "disk",
                "writable": True,
                "addr": {"type": "unix", "path": str(sock)},
            }
        )
    try:
        done = subprocess.run(
            [
                emulator, "-nodefaults", "-display", "none", "-no-reboot",
                "-machine", "pc,accel=tcg,memory-backend=mem",
                "-object", f"memory-backend-{memory},id=mem,size=64M,share=on{place}",
                "-chardev", f"socket,id=c,path={sock}",
                "-device", "vhost-user-blk-pci,chardev=c,bootindex=1",
                "-device", "isa-debug-exit",
            ],
            timeout=100,
        )  # fmt: skip
        assert done.returncode == PASSED << 1 | 1
        assert machine.block.find_node("disk").read(512 * 1001, 512 * SECTORS) == content[512 : 512 * (1 + SECTORS)]
    finally:
        machine.close()
    assert not os.path.exists(sock)
    if driver != "raw":
        assert subprocess.run(["qemu-img", "check", "-q", str(image)]).returncode == 0


def test_our_machine_on_their_storage_daemon(tmp_path: Path, peer: Callable[[str], str]) -> None:
    image, sock = tmp_path / "image", tmp_path / "sock"
    image.write_bytes(b"".join(bytes([number]) * 512 for number in range(64)))
    daemon = subprocess.Popen(
        [
            peer("qemu-storage-daemon"),
            *("--blockdev", f"driver=file,filename={image},node-name=n"),
            *("--export", f"type=vhost-user-blk,id=e,node-name=n,writable=on,addr.type=unix,addr.path={sock}"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(sock.exists)
        memory = ("-object", "memory-backend-memfd,id=mem,size=64M,share=on", "-machine", "pc,memory-backend=mem")
        device = ("-chardev", f"socket,id=c,path={sock}", "-device", "vhost-user-blk-pci,chardev=c,addr=5")
        with SystemProgram(tmp_path, "x86_64", *memory, *device) as program:
            program.qmp("cont")
            function = PciFunction(program.guest, 5 << 3)
            function.enable()
            disk = BlockDriver(ModernPci(function), Memory(), features=1 << 32)
            assert disk.request(0, 7, read=512) == (0, b"\7" * 512)
            assert disk.request(1, 8, b"x" * 512)[0] == 0
            assert disk.request(4, 0)[0] == 0
            program.qmp("stop")
            program.qmp("cont")
            assert disk.request(0, 8, read=512) == (0, b"x" * 512)
        assert image.read_bytes()[8 * 512 : 9 * 512] == b"x" * 512
    finally:
        daemon.kill()
        daemon.wait()
