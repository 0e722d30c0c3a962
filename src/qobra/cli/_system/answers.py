"""What ``-machine help``, ``-device help`` and their like print."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qobra.errors import QobraError
from qobra.machine.option_groups import group_help
from qobra.report import report_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from qobra.object.tree import ObjectTree

_ASK = ("help", "?")

_GROUPS = {"smp": "smp-opts", "rtc": "rtc", "boot": "boot-opts"}
"""Options whose parameters can be asked for, with their groups."""


def answer(architecture: str, name: str, value: str) -> str | None:
    """The text for an option ``-name value`` that only asks, or None for any other."""
    first, *others = value.split(",")
    if name in _GROUPS and first in _ASK:
        return group_help(_GROUPS[name])
    if name == "chardev" and any(part in _ASK for part in others):
        return group_help(name)
    if name in _KINDS and first in _ASK:
        return _KINDS[name](architecture)
    if name in _TYPES and any(part in _ASK for part in others) and first not in _ASK:
        return _TYPES[name](architecture, value)
    if name == "drive" and ("format=help" in value.split(",") or "format=?" in value.split(",")):
        return _formats()
    if name == "tpmdev" and value == "help":
        from qobra.tpm.tpms import kinds_text

        return kinds_text()
    if name == "audio":
        from qobra.cli._system import sound

        return sound.cards_text() if sound.asks_for_cards(value) else None
    return None


# What there is of a kind: ``-device help``. ---------------------------------------------------------------------------


def _accelerators(_architecture: str) -> str:
    from qobra.machine.accelerator import names

    return "Accelerators supported in QEMU binary:\n" + "".join(f"{each}\n" for each in names())


def _audio_backends(_architecture: str) -> str:
    from qobra.audio import audiodevs

    return audiodevs.kinds_text()


def _chardevs(_architecture: str) -> str:
    from qobra.chardev.chardev import registry

    return "Available chardev backend types: \n" + "".join(f"  {each}\n" for each in registry.names())


def _devices(architecture: str) -> str:
    from qobra.machine import device_help

    return device_help.types(_tree(architecture))


def _displays(_architecture: str) -> str:
    return "Available display backend types:\nnone\n"


def _firmware_directories(architecture: str) -> str:
    from qobra.machine.launch import find_board

    return "".join(f"{each}\n" for each in find_board(architecture, None).firmware_directories)


def _graphics_cards(architecture: str) -> str:
    from qobra.cli._system import displays
    from qobra.machine.launch import find_board

    return displays.cards_text(find_board(architecture, None))


def _log_items(_architecture: str) -> str:
    from qobra import log

    return log.help_text()


def _netdevs(_architecture: str) -> str:
    from qobra.net.netdev import help_text

    return help_text()


def _objects(architecture: str) -> str:
    return _object(architecture, "help")


def _machines(architecture: str) -> str:
    from qobra.machine.launch import board_classes

    lines = []
    # The newest of a family first, as QEMU lists them; then those of none.
    classes = sorted(board_classes(architecture), key=lambda cls: cls.machine_name, reverse=True)
    alone = [cls for cls in reversed(classes) if not cls.family]
    for cls in [*sorted((cls for cls in classes if cls.family), key=lambda cls: cls.family), *alone]:
        if cls.alias:
            lines.append(f"{cls.alias:<20} {cls.description} (alias of {cls.machine_name})\n")
        default = " (default)" if architecture in cls.default_for else ""
        lines.append(f"{cls.machine_name:<20} {cls.description}{default}\n")
    return "Supported machines are:\n" + "".join(lines)


def _cpus(architecture: str) -> str:
    suffix = {"x86_64": "-x86_64-cpu", "riscv64": "-riscv-cpu"}[architecture]
    names = sorted(
        name.removesuffix(suffix)
        for name, cls in _tree(architecture).all_types().items()
        if name.endswith(suffix) and not cls.abstract
    )
    return "Available CPUs:\n" + "".join(f"{name}\n" for name in names)


# What can be set of one: ``-device e1000,help``. ----------------------------------------------------------------------


def _device(architecture: str, value: str) -> str:
    from qobra.machine import device_help

    type_name = value.split(",")[0]
    try:
        return device_help.properties(_tree(architecture), type_name)
    except QobraError as error:
        report_error(f"-device {type_name},help: {error}")
        return ""


def _machine(architecture: str, value: str) -> str:
    from qobra.machine.launch import find_board
    from qobra.object.help import property_line

    board = find_board(architecture, value.split(",")[0].removeprefix("type=") or None)
    properties = (prop for prop in board.class_properties().values() if prop.writable)
    return f"{board.type_name} options:\n" + "".join(sorted(property_line(prop) for prop in properties))


def _object(architecture: str, value: str) -> str:
    from qobra.object.help import object_help

    return object_help(_tree(architecture), value)


# And of others. -------------------------------------------------------------------------------------------------------


def _formats() -> str:
    from qobra.block.node import drivers

    # Filters of jobs have names that nobody can ask for.
    names = " ".join(sorted(name for name in drivers.names() if "_" not in name or name.startswith("host_")))
    return f"Supported formats: {names}\nSupported formats (read-only): {names}\n"


def _tree(architecture: str) -> ObjectTree:
    """The types of devices and objects that a machine of that architecture has."""
    from qobra.machine.launch import attach_board, find_board
    from qobra.machine.machine import Machine

    machine = Machine(capabilities=frozenset(("board", architecture)))
    attach_board(machine, find_board(architecture, "none"))
    return machine.objects


_KINDS: dict[str, Callable[[str], str]] = {
    "L": _firmware_directories,
    "accel": _accelerators,
    "audiodev": _audio_backends,
    "chardev": _chardevs,
    "cpu": _cpus,
    "d": _log_items,
    "device": _devices,
    "display": _displays,
    "machine": _machines,
    "netdev": _netdevs,
    "object": _objects,
    "vga": _graphics_cards,
}
_TYPES: dict[str, Callable[[str, str], str]] = {"device": _device, "machine": _machine, "object": _object}
