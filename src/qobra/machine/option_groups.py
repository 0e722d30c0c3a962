"""The option groups of the system programs: which parameters each option takes, and of which type.

The programs parse by these tables, and query-command-line-options shows them, so what is shown is what is taken.
A group without parameters takes any: which, depends on the type that is chosen in it.
"""

from __future__ import annotations

from typing import Any

from qobra.errors import QobraError
from qobra.object.property import parse_size

STRING, BOOLEAN, NUMBER, SIZE = "string", "boolean", "number", "size"

_THROTTLING = tuple(
    (f"throttling.{kind}-{direction}{suffix}", NUMBER)
    for kind in ("iops", "bps")
    for direction in ("total", "read", "write")
    for suffix in ("", "-max", "-max-length")
) + (("throttling.iops-size", NUMBER), ("throttling.group", STRING))

GROUPS: dict[str, tuple[tuple[str, str], ...]] = {
    "accel": (),
    "acpi": (),
    "action": (("reboot", STRING), ("shutdown", STRING), ("panic", STRING), ("watchdog", STRING)),
    "add-fd": (("fd", NUMBER), ("set", NUMBER), ("opaque", STRING)),
    "boot-opts": (
        ("order", STRING), ("once", STRING), ("menu", BOOLEAN), ("splash", STRING), ("splash-time", NUMBER),
        ("reboot-timeout", NUMBER), ("strict", BOOLEAN),
    ),
    "chardev": (
        ("backend", STRING), ("path", STRING), ("host", STRING), ("port", STRING), ("fd", STRING),
        ("localaddr", STRING), ("localport", STRING), ("to", NUMBER), ("ipv4", BOOLEAN), ("ipv6", BOOLEAN),
        ("wait", BOOLEAN), ("server", BOOLEAN), ("delay", BOOLEAN), ("nodelay", BOOLEAN), ("reconnect", NUMBER),
        ("telnet", BOOLEAN), ("tn3270", BOOLEAN), ("tls-creds", STRING), ("tls-authz", STRING),
        ("websocket", BOOLEAN), ("mux", BOOLEAN), ("signal", BOOLEAN), ("size", SIZE), ("chardev", STRING),
        ("append", BOOLEAN), ("logfile", STRING), ("logappend", BOOLEAN), ("tight", BOOLEAN), ("abstract", BOOLEAN),
    ),
    "device": (),
    "drive": (
        ("node-name", STRING), ("driver", STRING), ("cache.direct", BOOLEAN), ("cache.no-flush", BOOLEAN),
        ("auto-read-only", BOOLEAN), ("discard", STRING), ("force-share", BOOLEAN), ("snapshot", BOOLEAN),
        ("aio", STRING), ("cache.writeback", BOOLEAN), ("format", STRING), ("werror", STRING), *_THROTTLING,
        ("detect-zeroes", STRING), ("bus", NUMBER), ("unit", NUMBER), ("index", NUMBER), ("media", STRING),
        ("if", STRING), ("file", STRING), ("read-only", BOOLEAN), ("rerror", STRING), ("copy-on-read", BOOLEAN),
        ("stats-account-invalid", BOOLEAN), ("stats-account-failed", BOOLEAN),
    ),
    "fw_cfg": (("name", STRING), ("file", STRING), ("string", STRING)),
    "global": (("driver", STRING), ("property", STRING), ("value", STRING)),
    "icount": (("shift", STRING), ("sleep", BOOLEAN)),
    "machine": (
        ("type", STRING), ("accel", STRING), ("kernel", STRING), ("initrd", STRING), ("append", STRING),
        ("dtb", STRING), ("firmware", STRING), ("dump-guest-core", BOOLEAN), ("mem-merge", BOOLEAN),
        ("dumpdtb", STRING), ("usb", BOOLEAN), ("graphics", BOOLEAN), ("memory-backend", STRING), ("nvdimm", BOOLEAN),
        ("nvdimm-persistence", STRING),
    ),
    "memory": (("size", SIZE), ("slots", NUMBER), ("maxmem", SIZE)),
    "mon": (("mode", STRING), ("chardev", STRING), ("pretty", BOOLEAN)),
    "msg": (("timestamp", BOOLEAN), ("guest-name", BOOLEAN)),
    "name": (("guest", STRING), ("process", STRING), ("debug-threads", BOOLEAN)),
    "net": (),
    "netdev": (),
    "nic": (),
    "numa": (),
    "object": (),
    "option-rom": (("romfile", STRING), ("bootindex", NUMBER)),
    "overcommit": (("mem-lock", BOOLEAN),),
    "rtc": (("base", STRING), ("clock", STRING), ("driftfix", STRING)),
    "sandbox": (
        ("enable", BOOLEAN), ("obsolete", STRING), ("elevateprivileges", STRING), ("spawn", STRING),
        ("resourcecontrol", STRING),
    ),
    "smp-opts": (
        ("cpus", NUMBER), ("sockets", NUMBER), ("dies", NUMBER), ("clusters", NUMBER), ("cores", NUMBER),
        ("threads", NUMBER), ("maxcpus", NUMBER),
    ),
    "smbios": (),
    "vnc": (
        ("audiodev", STRING), ("sasl-authz", STRING), ("tls-authz", STRING), ("sasl", BOOLEAN), ("reverse", BOOLEAN),
        ("password-secret", STRING), ("password", BOOLEAN), ("ipv6", BOOLEAN), ("ipv4", BOOLEAN), ("to", NUMBER),
        ("connections", NUMBER), ("head", NUMBER), ("display", STRING), ("share", STRING), ("tls-creds", STRING),
        ("websocket", STRING), ("vnc", STRING),
    ),
    "tpmdev": (),
    "trace": (("enable", STRING), ("events", STRING), ("file", STRING)),
}  # fmt: skip
"""Parameters by group, in the order in which they are shown."""

OF_ONE_ARCHITECTURE = {"acpi": "x86_64", "smbios": "x86_64"}
"""Groups that only the program of one architecture has."""

UNLISTED: dict[str, tuple[tuple[str, str], ...]] = {
    "icount": (("align", BOOLEAN), ("rr", STRING), ("rrfile", STRING), ("rrsnapshot", STRING)),
    "overcommit": (("cpu-pm", BOOLEAN),),
    "vnc": (("id", STRING),),
}
"""Parameters that are taken or refused in QEMU's words and not shown, as nothing comes of them while no CPU runs."""

_TRUE, _FALSE = ("on", "yes", "true", "y"), ("off", "no", "false", "n")


def convert(group: str, options: dict[str, str]) -> dict[str, Any]:
    """The texts of ``options`` as values of the group's types; QobraError for what it does not take."""
    return convert_as(dict(GROUPS[group] + UNLISTED.get(group, ())), options)


def convert_as(types: dict[str, str], options: dict[str, str]) -> dict[str, Any]:
    """The same for parameters whose types are not a group's."""
    return {
        key: _value(key, text, types[key]) if key in types else _unknown(key, text, bool(types))
        for key, text in options.items()
    }


def boolean(key: str, text: str) -> bool:
    """``on`` or ``off``."""
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise QobraError(f"Parameter '{key}' expects 'on' or 'off'")


def number(key: str, text: str) -> int:
    """A whole number, decimal, hexadecimal or octal; of a negative one the two's complement in 64 bits."""
    try:
        value = int(text, 8 if text[:1] == "0" and text.isdigit() and len(text) > 1 else 0)
    except ValueError:
        raise QobraError(f"Parameter '{key}' expects a number")
    if not -1 << 63 <= value < 1 << 64:
        raise QobraError(f"Parameter '{key}' expects a number")
    return value % (1 << 64)


def _value(key: str, text: str, kind: str) -> Any:
    if kind == BOOLEAN:
        return boolean(key, text)
    if kind == NUMBER:
        return number(key, text)
    if kind == SIZE:
        return parse_size(text, key)
    return text


def _unknown(key: str, text: str, closed: bool) -> str:
    if closed:
        raise QobraError(f"Invalid parameter '{key}'")
    return text


_SHORT_TYPES = {STRING: "str", BOOLEAN: "bool (on/off)", NUMBER: "num", SIZE: "size"}


def group_help(name: str) -> str:
    """The text that ``help`` in an option of the group asks for."""
    lines = sorted(f"  {key}=<{_SHORT_TYPES[kind]}>\n" for key, kind in GROUPS[name])
    return f"{name} options:\n" + "".join(lines)
