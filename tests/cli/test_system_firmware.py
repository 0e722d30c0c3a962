"""What users add to the firmware's view, and where the program logs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qobra import log
from qobra.cli._system import early, firmware, process, table
from qobra.cli._system.build import Builder
from qobra.errors import QobraError
from qobra.machine import boot_paths
from qobra.qmp import dispatch

Build = Callable[..., Any]


@pytest.fixture
def build() -> Iterator[Build]:
    builders: list[Builder] = []

    def make(*arguments: str, architecture: str = "x86_64") -> Any:
        builder = Builder(architecture, table.scan(["-nodefaults", "-display", "none", "-S", *arguments]))
        builders.append(builder)
        with builder.machine.control:
            builder.build_early()
            builder.build_board()
        return builder.machine

    yield make
    for builder in builders:
        builder.machine.close()
        builder.close()


def test_a_table_without_a_header_gets_one(tmp_path: Path) -> None:
    for name, data in (("a", b"first"), ("b", b"second")):
        (tmp_path / name).write_bytes(data)
    made = firmware.acpi_table(f"sig=TESTX,rev=0x3,oem_id=ABCDEFGH,oem_rev=7,data={tmp_path}/a:{tmp_path}/b")
    assert made[:9] == b"TEST" + (36 + 11).to_bytes(4, "little") + b"\3"
    assert made[10:36] == b"ABCDEFQEMUQEMU\7\0\0\0QEMU\1\0\0\0"
    assert made[36:] == b"firstsecond" and sum(made) & 0xFF == 0


def test_fields_of_a_whole_table_are_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = firmware.acpi_table("data=/dev/null,sig=WHLE")
    (tmp_path / "t").write_bytes(whole + b"more")
    made = firmware.acpi_table(f"file={tmp_path}/t,oem_table_id=OURS")
    assert made[:8] == b"WHLE" + (40).to_bytes(4, "little") and made[16:24] == b"OURS\0\0\0\0"
    assert sum(made) & 0xFF == 0 and made.endswith(b"more")
    assert "header says 36, actual size 40 bytes" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "error"), [
    ("sig=TEST", "'-acpitable' requires one of 'data' or 'file'"),
    ("data=/dev/null,file=/dev/null", "'-acpitable' requires one of 'data' or 'file'"),
    ("data=/dev/null,x=1", "Invalid parameter 'x'"),
    ("data=/dev/null,rev=x", "Parameter 'rev' expects a uint64 value"),
    ("data=/dev/null,rev=256", "Parameter 'rev' expects uint8_t"),
    ("data=/none/such", "can't open file /none/such: No such file or directory"),
    ("file=/dev/null", "ACPI table claiming to have header is too short, available: 0, expected: 36"),
])  # fmt: skip
def test_tables_that_cannot_be(text: str, error: str) -> None:
    with pytest.raises(QobraError) as caught:
        firmware.acpi_table(text)
    assert caught.value.desc == error


def test_the_root_leads_to_the_table(build: Build, tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(b"contents")
    machine = build("-acpitable", f"sig=MINE,data={tmp_path}/t")
    tables = machine.board.fw_cfg.file("etc/acpi/tables")
    at = tables.index(b"MINE")
    assert tables[at + 36 : at + 44] == b"contents"
    root = tables.rindex(b"RSDT")
    length = int.from_bytes(tables[root + 4 : root + 8], "little")
    assert at in [int.from_bytes(tables[n : n + 4], "little") for n in range(root + 36, root + length, 4)]
    with pytest.raises(QobraError, match="Option not supported for this target"):
        build("-machine", "virt", "-acpitable", f"data={tmp_path}/t", architecture="riscv64")


def test_option_roms(build: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r").write_bytes(b"\x55\xaa")
    machine = build("-option-rom", f"{tmp_path}/r,bootindex=4", "-option-rom", f"{tmp_path}/none")
    assert machine.board.fw_cfg.file("genroms/r") == b"\x55\xaa"
    assert boot_paths.files(machine.board)["bootorder"] == b"/rom@genroms/r\0"
    assert f"Could not open option rom '{tmp_path}/none': No such file" in capsys.readouterr().err
    with pytest.raises(QobraError, match="Option ROM file is not specified"):
        build("-option-rom", "bootindex=1")


def test_options_of_one_architecture_are_told_of_there(build: Build) -> None:
    for architecture in ("x86_64", "riscv64"):
        machine = build("-machine", "none", architecture=architecture)
        with machine.control:
            told = {each["option"] for each in dispatch.call(machine, "query-command-line-options", {})}
        assert ("acpi" in told) == (architecture == "x86_64") and "option-rom" in told


def test_items_of_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    process.set_log_items("guest_errors,unimp")
    assert capsys.readouterr().out == ""
    with pytest.raises(SystemExit):
        process.set_log_items("int,bogus")
    assert capsys.readouterr().out.startswith("Log items (comma separated):\nout_asm")
    with pytest.raises(QobraError, match="^Error opening logfile /none/such: No such file or directory$"):
        log.set_file("/none/such")
    with pytest.raises(QobraError, match="^Bad logfile template: a%s$"):
        log.set_file("a%s")


@pytest.mark.parametrize(("options", "error"), [
    ("-monitor stdio", "-monitor stdio: cannot use stdio with -daemonize"),
    ("-serial mon:stdio", "-serial mon:stdio: cannot use stdio with -daemonize"),
    ("-chardev stdio,id=c", "-chardev stdio,id=c: cannot use stdio with -daemonize"),
    ("-chardev backend=stdio,id=c", "-chardev backend=stdio,id=c: cannot use stdio with -daemonize"),
    ("-qmp stdio", "-qmp stdio: cannot use stdio with -daemonize"),
    ("-nographic", "-nographic cannot be used with -daemonize"),
    ("-nographic -nodefaults", None), ("-chardev null,id=stdio", None), ("-serial null", None),
])  # fmt: skip
def test_what_needs_a_terminal_does_not_go_into_the_background(options: str, error: str | None) -> None:
    scanned = table.scan(options.split())
    if error is None:
        early.refuse_stdio(scanned)
        return
    with pytest.raises(QobraError) as caught:
        early.refuse_stdio(scanned)
    assert caught.value.desc == error
