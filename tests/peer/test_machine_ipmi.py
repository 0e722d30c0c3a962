"""Management controllers: what they answer, and what tables tell of them, is QEMU's."""

from __future__ import annotations

from pathlib import Path
from struct import unpack_from

import pytest

from qobra.testing.guest import Access
from qobra.testing.system import SystemProgram, peer_available

pytestmark = pytest.mark.skipif(not peer_available("x86_64"), reason="qemu-system-x86_64 is not installed")

_BASE = 0xCA2
# About themselves; the inventory; the event log; records; sensors; messages; the watchdog. Time stamps are left out.
_SCRIPT = """
1801 1808 1837 1901 1c01 1401 182e00 182f 182e0f 182f 0000 0001 0002 0006 000201 000202 000204 000206 0009 0400 b000
2810 281000 281100000010 281200000001020304 281100000006 281200000001 281100ff0310
2842 2843 284300000000 28430000000000ff 28430000ffff00ff 2844 2844000000000000000000000000000000 284500000000 2849
28470000434c52aa 28470100434c5200 2842 2821 2822 2823 282300000000 28230000000000ff 2823010000000a0a 2823050000000a0a
2824 282451000100000000 2826 2827 28270000434c52aa
1000 1020 1028 1029 102a 102b 102d 102d00 102d01 102b00 102900 102f00 102f01 102e00 10280080 1028008000000000 10280040
102900 1028003f01000000 1028001f01000000 102900 102800d0ffffffff 102900 102a0000 102800e0ffff0100 102900
1830 183000 1831 1832 1833 1834 34001820 18340f20180801 1835 1806 18068181 1807 1836
1822 1824 18240000000000 182404000000 18240400140000000a00 1825 1822 1825 182404220103100a00 182406020003000a00 1825
1802 1803 182f 2100
"""


def _ask(guest: Access, request: bytes) -> str:
    response = bytearray()
    guest.port_out(_BASE + 1, 1, 0x61)
    for value in request[:-1]:
        guest.port_in(_BASE, 1)
        guest.port_out(_BASE, 1, value)
    guest.port_out(_BASE + 1, 1, 0x62)
    guest.port_out(_BASE, 1, request[-1])
    while guest.port_in(_BASE + 1, 1) & 2:
        pass
    while guest.port_in(_BASE + 1, 1) >> 6 == 1:
        response.append(guest.port_in(_BASE, 1))
        guest.port_out(_BASE, 1, 0x68)
    guest.port_in(_BASE, 1)
    return response.hex()


def test_what_a_controller_answers(tmp_path: Path) -> None:
    arguments = ["-machine", "pc", "-device", "ipmi-bmc-sim,id=b,mfg_id=7", "-device", "isa-ipmi-kcs,bmc=b"]
    with (
        SystemProgram(tmp_path, "x86_64", *arguments) as own,
        SystemProgram(tmp_path, "x86_64", *arguments, peer=True) as peer,
    ):
        for text in _SCRIPT.split():
            here, there = (_ask(program.guest, bytes.fromhex(text)) for program in (own, peer))
            assert here == there, text


_INTERFACES = [
    ("pc", "isa-ipmi-kcs"),
    ("q35", "isa-ipmi-bt,irq=0"),
    ("pc", "isa-ipmi-kcs,irq=10,ioport=0xca8"),
    ("q35", "pci-ipmi-bt"),
    ("q35", "smbus-ipmi,address=0x10"),
    ("pc", "smbus-ipmi,address=0x30"),
]


@pytest.mark.parametrize(("board", "interface"), _INTERFACES, ids=lambda text: text.split(",")[0])
def test_tables(tmp_path: Path, board: str, interface: str) -> None:
    """The structure of SMBIOS and the device of the DSDT are the same to the byte."""
    arguments = ["-machine", board, "-device", "ipmi-bmc-sim,id=b,slave_addr=0x22", "-device", f"{interface},bmc=b"]
    found = []
    for peer in (False, True):
        with SystemProgram(tmp_path, "x86_64", *arguments, peer=peer) as program:
            smbios = _fw_cfg_file(program.guest, "etc/smbios/smbios-tables")
            found.append((_structures(smbios, 38), _device(_fw_cfg_file(program.guest, "etc/acpi/tables"))))
    assert found[0] == found[1]


def _fw_cfg_file(guest: Access, wanted: str) -> bytes:
    def read(key: int, length: int) -> bytes:
        guest.port_out(0x510, 2, key)
        return bytes(guest.port_in(0x511, 1) for _ in range(length))

    count = int.from_bytes(read(0x19, 4), "big")
    listing = read(0x19, 4 + 64 * count)
    entries = (unpack_from(">IHH56s", listing, 4 + 64 * n) for n in range(count))
    size, key = next((size, key) for size, key, _, name in entries if name.rstrip(b"\0").decode() == wanted)
    return read(key, min(size, 16384))


def _structures(tables: bytes, kind: int) -> list[bytes]:
    found, at = [], 0
    while at < len(tables):
        end = tables.index(b"\0\0", at + tables[at + 1]) + 2
        if tables[at] == kind:
            found.append(tables[at:end])
        at = end
    return found


def _device(tables: bytes) -> bytes | None:
    at = tables.find(b"MI1_\x08_HID")
    if at < 0:
        return None
    start = tables.rindex(b"\x5b\x82", 0, at)
    lead = tables[start + 2]
    length = lead & 0x0F if lead >> 6 else lead
    for n in range(lead >> 6):
        length |= tables[start + 3 + n] << 4 + 8 * n
    return tables[start : start + 2 + length]
