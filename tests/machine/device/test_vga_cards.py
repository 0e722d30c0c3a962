"""The cards of the VGA's family: what each has, and where its registers and its picture are."""

from __future__ import annotations

from pathlib import Path
from struct import pack
from typing import Any

import pytest

from qobra.errors import QobraError
from qobra.machine.launch import simple_machine
from qobra.machine.plug import add_device
from qobra.qmp import dispatch
from qobra.testing import vga
from qobra.testing.guest import PciFunction, firmware_file
from qobra.testing.vga import PLACE, Card

_MEMORY, _REGISTERS = PLACE, PLACE + 0x1000000


def test_option_rom(tmp_path: Path) -> None:
    (tmp_path / "vgabios-stdvga.bin").write_bytes(b"\x55\xaa" + bytes(3000))
    made = Card(places=(str(tmp_path),))
    assert (made.device.get("romfile"), made.device.get("romsize")) == ("vgabios-stdvga.bin", 4096)
    made.function.set_config(0x30, 4, 0xF0000001)
    assert made.guest.load(0xF0000000, 2) == 0xAA55
    made.machine.close()
    made = Card(places=(str(tmp_path),), rombar=0)
    assert firmware_file(made.guest, "vgaroms/vgabios-stdvga.bin") == b"\x55\xaa" + bytes(3000)
    made.machine.close()
    made = Card()  # the host has none
    assert (made.device.get("romfile") or "", made.function.config(0x30)) == ("", 0)
    made.machine.close()


@pytest.mark.parametrize(("asked", "mib"), [(0, 1), (3, 4), (16, 16), (1000, 512)])
def test_memory_is_a_power_of_two(asked: int, mib: int) -> None:
    made = Card(vgamem_mb=asked)
    assert made.device.bars[0].size == mib << 20
    made.machine.close()


def test_what_is_left_out() -> None:
    made = Card(mmio=False)
    assert list(made.device.bars) == [0]
    made.machine.close()
    options: dict[str, Any] = {"qemu-extended-regs": False, "edid": False}
    made = Card(**options)
    assert made.guest.load(_REGISTERS + 0x600, 4) == made.guest.load(_REGISTERS, 4) == 0xFFFFFFFF
    made.machine.close()


def test_a_second_card_comes_and_goes(tmp_path: Path) -> None:
    made = Card()
    board, machine = made.board, made.machine
    with machine.control:
        add_device(machine, {"driver": "secondary-vga", "id": "s", "addr": 6 << 3}, keyval=False)
    function = PciFunction(made.guest, 6 << 3)
    function.enable(0xE4000000)
    memory, registers = function.bars[0], function.bars[2]
    made.guest.store(registers + 0x400, 1, 0x20)  # not dark
    for number, value in ((1, 64), (2, 48), (3, 32), (4, 0x81)):
        made.guest.store(registers + 0x500 + 2 * number, 2, value)
    made.guest.write(memory, b"\1\2\3\0")
    with machine.control:
        dispatch.call(machine, "screendump", {"filename": str(tmp_path / "d"), "device": "s"})
    assert (tmp_path / "d").read_bytes().startswith(b"P6\n64 48\n255\n\3\2\1")
    assert made.vga.bochs(vga.ENABLE) == 0  # the first one's
    with machine.control:
        board.peripheral.children["s"].unparent()
    assert [console.device.user_id for console in board.consoles] == ["v"]
    machine.close()


def test_bochs_display(tmp_path: Path) -> None:
    made = Card("bochs-display", vgamem=4 << 20)
    registers = made.function.bars[2]

    def set_mode(**values: int) -> tuple[int, int]:
        for name, value in values.items():
            made.guest.store(registers + 0x500 + 2 * getattr(vga, name), 2, value)
        return made.picture(tmp_path)[:2]

    assert set_mode(WIDTH=100, HEIGHT=80, DEPTH=32, ENABLE=1) == (100, 80)
    made.guest.write(made.function.bars[0] + 400, b"\1\2\3\0")
    assert made.picture(tmp_path)[2](0, 1) == (3, 2, 1)
    assert set_mode(VIRTUAL_WIDTH=200, X=2) == (100, 80)
    assert made.picture(tmp_path)[2](98, 0) == (3, 2, 1)
    # What makes no picture leaves it as it was.
    assert set_mode(HEIGHT=63) == set_mode(HEIGHT=6000) == set_mode(HEIGHT=70, DEPTH=24) == (100, 80)
    assert set_mode(DEPTH=16) == (100, 70)
    made.machine.close()


@pytest.mark.parametrize(("size", "how"), [(1 << 20, "small"), (1 << 30, "big")])
def test_bochs_display_has_bounds(size: int, how: str) -> None:
    with pytest.raises(QobraError, match=f"^bochs-display: video memory too {how}$"):
        Card("bochs-display", vgamem=size)


def test_isa_vga(tmp_path: Path) -> None:
    (tmp_path / "vgabios.bin").write_bytes(b"\x55\xaa")
    made = Card("isa-vga", places=(str(tmp_path),))
    assert firmware_file(made.guest, "vgaroms/vgabios.bin") == b"\x55\xaa"
    made.vga.set_bochs_mode(320, 200, 32)
    made.guest.write(_MEMORY, b"\1\2\3\0")
    width, height, pixel = made.picture(tmp_path)
    assert (width, height, pixel(0, 0)) == (320, 200, (3, 2, 1))
    made.machine.close()


def test_virtio_vga_is_a_vga_until_a_driver_draws(tmp_path: Path) -> None:
    made = Card("virtio-vga")
    made.vga.set_bochs_mode(640, 400, 32)
    made.guest.write(made.function.bars[0], b"\1\2\3\0")
    width, height, pixel = made.picture(tmp_path)
    assert (width, height, pixel(0, 0)) == (640, 400, (3, 2, 1))
    assert made.guest.load(made.function.bars[2] + 0x502, 4) == 400 << 16 | 640
    commands = made.device.device.commands
    with made.machine.control:
        commands.control(pack("<6I4I", 0x101, 0, 0, 0, 0, 0, 1, 1, 64, 48))
        commands.control(pack("<6I6I", 0x103, 0, 0, 0, 0, 0, 0, 0, 64, 48, 0, 1))
    assert made.picture(tmp_path)[:2] == (64, 48)
    with made.machine.control:
        made.board.reset_all()
    made.function.enable(_MEMORY)
    made.vga.set_bochs_mode(640, 400, 32)
    assert made.picture(tmp_path)[:2] == (640, 400)
    made.machine.close()


_PLACE = 0x100000


def _place(made: Card, *numbers: int, code: bytes = b"XR24") -> None:
    """Write the file by which a guest says where it draws: address, flags, width, height, distance of rows."""
    address, flags, width, height, step = numbers
    made.guest.write(0x2000, pack(">Q4sIIII", address, code[::-1], flags, width, height, step))
    key = next(0x20 + i for i, name in enumerate(sorted(made.board.fw_cfg._files)) if name == "etc/ramfb")
    made.guest.write(0x1000, pack(">IIQ", key << 16 | 8 | 16, 28, 0x2000))
    made.guest.port_out(0x514, 4, 0)
    made.guest.port_out(0x518, 4, int.from_bytes(pack(">I", 0x1000), "little"))


def test_ramfb(tmp_path: Path) -> None:
    (tmp_path / "vgabios-ramfb.bin").write_bytes(b"\x55\xaa")
    made = Card("ramfb", places=(str(tmp_path),))
    assert firmware_file(made.guest, "vgaroms/vgabios-ramfb.bin") == b"\x55\xaa"
    made.guest.write(_PLACE, b"\1\2\3\0")
    made.guest.write(_PLACE + 300, b"\4\5\6\0")
    _place(made, _PLACE, 0, 64, 48, 300)
    width, height, pixel = made.picture(tmp_path)
    assert (width, height, pixel(0, 0), pixel(0, 1)) == (64, 48, (3, 2, 1), (6, 5, 4))
    _place(made, _PLACE, 0, 100, 48, 0, code=b"RG24")
    width, height, pixel = made.picture(tmp_path)
    assert (width, height, pixel(0, 0), pixel(0, 1)) == (100, 48, (3, 2, 1), (6, 5, 4))
    for start, width, step in ((_PLACE, 15, 0), (_PLACE, 16001, 0), (16 << 20, 64, 0), (_PLACE, 64, 1 << 31)):
        _place(made, start, 0, width, 48, step)
    _place(made, _PLACE, 0, 4096, 2048, 1)  # 32 MiB, of a guest that has 16
    _place(made, _PLACE, 0, 64, 48, 0, code=b"XB24")
    assert made.picture(tmp_path)[:2] == (100, 48)
    with made.machine.control:
        made.board.reset_all()
    assert made.picture(tmp_path)[2](0, 0) == (0, 0, 0)
    made.machine.close()


def test_ramfb_wants_fw_cfg(tmp_path: Path) -> None:
    machine = simple_machine("x86_64", "pc")
    board: Any = machine.board
    board.fw_cfg.values["dma_enabled"] = False
    with machine.control, pytest.raises(QobraError, match="^ramfb device requires fw_cfg with DMA$"):
        machine.board.ready = False  # type: ignore[union-attr]
        add_device(machine, {"driver": "ramfb"}, keyval=True)
    machine.close()
