"""Options that the board keeps: what it boots, firmware and tables, the clock, what displays there are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qobra.chardev.options import split
from qobra.cli._system import boot, displays, firmware, values
from qobra.cli._system.icount import icount_sleeps
from qobra.errors import QobraError
from qobra.machine.option_groups import convert

if TYPE_CHECKING:
    from qobra.cli._system.given_options import GivenOptions
    from qobra.machine.board import Board

_TEXTS = {"kernel": "kernel", "initrd": "initrd", "append": "append", "dtb": "dtb", "bios": "firmware"}
_FLAGS: dict[str, tuple[str, Any]] = {
    "no-acpi": ("acpi", "off"),
    "no-hpet": ("hpet", False),
    "usb": ("usb", True),
    "nographic": ("graphics", False),
}
"""Options, and the properties that they are short for."""


def set_up_board(board: Board, architecture: str, options: GivenOptions) -> None:
    """Let ``board``, which has not been started, know of its options. Raises QobraError."""
    for option, name in _TEXTS.items():
        for value in options.values(option):
            board.set(name, value)
    board.firmware_directories = (*options.values("L"), *board.firmware_directories)
    if options.has("no-fd-bootchk"):
        board.floppy_boot_check = False
    board.only_migratable = options.has("only-migratable")
    for option, (name, setting) in _FLAGS.items():
        if options.has(option):
            board.set(name, setting)
    if options.has("usbdevice") and board.usb_supported:
        board.set("usb", True)
    options.each("fw_cfg", lambda value: _add_fw_cfg_file(board, value))
    options.each("acpitable", lambda value: _add_acpi_table(board, architecture, value))
    options.each("option-rom", lambda value: _add_option_rom(board, value))
    for option in ("append", "initrd"):
        if getattr(board, option) and not board.kernel:
            raise QobraError(f"-{option} only allowed with -kernel option")
    rtc: dict[str, Any] = {}
    options.each("rtc", lambda value: rtc.update(convert("rtc", split(value))))
    if rtc:
        _set_rtc(board, rtc)
    options.each("icount", lambda value: _set_icount(board, value))
    for value in options.values("boot"):
        board.boot |= boot.parse(split(value, "order"))
    displays.set_up(board, options)


def _add_fw_cfg_file(board: Board, value: str) -> None:
    name, data = values.fw_cfg_file(value)
    if any(name == other for other, _data in board.fw_cfg_files):
        raise QobraError(f"duplicate fw_cfg file name: {name}")
    board.fw_cfg_files.append((name, data))


def _add_acpi_table(board: Board, architecture: str, value: str) -> None:
    if architecture != "x86_64":
        raise QobraError("Option not supported for this target")
    board.users_acpi_tables.append(firmware.acpi_table(value))


def _add_option_rom(board: Board, value: str) -> None:
    rom = firmware.option_rom(value)
    if rom is None:
        return
    name, data, index = rom
    board.fw_cfg_files.append((name, data))
    if index is not None:
        if index in board.rom_places:
            raise QobraError(f"The bootindex {index} has already been used")
        board.rom_places[index] = name


def _set_icount(board: Board, value: str) -> None:
    board.clock_sleeps = icount_sleeps(convert("icount", split(value, "shift")))


def _set_rtc(board: Board, options: dict[str, Any]) -> None:
    base, clock = options.get("base", "utc"), options.get("clock", "host")
    for value, words in ((clock, ("host", "rt", "vm")), (options.get("driftfix", "none"), ("none", "slew"))):
        if value not in words:
            raise QobraError(f"invalid option value '{value}'")
    board.rtc_host = clock != "vm"
    if options.get("driftfix") == "slew":
        board.add_global("mc146818rtc", "lost_tick_policy", "slew")
    if base == "localtime":
        import calendar
        import time

        board.rtc_start = calendar.timegm(time.localtime(board.machine.clock.time_ns() // 10**9))
    elif base != "utc":
        board.rtc_start = values.seconds_of_date(base)
