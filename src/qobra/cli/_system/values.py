"""What single options mean, as values. All raise QobraError for what cannot be."""

from __future__ import annotations

import os
from typing import Any

from qobra.chardev.options import split
from qobra.cli._options import structure
from qobra.errors import QobraError
from qobra.machine.option_groups import convert, number
from qobra.object.number_list import NumberList
from qobra.report import report_error

_CPUS = NumberList(name="cpus")


def numa(text: str) -> dict[str, Any]:
    """NumaOptions; ``cpus`` takes ranges and may be repeated."""
    from qobra.qapi.contract import contract

    if text.startswith("{"):
        return structure(text, "NumaOptions")
    cpus: list[str] = []
    rest: list[str] = []
    for item in text.split(","):
        key, _equals, value = item.partition("=")
        if key != "cpus":
            rest.append(f"{item}M" if key == "mem" and value.isdigit() else item)  # in MiB without a suffix
            continue
        cpus += [str(each) for each in _CPUS.convert(value)]
    options: dict[str, Any] = split(",".join(rest), "type")
    try:
        checked: dict[str, Any] = contract().check(
            "NumaOptions", options | ({"cpus": cpus} if cpus else {}), keyval=True
        )
    except QobraError as error:
        if error.desc.endswith("' is unexpected"):
            raise QobraError(f"Invalid parameter {error.desc.split()[1]}") from error
        raise
    return checked


def seconds_of_date(text: str) -> int:
    """``YYYY-MM-DD[THH:MM:SS]`` in seconds since the epoch; what is more than a month has goes on in the next.

    A time that is not whole counts as midnight, and what follows is not looked at.
    """
    import datetime
    import re

    found = re.match(r"([+-]?\d+)-(\d+)-(\d+)(?:T(\d+):(\d+):(\d+))?", text)
    if found is not None:
        year, month, day, hour, minute, second = (int(each or 0) for each in found.groups())
        try:
            first = datetime.date(year + (month - 1) // 12, (month - 1) % 12 + 1, 1)
        except (ValueError, OverflowError):
            pass
        else:
            days = first.toordinal() - datetime.date(1970, 1, 1).toordinal() + day - 1
            return ((days * 24 + hour) * 60 + minute) * 60 + second
    raise QobraError("invalid datetime format\nvalid formats: '2006-06-17T16:01:21' or '2006-06-17'")


def escape_key(text: str) -> int:
    """``-echr``: the code of a key, of which what follows a number is not looked at."""
    import re

    found = re.match(r"\s*[+-]?(0[xX][0-9a-fA-F]+|\d+)", text)
    if found is None:
        raise QobraError("Bad argument to echr")
    return number("echr", found[1]) & 0xFF


def is_inherited(fd: int) -> bool:
    """Whether the program was started with this descriptor."""
    try:
        return os.get_inheritable(fd)
    except OSError:
        return False


def global_default(text: str) -> tuple[str, str, str]:
    """``-global``: type, property, and its new default."""
    left, equals, value = text.partition("=")
    driver, dot, name = left.partition(".")
    if equals and dot:
        return driver, name, value
    options = convert("global", split(text))
    if len(options) < 3:
        raise QobraError("options 'driver', 'property', and 'value' are required")
    return options["driver"], options["property"], options["value"]


def fw_cfg_file(text: str) -> tuple[str, bytes]:
    """``-fw_cfg``: the name of a file and its bytes."""
    options = convert("fw_cfg", split(text, "name"))
    name = options.get("name")
    if name is None or bool(options.get("file")) == bool(options.get("string")):
        raise QobraError("name, plus exactly one of file, string and gen_id, are needed")
    if not name.startswith("opt/"):
        report_error(f'-fw_cfg {text}: warning: externally provided fw_cfg item names should be prefixed with "opt/"')
    if options.get("string"):
        return name, options["string"].encode()
    try:
        with open(options["file"], "rb") as stream:
            return name, stream.read(64 << 20)
    except OSError as error:
        raise QobraError.from_os(f"can't load {options['file']}", error)
