"""The ACPI tables: how the firmware links them, what is in them, and that programs of the field understand them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from struct import unpack_from
from typing import Any

import pytest

from qobra.errors import QobraError
from qobra.machine.acpi_tables import aml
from qobra.machine.launch import attach_board, find_board
from qobra.machine.machine import Machine
from qobra.machine.plug import add_device
from qobra.testing.guest import BoardAccess

_BASES = {"etc/acpi/tables": 0x100000, "etc/acpi/rsdp": 0xF0000, "etc/acpi/nvdimm-mem": 0x200000}


class Firmware:
    """What a firmware does: read the files of fw_cfg, and follow the loader's commands."""

    def __init__(self, machine: Machine) -> None:
        self.access = BoardAccess(machine)
        self.memory: dict[str, bytearray] = {}
        self.files = self._directory()
        for at in range(0, len(script := self._read("etc/table-loader")), 128):
            self._carry_out(script[at : at + 128])

    def _select(self, key: int, length: int) -> bytes:
        self.access.port_out(0x510, 2, key)
        return bytes(self.access.port_in(0x511, 1) for _ in range(length))

    def _directory(self) -> dict[str, tuple[int, int]]:
        count = int.from_bytes(self._select(0x19, 4), "big")
        listing = self._select(0x19, 4 + 64 * count)
        entries = (unpack_from(">IHH56s", listing, 4 + 64 * n) for n in range(count))
        return {name.rstrip(b"\0").decode(): (key, size) for size, key, _, name in entries}

    def _read(self, name: str) -> bytes:
        return self._select(*self.files[name])

    def _carry_out(self, command: bytes) -> None:
        kind = unpack_from("<I", command)[0]
        names = [command[at : at + 56].rstrip(b"\0").decode("latin-1") for at in (4, 60)]
        if kind == 1:
            alignment, zone = unpack_from("<IB", command, 60)
            assert _BASES[names[0]] % alignment == 0
            assert zone == (2 if names[0].endswith("rsdp") else 1)
            self.memory[names[0]] = bytearray(self._read(names[0]))
        elif kind == 2:
            at, width = unpack_from("<IB", command, 116)
            data = self.memory[names[0]]
            value = int.from_bytes(data[at : at + width], "little") + _BASES[names[1]]
            data[at : at + width] = value.to_bytes(width, "little")
        else:
            assert kind == 3
            at, start, length = unpack_from("<III", command, 60)
            data = self.memory[names[0]]
            assert data[at] == 0
            data[at] = -sum(data[start : start + length]) & 0xFF

    def table(self, address: int) -> bytes:
        data, start = self.memory["etc/acpi/tables"], address - _BASES["etc/acpi/tables"]
        found = bytes(data[start : start + unpack_from("<I", data, start + 4)[0]])
        if found[:4] != b"FACS":
            assert sum(found) & 0xFF == 0, found[:4]
        return found

    def tables(self) -> dict[str, bytes]:
        """Every table that the root pointer leads to, by signature."""
        root = self.memory["etc/acpi/rsdp"]
        assert root[:8] == b"RSD PTR " and sum(root) & 0xFF == 0
        rsdt = self.table(unpack_from("<I", root, 16)[0])
        pointers = unpack_from(f"<{(len(rsdt) - 36) // 4}I", rsdt, 36)
        found = {table[:4].decode(): table for table in map(self.table, pointers)}
        for at in (36, 40):
            table = self.table(unpack_from("<I", found["FACP"], at)[0])
            found[table[:4].decode()] = table
        return found


@pytest.fixture(params=["pc", "q35"])
def make(request: pytest.FixtureRequest) -> Iterator[Callable[..., Machine]]:
    made: list[Machine] = []

    def make(*devices: dict[str, Any], numa: tuple[dict[str, Any], ...] = (), **properties: Any) -> Machine:
        machine = Machine(capabilities=frozenset(("board", "x86_64")))
        made.append(machine)
        with machine.control:
            board = attach_board(machine, find_board("x86_64", request.param))
            for name, value in properties.items():
                board.set(name.replace("_", "-"), value)
            board.set_topology({"cpus": 2, "maxcpus": 4})
            for options in numa:
                if "memdev" in options:
                    machine.objects.create("memory-backend-ram", options["memdev"], {"size": 32 << 20})
                board.numa.set(options)
            board.max_ram_size, board.memory_slots = 1 << 30, 3
            board.set_memory(64 << 20)
            board.start()
            for each in devices:
                add_device(machine, each, keyval=True)
            board.finish()
        return machine

    yield make
    for each in made:
        each.close()


_BRIDGES = {
    "pc": {"driver": "pci-bridge", "id": "b", "chassis_nr": "1", "addr": "7"},
    "q35": {"driver": "pcie-root-port", "id": "b", "chassis": "1", "addr": "7"},
}


def _numa() -> tuple[dict[str, Any], ...]:
    return (
        {"type": "node", "nodeid": 0, "cpus": [0, 1], "memdev": "n0"},
        {"type": "node", "nodeid": 1, "cpus": [2, 3], "memdev": "n1"},
        {"type": "dist", "src": 0, "dst": 1, "val": 21},
    )


def _entries(table: bytes, start: int) -> list[tuple[int, bytes]]:
    found = []
    while start < len(table):
        kind, length = table[start], table[start + 1]
        assert length >= 2
        found.append((kind, table[start : start + length]))
        start += length
    return found


def test_tables_say_what_the_machine_has(make: Callable[..., Machine]) -> None:
    machine = make(numa=_numa(), nvdimm=True)
    board: Any = machine.board
    tables = Firmware(machine).tables()
    assert {"FACP", "FACS", "DSDT", "APIC", "SRAT", "SLIT", "NFIT"} <= tables.keys()
    assert ("MCFG" in tables) == (board.alias == "q35")
    apic = _entries(tables["APIC"], 44)
    cpus = [entry for kind, entry in apic if kind == 0]
    assert [(entry[3], entry[4]) for entry in cpus] == [(0, 1), (1, 1), (2, 0), (3, 0)]
    srat = _entries(tables["SRAT"], 48)
    assert [entry[2] for kind, entry in srat if kind == 0] == [0, 0, 1, 1]
    memory = [unpack_from("<IHQQIIQ", entry, 2) for kind, entry in srat if kind == 1]
    assert [(node, base, size, flags) for node, _, base, size, _, flags, _ in memory] == [
        (0, 0, 32 << 20, 1),
        (1, 32 << 20, 32 << 20, 1),
        (1, 1 << 32, (1 << 30) - (64 << 20) + (3 << 30), 3),
    ]
    assert tables["SLIT"][36:] == b"\2" + bytes(7) + bytes((10, 21, 21, 10))
    smi, enable, disable = unpack_from("<IBB", tables["FACP"], 48)
    assert smi == 0xB2
    # What the table says hands events over does so.
    access = BoardAccess(machine)
    controls = board.power if board.alias == "pc" else board.lpc
    access.port_out(0xB2, 1, enable)
    assert controls.acpi.control & 1
    access.port_out(0xB2, 1, disable)
    assert not controls.acpi.control & 1


def test_tables_are_made_anew_after_a_reset(make: Callable[..., Machine]) -> None:
    machine = make(nvdimm=True)
    before = Firmware(machine).tables()["NFIT"]
    with machine.control:
        machine.objects.create("memory-backend-ram", "m", {"size": 4 << 20})
        add_device(machine, {"driver": "nvdimm", "id": "n", "memdev": "m"}, keyval=True)
        assert machine.board is not None
        machine.board.reset_all()
    after = Firmware(machine).tables()["NFIT"]
    assert len(before) == 40 and len(after) == 40 + 56 + 48 + 80


@pytest.mark.parametrize(("promise", "bits"), [("cpu", 3), ("mem-ctrl", 2)])
def test_what_the_platform_promises(make: Callable[..., Machine], promise: str, bits: int) -> None:
    table = Firmware(make(nvdimm=True, nvdimm_persistence=promise)).tables()["NFIT"]
    assert unpack_from("<HHB3xI", table, 40) == (7, 16, 1, bits)


def test_without_acpi_there_are_no_tables(make: Callable[..., Machine]) -> None:
    board: Any = make(acpi="off").board
    assert board.fw_cfg.file("etc/table-loader") is None


def _write(directory: Path, tables: dict[str, bytes]) -> None:
    for signature, table in tables.items():
        (directory / f"{signature.lower()}.dat").write_bytes(table)


@pytest.mark.skipif(shutil.which("iasl") is None, reason="iasl (acpica-tools) is not installed")
def test_the_disassembler_understands_every_table_and_the_compiler_takes_it_back(
    make: Callable[..., Machine], tmp_path: Path
) -> None:
    machine = make(numa=_numa(), nvdimm=True)
    with machine.control:
        board: Any = machine.board
    _write(tmp_path, Firmware(machine).tables())
    for path in sorted(tmp_path.glob("*.dat")):
        done = subprocess.run(["iasl", "-d", path.name], cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        text = path.with_suffix(".dsl").read_text()
        text = text.replace("UnknownObj", "").replace("Unknown UUID", "")  # what other tables and users have
        assert "Invalid" not in text and "Unknown" not in text, (board.alias, path.name)
    for name in ("dsdt.dsl", "ssdt.dsl"):
        done = subprocess.run(["iasl", name], cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 and " 0 Errors" in done.stdout, done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("acpiexec") is None, reason="acpiexec (acpica-tools) is not installed")
@pytest.mark.parametrize(
    "method",
    [
        "\\_SB.PCI0._CRS", "\\_SB.LNKA._CRS", "\\_SB.PCI0.PCNT", "\\_SB.PCI0.S38.PCNT",
        "\\_SB.MHPD.MSCN", "\\_SB.MHPD.MP01._CRS", "\\_SB.MHPD.MP01._STA",
        "\\_SB.CPUS.C001._STA", "\\_SB.CPUS.CSCN", "\\_SB.CPUS.C001._MAT",
        "\\_SB.NVDR._FIT",
    ],
)  # fmt: skip
def test_methods_can_be_executed(
    make: Callable[..., Machine], tmp_path: Path, request: pytest.FixtureRequest, method: str
) -> None:
    name = request.node.callspec.params["make"]
    machine = make(_BRIDGES[name], nvdimm=True)
    if method.endswith("PCI0.PCNT") and name == "q35":
        pytest.skip("the root bus of q35 has no hot-plug of its own")
    _write(tmp_path, Firmware(machine).tables())
    done = subprocess.run(
        ["acpiexec", "-b", f"execute {method}", "dsdt.dat", "ssdt.dat"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    output = done.stdout + done.stderr
    assert f"Evaluating {method}" in output, output
    assert "AE_" not in output and "ACPI Error" not in output, output


@pytest.mark.parametrize("size", [0, 1, 62, 63, 64, 4093, 4094, 4095, 1 << 20])
def test_lengths_of_packages(size: int) -> None:
    encoded = aml.length(size)
    count = encoded[0] >> 6
    value = encoded[0] & 0x3F if not count else (encoded[0] & 0xF) | int.from_bytes(encoded[1:], "little") << 4
    assert len(encoded) == count + 1
    assert value == size + len(encoded)


def test_names() -> None:
    assert aml.name("\\_SB.PCI0.ISA") == b"\\\x2f\x03_SB_PCI0ISA_"
    assert aml.name("^S08.PCNT") == b"^\x2eS08_PCNT"
    assert aml.name("\\") == b"\\\0"
    assert aml.eisa_id("PNP0A03") == b"\x0c\x41\xd0\x0a\x03"


@pytest.mark.parametrize(("board", "driver"), [("pc", "PIIX4_PM"), ("q35", "ICH9-LPC")])
@pytest.mark.parametrize(
    ("told", "bits", "packages"),
    [
        ({}, "8000 0081 8280", {3: 1, 4: 2, 5: 0}),
        ({"disable_s3": 1}, "8000 0001 8280", {4: 2, 5: 0}),
        ({"disable_s4": 1, "s4_val": 5}, "8000 0081 0580", {3: 1, 5: 0}),
        ({"s4_val": 5}, "8000 0081 8580", {3: 1, 4: 5, 5: 0}),
    ],
)
def test_states_of_sleep(board: str, driver: str, told: dict[str, int], bits: str, packages: dict[int, int]) -> None:
    machine = Machine(capabilities=frozenset(("board", "x86_64")))
    try:
        with machine.control:
            made = attach_board(machine, find_board("x86_64", board))
            for name, value in told.items():
                made.add_global(driver, name, str(value))
            made.set_topology({"cpus": 1})
            made.set_memory(16 << 20)
            made.start()
            made.finish()
        firmware = Firmware(machine)
        assert firmware._read("etc/system-states") == bytes.fromhex(bits)
        code = firmware.tables()["DSDT"]
        found = {n: code[code.index(f"_S{n}_".encode()) + 4 :][:8] for n in (3, 4, 5) if f"_S{n}_".encode() in code}
        assert found.keys() == packages.keys()
        for state, kind in packages.items():
            assert aml.integer(kind) * 2 in found[state]
    finally:
        machine.close()


def test_users_say_whose_tables_they_are() -> None:
    machine = Machine(capabilities=frozenset(("board", "x86_64")))
    board: Any = attach_board(machine, find_board("x86_64", "pc"))
    with pytest.raises(QobraError, match="x-oem-id value is bigger than 6 bytes in size"):
        board.set("x-oem-id", "1234567")
    board.set("x-oem-id", "AB")
    board.set("x-oem-table-id", "CDEFGHIJ")
    board.set_topology({"cpus": 1})
    board.set_memory(64 << 20)
    board.start()
    board.finish()
    tables = board.fw_cfg.file("etc/acpi/tables")
    for signature in (b"DSDT", b"FACP", b"APIC", b"RSDT"):
        at = tables.index(signature)
        assert tables[at + 10 : at + 24] == b"AB\0\0\0\0CDEFGHIJ"
    assert board.fw_cfg.file("etc/acpi/rsdp")[9:15] == b"AB\0\0\0\0"
    machine.close()
