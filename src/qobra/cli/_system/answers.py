"""What ``-machine help``, ``-device help`` and their like print."""

from __future__ import annotations

from qobra.errors import QobraError
from qobra.report import report_error

_ASK = ("help", "?")


_GROUPS = {"smp": "smp-opts", "rtc": "rtc", "boot": "boot-opts"}
"""Options whose parameters can be asked for, with their groups."""

_ONLY = {
    "display": "Available display backend types:\nnone\n",
}
"""What is said of options that know but one thing."""

_SHORT_TYPES = {"string": "str", "boolean": "bool (on/off)", "number": "num", "size": "size"}


def answer(architecture: str, name: str, value: str) -> str | None:
    """The text for an option that only asks, or None for any other."""
    first = value.split(",")[0]
    asks = first in _ASK
    asks_of_type = not asks and any(part in _ASK for part in value.split(",")[1:])
    if name == "machine" and asks:
        return _machines(architecture)
    if name == "machine" and asks_of_type:
        return _machine(architecture, first.removeprefix("type="))
    if name in _GROUPS and asks:
        return _group(_GROUPS[name])
    if name in _ONLY and asks:
        return _ONLY[name]
    if name == "vga" and asks:
        from qobra.cli._system import displays
        from qobra.machine.launch import find_board

        return displays.cards_text(find_board(architecture, None))
    if name == "cpu" and asks:
        return _cpus(architecture)
    if name == "L" and asks:
        from qobra.machine.launch import find_board

        directories = find_board(architecture, None).firmware_directories
        return "".join(f"{each}\n" for each in directories)
    if name == "accel" and asks:
        from qobra.machine.accelerator import names

        return "Accelerators supported in QEMU binary:\n" + "".join(f"{each}\n" for each in names())
    if name == "device" and (asks or asks_of_type):
        from qobra.machine import device_help

        tree = _tree(architecture)
        try:
            return device_help.types(tree) if asks else device_help.properties(tree, first)
        except QobraError as error:
            report_error(f"-device {first},help: {error}")
            return ""
    if name == "drive" and ("format=help" in value.split(",") or "format=?" in value.split(",")):
        return _formats()
    if name == "tpmdev" and value == "help":
        from qobra.tpm.tpms import kinds_text

        return kinds_text()
    if name == "audiodev" and asks:
        from qobra.audio import audiodevs

        return audiodevs.kinds_text()
    if name == "audio":
        from qobra.cli._system import sound

        return sound.cards_text() if sound.asks_for_cards(value) else None
    if name == "netdev" and asks:
        from qobra.net.netdev import help_text

        return help_text()
    if name == "d" and asks:
        from qobra import log

        return log.help_text()
    if name == "object" and (asks or asks_of_type):
        from qobra.object.help import object_help

        return object_help(_tree(architecture), value)
    if name == "chardev" and asks:
        from qobra.chardev.chardev import registry

        return "Available chardev backend types: \n" + "".join(f"  {each}\n" for each in registry.names())
    return None


def _formats() -> str:
    from qobra.block.node import drivers

    # Filters of jobs have names that nobody can ask for.
    names = " ".join(sorted(name for name in drivers.names() if "_" not in name or name.startswith("host_")))
    return f"Supported formats: {names}\nSupported formats (read-only): {names}\n"


def _tree(architecture: str):  # type: ignore[no-untyped-def]
    from qobra.machine.launch import attach_board, find_board
    from qobra.machine.machine import Machine

    machine = Machine(capabilities=frozenset(("board", architecture)))
    attach_board(machine, find_board(architecture, "none"))
    return machine.objects


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


def _machine(architecture: str, name: str) -> str:
    from qobra.machine.launch import find_board
    from qobra.object.help import property_line

    board = find_board(architecture, name or None)
    properties = (prop for prop in board.class_properties().values() if prop.writable)
    return f"{board.type_name} options:\n" + "".join(sorted(property_line(prop) for prop in properties))


def _group(name: str) -> str:
    from qobra.machine.option_groups import GROUPS

    lines = sorted(f"  {key}=<{_SHORT_TYPES[kind]}>\n" for key, kind in GROUPS[name])
    return f"{name} options:\n" + "".join(lines)


def _cpus(architecture: str) -> str:
    suffix = {"x86_64": "-x86_64-cpu", "riscv64": "-riscv-cpu"}[architecture]
    names = sorted(
        name.removesuffix(suffix)
        for name, cls in _tree(architecture).all_types().items()
        if name.endswith(suffix) and not cls.abstract
    )
    return "Available CPUs:\n" + "".join(f"{name}\n" for name in names)
