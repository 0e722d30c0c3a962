"""The note of the guest's kernel: written by the guest, carried by dumps, read by debuggers of kernels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from struct import pack, unpack_from
from typing import Any

import pytest

from qobra.errors import QobraError
from qobra.machine.launch import attach_board, find_board
from qobra.machine.machine import Machine
from qobra.machine.plug import add_device
from qobra.qmp import dispatch
from qobra.testing.guest import BoardAccess

_AT = 0x200000
_LINES = b"""\
OSRELEASE=6.1.0
PAGESIZE=4096
SYMBOL(init_uts_ns)=ffffffff82a1a0c0
OFFSET(uts_namespace.name)=0
SYMBOL(swapper_pg_dir)=ffffffff82a10000
KERNELOFFSET=1000000
NUMBER(phys_base)=16777216
SYMBOL(mem_section)=ffff888000000000
LENGTH(mem_section)=2048
"""
_NOTE = pack("<III", 11, len(_LINES), 0) + b"VMCOREINFO\0\0" + _LINES + bytes(-len(_LINES) % 4)


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = Machine(capabilities=frozenset(("board", "x86_64")))
    with machine.control:
        board = attach_board(machine, find_board("x86_64", "pc"))
        board.set_topology({"cpus": 1})
        board.set_memory(4 << 20)
        board.start()
        add_device(machine, {"driver": "vmcoreinfo", "id": "v"}, keyval=True)
        board.finish()
    yield machine
    machine.close()


def _tell(machine: Machine, *, form: int = 1, length: int = len(_NOTE), note: bytes = _NOTE) -> None:
    """What the guest's kernel does: put the note somewhere, and write its place by DMA."""
    access = BoardAccess(machine)
    access.port_out(0x510, 2, 0x19)
    count = int.from_bytes(bytes(access.port_in(0x511, 1) for _ in range(4)), "big")
    listing = bytes(access.port_in(0x511, 1) for _ in range(64 * count))
    entries = [unpack_from(">IHH56s", listing, 64 * number) for number in range(count)]
    key = next(key for _size, key, _, name in entries if name.rstrip(b"\0") == b"etc/vmcoreinfo")
    memory = machine.board.memory  # type: ignore[union-attr]
    memory.write(_AT, note)
    memory.write(0x1000, pack("<HHIQ", 0, form, length, _AT))
    memory.write(0x2000, pack(">IIQ", key << 16 | 1 << 3 | 1 << 4, 16, 0x1000))
    access.port_out(0x514, 4, 0)
    access.port_out(0x518, 4, int.from_bytes((0x2000).to_bytes(4, "big"), "little"))
    assert memory.read(0x2000, 4) == bytes(4)


def _dump(machine: Machine, path: Path, form: str = "elf") -> bytes:
    with machine.control:
        arguments = {"paging": False, "protocol": f"file:{path}", "format": form}
        dispatch.call(machine, "dump-guest-memory", arguments)
    return path.read_bytes()


def _elf_notes(core: bytes) -> bytes:
    kind, _flags, at, _virtual, _physical, length = unpack_from("<IIQQQQ", core, 64)
    assert kind == 4
    return core[at : at + length]


def test_a_core_file_carries_the_note(machine: Machine, tmp_path: Path) -> None:
    without = _elf_notes(_dump(machine, tmp_path / "before"))
    _tell(machine)
    assert _elf_notes(_dump(machine, tmp_path / "core")) == without + _NOTE
    with machine.control:
        machine.board.reset_all()  # type: ignore[union-attr]
    assert _elf_notes(_dump(machine, tmp_path / "after")) == without


@pytest.mark.parametrize("told", [
    {"form": 2}, {"length": 11}, {"length": 1 << 31}, {"length": len(_NOTE) - 8}, {"note": _NOTE.replace(b"VM", b"XX")},
    {"note": pack("<II", 0xFFFFFFFF, 0xFFFFFFFF) + _NOTE[8:]},
])  # fmt: skip
def test_what_is_no_note_is_left_out(machine: Machine, tmp_path: Path, told: dict[str, Any]) -> None:
    without = _elf_notes(_dump(machine, tmp_path / "before"))
    _tell(machine, **told)
    assert _elf_notes(_dump(machine, tmp_path / "core")) == without


def test_a_kdump_says_where_the_lines_are(machine: Machine, tmp_path: Path) -> None:
    _tell(machine)
    flat, whole, at = _dump(machine, tmp_path / "dump", "kdump-zlib"), bytearray(), 4096
    while (place := unpack_from(">qq", flat, at))[0] >= 0:
        offset, length = place
        whole[len(whole) :] = bytes(max(0, offset + length - len(whole)))
        whole[offset : offset + length] = flat[at + 16 : at + 16 + length]
        at += 16 + length
    base, _level, _split, _start, _end, info_at, info_length = unpack_from("<QIIQQQQ", whole, 4096)
    assert base == 16777216
    assert whole[info_at : info_at + info_length] == _LINES
    assert whole[12 + 2 * 65 :].startswith(b"6.1.0\0")


@pytest.mark.parametrize("form", ["elf", "kdump-zlib"])
def test_drgn_reads_the_dump(machine: Machine, tmp_path: Path, form: str) -> None:
    drgn = pytest.importorskip("drgn", reason="drgn is not installed")
    _tell(machine)
    machine.board.memory.write(0x100000, b"by drgn!")  # type: ignore[union-attr]
    _dump(machine, tmp_path / "dump", form)
    program = drgn.Program()
    program.set_core_dump(str(tmp_path / "dump"))
    assert program.read(0x100000, 8, True) == b"by drgn!"


def test_there_is_one_at_most(machine: Machine) -> None:
    with machine.control:
        machine.board.ready = False  # type: ignore[union-attr]
        with pytest.raises(QobraError, match="^at most one vmcoreinfo device is permitted$"):
            add_device(machine, {"driver": "vmcoreinfo"}, keyval=True)
