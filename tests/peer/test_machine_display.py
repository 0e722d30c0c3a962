"""The same drawing on QEMU's virtio-gpu and ours: same answers, same picture."""

from __future__ import annotations

from pathlib import Path
from struct import pack
from typing import Any

import pytest

from qobra.testing.guest import Memory, ModernPci, PciFunction, Queue, driver_ok, start_driver
from qobra.testing.system import SystemProgram, peer_available

pytestmark = pytest.mark.skipif(not peer_available("x86_64"), reason="qemu-system-x86_64 is not installed")

_PIXELS = b"".join(bytes((x * 4, y * 5, 0x80, 0xFF)) for y in range(48) for x in range(64))
_DUMPS: list[dict[str, Any]] = [
    {"device": "zz"},
    {"device": "g", "head": 1},
    {"head": 0},
    {"filename": "/nowhere/x"},
]


def _script(program: SystemProgram, path: Path) -> list[Any]:
    function = PciFunction(program.guest, 5 << 3)
    function.enable()
    transport = ModernPci(function)
    start_driver(transport, 1 << 32 | 2)
    memory = Memory()
    found: list[Any] = [transport.features(), [transport.config(at, 4) for at in range(0, 24, 4)]]
    queue = Queue(transport, memory, 0)
    driver_ok(transport)

    def ask(kind: int, *numbers: int, more: bytes = b"", room: int = 24, fence: int = 0) -> None:
        request = pack("<IIQII", kind, int(fence > 0), fence, 0, 0) + pack(f"<{len(numbers)}I", *numbers) + more
        there, back = memory.take(len(request)), memory.take(room)
        program.guest.write(there, request)
        queue.send([(there, len(request), False), (back, room, True)])
        found.append((kind, numbers, queue.wait_used()[1], program.guest.read(back, room)))

    ask(0x100, room=408)
    ask(0x10A, 0, 0, room=24 + 8 + 256)
    ask(0x10A, 1, 0)
    for numbers in ((0, 1, 8, 8), (1, 99, 8, 8), (3, 1, 0, 8), (1, 1, 40000, 40000), (1, 1, 64, 48), (1, 1, 64, 48)):
        ask(0x101, *numbers)
    ask(0x105, 0, 0, 64, 48, 0, 0, 1, 0)
    address = memory.take(len(_PIXELS), 4096)
    program.guest.write(address, _PIXELS)
    pieces = pack("<QIIQII", address, 4096, 0, address + 4096, len(_PIXELS) - 4096, 0)
    ask(0x106, 1, 2, more=pieces)
    ask(0x106, 1, 2, more=pieces)
    ask(0x106, 7, 2, more=pieces)
    ask(0x105, 0, 0, 65, 48, 0, 0, 1, 0)
    ask(0x105, 0, 0, 64, 48, 0, 0, 1, 0)
    ask(0x105, 7, 9, 20, 10, 400, 0, 1, 0)
    for numbers in ((0, 0, 64, 48, 9, 1), (0, 0, 64, 49, 0, 1), (0, 0, 15, 15, 0, 1), (0, 0, 64, 48, 0, 9)):
        ask(0x103, *numbers)
    ask(0x103, 4, 4, 32, 24, 0, 1, fence=0x1234)
    ask(0x104, 0, 0, 64, 49, 1, 0)
    ask(0x104, 0, 0, 64, 48, 1, 0)
    found.append(program.qmp("screendump", {"filename": str(path)}))
    found.append(path.read_bytes())
    found += [program.qmp("screendump", {"filename": str(path)} | options) for options in _DUMPS]
    found.append(program.qmp("human-monitor-command", {"command-line": "screendump"}))
    for kind in (0x107, 0x102, 0x102, 0x108, 0x1FF, 0x200):
        ask(kind, 1, 0)
    return found


def test_a_graphics_card(tmp_path: Path) -> None:
    answers = []
    for peer in (False, True):
        arguments = ("-machine", "pc", "-m", "64", "-device", "virtio-gpu-pci,addr=5,id=g")
        with SystemProgram(tmp_path, "x86_64", *arguments, peer=peer) as program:
            answers.append(_script(program, tmp_path / "picture"))
    for own, theirs in zip(*answers, strict=True):
        assert own == theirs
