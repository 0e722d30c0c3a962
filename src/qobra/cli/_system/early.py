"""What is done with the options as texts, before anything is made from them: ``-set``, and ids that cannot be."""

from __future__ import annotations

from qobra.block.opener import valid_id
from qobra.chardev.options import kind, split
from qobra.errors import QobraError

Options = list[tuple[str, str]]

_WITH_IDS = ("device", "object", "chardev", "netdev", "drive")
_ON_CHARDEVS = ("chardev", "serial", "parallel", "monitor", "qmp", "qmp-pretty")
_BAD_ID = (
    "Parameter 'id' expects an identifier\n"
    "Identifiers consist of letters, digits, '-', '.', '_', starting with a letter."
)


def prepare(options: Options) -> Options:
    """The options with those of ``-set`` where they belong. Raises QobraError for ids that are taken or malformed."""
    result: Options = []
    for name, value in options:
        if name == "set":
            _set(result, value)
        else:
            result.append((name, value))
    taken: set[tuple[str, str]] = set()
    for name, value in result:
        if name not in _WITH_IDS or value.startswith("{"):
            continue
        id = split(value, "").get("id")
        if id is None:
            continue
        if not valid_id(id):
            raise QobraError(f"-{name} {value}: {_BAD_ID}")
        if (name, id) in taken:
            raise QobraError(f"-{name} {value}: Duplicate ID '{id}' for {name}")
        taken.add((name, id))
    return result


def refuse_stdio(options: Options) -> None:
    """A program in the background has no standard input and output. Raises QobraError for what would use them."""
    names = {name for name, _value in options}
    for name, value in options:
        if name not in _ON_CHARDEVS:
            continue
        backend = kind(value) if name == "chardev" else value.removeprefix("mon:").split(",")[0]
        if backend == "stdio":
            raise QobraError(f"-{name} {value}: cannot use stdio with -daemonize")
    if "nographic" in names and "nodefaults" not in names:
        raise QobraError("-nographic cannot be used with -daemonize")


def _set(options: Options, text: str) -> None:
    """``GROUP.ID.KEY=VALUE``: as if it stood in the option that made it."""
    place, equals, value = text.partition("=")
    group, _, rest = place.partition(".")
    id, dot, key = rest.partition(".")
    if not equals or not dot or not group or not id or not key:
        raise QobraError(f'-set {text}: can\'t parse: "{text}"')
    if group not in _WITH_IDS:
        raise QobraError(f"-set {text}: There is no option group '{group}'")
    for index, (name, given) in enumerate(options):
        if name == group and not given.startswith("{") and split(given, "").get("id") == id:
            escaped = value.replace(",", ",,")
            options[index] = (name, f"{given},{key}={escaped}")
            return
    raise QobraError(f'-set {text}: there is no {group} "{id}" defined')
