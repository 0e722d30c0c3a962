"""Character devices as programs' options give them: ``-chardev socket,id=c,path=P,server=on`` and ``-serial tcp:H:P``.

Turns the text into the contract's ChardevBackend, which :class:`qobra.chardev.chardevs.Chardevs` takes.
"""

from __future__ import annotations

import os
import stat

from qobra.chardev.chardev import registry
from qobra.errors import QobraError
from qobra.report import report_line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

Options = dict[str, str]

# The options of the kinds that have many, so that a misspelt one is named before what it leaves missing.
_SOCKET = frozenset(
    (
        *("path", "host", "port", "fd", "abstract", "tight", "server", "wait", "telnet", "tn3270", "websocket"),
        *("reconnect", "delay", "nodelay", "tls-creds", "tls-authz", "to", "ipv4", "ipv6", "keep-alive", "numeric"),
    )
)
_UDP = frozenset(("host", "port", "localaddr", "localport", "ipv4", "ipv6"))
_BOOLEANS = frozenset(
    (
        *("server", "wait", "telnet", "tn3270", "websocket", "delay", "nodelay", "ipv4", "ipv6", "keep-alive"),
        *("numeric", "abstract", "tight", "append", "signal", "mux", "logappend"),
    )
)


ALIASES = {"tty": "serial", "parport": "parallel"}
"""Older names of kinds."""


def split(text: str, implied: str | None = None, *, warn: Callable[[str], None] | None = None) -> Options:
    """``a=b,c=d`` to a dict; ``,,`` in a value is a comma; the last of equal keys counts.

    A word without ``=`` stands for the value of ``implied`` if it is the first, else it is a switch: ``server`` is
    ``server=on`` and ``nowait`` is ``wait=off``, of which ``warn`` is told.
    """
    return dict(pairs(text, implied, warn=warn))


def pairs(text: str, implied: str | None = None, *, warn: Callable[[str], None] | None = None) -> list[tuple[str, str]]:
    """The same as a list, for those who take a key more than once."""
    options: list[tuple[str, str]] = []
    first = True
    while text:
        item, text = _item(text)
        key, equals, value = item.partition("=")
        if equals:
            options.append((key, value))
        elif first and implied is not None:
            options.append((implied, item))
        elif item:
            key, value = (item[2:], "off") if item.startswith("no") and item[2:] in _BOOLEANS else (item, "on")
            if warn is not None and key in _BOOLEANS:
                warn(f"short-form boolean option '{item}' deprecated\nPlease use {key}={value} instead")
            options.append((key, value))
        first = False
    return options


def _item(text: str) -> tuple[str, str]:
    """The text up to the next comma that stands alone, and what follows it."""
    item = ""
    while True:
        part, comma, text = text.partition(",")
        item += part
        if not comma or not text.startswith(","):
            return item, text
        item += ","
        text = text[1:]


def parse(
    text: str, *, warn: Callable[[str], None] | None = None, named_fds: bool = False
) -> tuple[str, dict[str, Any]]:
    """The id and the ChardevBackend of a ``-chardev`` option.

    ``named_fds``: a monitor may have been passed descriptors, to which it gave names.
    """
    options = split(text, "backend", warn=warn)
    id = options.pop("id", None)
    kind = options.pop("backend", "")
    if id is None:
        raise QobraError("chardev: no id specified")
    if not (id[:1].isalpha() and id.isascii() and all(c.isalnum() or c in "-._" for c in id)):
        raise QobraError(
            "Parameter 'id' expects an identifier\n"
            "Identifiers consist of letters, digits, '-', '.', '_', starting with a letter."
        )
    if kind in ALIASES:
        if warn is not None:
            warn(f"The alias '{kind}' is deprecated, use '{ALIASES[kind]}' instead")
        kind = ALIASES[kind]
    built = backend(kind, options)
    address = built["data"].get("addr") or {}
    if address.get("type") == "fd" and not named_fds:
        check_inherited(address["data"]["str"])
    return id, built


def check_inherited(number: str) -> None:
    """Refuse what is not the number of a socket that the program was started with. Raises QobraError."""
    try:
        digits = number.removeprefix("-")
        if not (digits.isascii() and digits.isdecimal() and len(digits) < 10):
            raise QobraError(f"Unable to parse FD number {number}")
        if stat.S_ISSOCK(os.fstat(int(number)).st_mode):
            return
    except OSError:
        pass
    raise QobraError(f"File descriptor '{number}' is not a socket")


def kind(text: str) -> str:
    """The kind that a ``-chardev`` option asks for, wherever in it that stands; empty if it does not."""
    return split(text, "backend").get("backend", "")


def is_multiplexed(text: str) -> bool:
    """Whether several are to share the device of a ``-chardev`` option (``mux=on``)."""
    return boolean("mux", split(text, "backend").get("mux", "off"))


def backend(kind: str, options: Options) -> dict[str, Any]:
    """The ChardevBackend of the kind ``kind`` with these options, each a text."""
    if not kind:
        raise QobraError('chardev: "" missing backend')
    if registry.find(kind) is None:
        raise QobraError(f"'{kind}' is not a valid char driver name")
    rest = {key: value for key, value in options.items() if key != "mux"}
    data: dict[str, Any] = {}
    if "logfile" in rest:
        data["logfile"] = rest.pop("logfile")
    if "logappend" in rest:
        data["logappend"] = boolean("logappend", rest.pop("logappend"))
    build = _BUILDERS.get(kind)
    if build is not None:
        build(rest, data)
    for key in rest:
        raise QobraError(f"Invalid parameter '{key}'")
    return {"type": kind, "data": data}


def boolean(key: str, value: str) -> bool:
    """``on`` or ``off``."""
    if value not in ("on", "off", "yes", "no", "true", "false", "y", "n"):
        raise QobraError(f"Parameter '{key}' expects 'on' or 'off'")
    return value in ("on", "yes", "true", "y")


def number(key: str, value: str) -> int:
    """A non-negative number, with a binary suffix if need be."""
    scale = {"k": 10, "m": 20, "g": 30, "t": 40}.get(value[-1:].lower(), 0)
    digits = value[:-1] if scale else value
    if not digits.isdecimal() or len(digits) > 20:
        raise QobraError(f"Parameter '{key}' expects a number")
    return int(digits) << scale


def _flags(rest: Options, data: dict[str, Any], *keys: str) -> None:
    for key in keys:
        if key in rest:
            data[key] = boolean(key, rest.pop(key))


def _socket(rest: Options, data: dict[str, Any]) -> None:
    unknown = [key for key in rest if key not in _SOCKET]
    if unknown:
        raise QobraError(f"Invalid parameter '{unknown[0]}'")
    data["addr"] = _stream_address(rest)
    server = boolean("server", rest.pop("server", "off"))
    data["server"] = server
    if server:
        data["wait"] = boolean("wait", rest.pop("wait", "on"))
    else:
        _flags(rest, data, "wait")
    _flags(rest, data, "telnet", "tn3270", "websocket", "nodelay")
    if "delay" in rest:
        if "nodelay" in data:
            raise QobraError("'delay' and 'nodelay' are mutually exclusive")
        data["nodelay"] = not boolean("delay", rest.pop("delay"))
    if "reconnect" in rest:
        data["reconnect"] = number("reconnect", rest.pop("reconnect"))
    for key in ("tls-creds", "tls-authz"):
        if key in rest:
            data[key] = rest.pop(key)


def _stream_address(rest: Options) -> dict[str, Any]:
    path, host, fd = rest.pop("path", None), rest.pop("host", None), rest.pop("fd", None)
    if [path, host, fd].count(None) < 2:
        raise QobraError("None or one of 'path', 'fd' or 'host' option required.")
    if path is not None:
        unix: dict[str, Any] = {"path": path}
        _flags(rest, unix, "abstract", "tight")
        return {"type": "unix", "data": unix}
    if host is not None:
        if "port" not in rest:
            raise QobraError("chardev: socket: no port given")
        return {"type": "inet", "data": _inet(rest, host)}
    # Where nothing is given, QEMU takes it for a descriptor, too.
    rest.pop("port", None)
    return {"type": "fd", "data": {"str": fd or ""}}


def _inet(rest: Options, host: str) -> dict[str, Any]:
    inet: dict[str, Any] = {"host": host, "port": rest.pop("port")}
    if "to" in rest:
        inet["to"] = number("to", rest.pop("to"))
    _flags(rest, inet, "ipv4", "ipv6", "keep-alive", "numeric")
    return inet


def _udp(rest: Options, data: dict[str, Any]) -> None:
    unknown = [key for key in rest if key not in _UDP]
    if unknown:
        raise QobraError(f"Invalid parameter '{unknown[0]}'")
    if not rest.get("port"):
        raise QobraError("chardev: udp: remote port not specified")
    remote: dict[str, Any] = {"host": rest.pop("host", "") or "localhost", "port": rest.pop("port")}
    local = {"host": rest.pop("localaddr", ""), "port": rest.pop("localport", "") or "0"}
    flags: dict[str, Any] = {}
    _flags(rest, flags, "ipv4", "ipv6")
    data["remote"] = {"type": "inet", "data": remote | flags}
    if local != {"host": "", "port": "0"}:
        data["local"] = {"type": "inet", "data": local}


def _file(rest: Options, data: dict[str, Any]) -> None:
    if "path" not in rest:
        raise QobraError("chardev: file: no filename given")
    data["out"] = rest.pop("path")
    if "input-path" in rest:
        data["in"] = rest.pop("input-path")
    _flags(rest, data, "append")


def _device(kind: str) -> Callable[[Options, dict[str, Any]], None]:
    def build(rest: Options, data: dict[str, Any]) -> None:
        if "path" not in rest:
            raise QobraError(f"chardev: {kind}: no device path given")
        data["device"] = rest.pop("path")

    return build


def _mux(rest: Options, data: dict[str, Any]) -> None:
    if "chardev" not in rest:
        raise QobraError("chardev: mux: no chardev given")
    data["chardev"] = rest.pop("chardev")


def _vc(rest: Options, data: dict[str, Any]) -> None:
    for key in ("width", "height", "cols", "rows"):
        if key in rest:
            data[key] = number(key, rest.pop(key))


def _ringbuf(rest: Options, data: dict[str, Any]) -> None:
    if "size" in rest and (size := number("size", rest.pop("size"))):  # 0 asks for the default
        data["size"] = size


_BUILDERS: dict[str, Callable[[Options, dict[str, Any]], None]] = {
    "socket": _socket,
    "udp": _udp,
    "file": _file,
    "pipe": _device("pipe"),
    "serial": _device("serial"),
    "parallel": _device("parallel"),
    "mux": _mux,
    "ringbuf": _ringbuf,
    "memory": _ringbuf,
    "vc": _vc,
    "stdio": lambda rest, data: _flags(rest, data, "signal"),
}


def parse_short(text: str) -> dict[str, Any]:
    """The ChardevBackend of the short form of ``-serial`` and ``-qmp``: ``stdio``, ``unix:PATH,server=on``, ..."""
    kind, _, rest = text.partition(":")
    if kind in ("null", "pty", "stdio", "ringbuf", "msmouse", "braille", "wctablet", "testdev") and not rest:
        return backend(kind, {})
    if kind == "vc":
        return backend("vc", _vc_size(rest, text))
    if kind in ("file", "pipe"):
        return backend(kind, {"path": rest})
    if text.startswith(("/dev/parport", "/dev/ppi")):
        return backend("parallel", {"path": text})
    if text.startswith("/dev/"):
        return backend("serial", {"path": text})
    if kind == "unix":
        return backend("socket", split(rest, "path"))
    if kind in ("tcp", "telnet", "websocket", "tn3270"):
        host_port, more = _item(rest)
        options = split(more)
        options["host"], options["port"] = _host_port(host_port, text)
        if kind != "tcp":
            options[kind] = "on"
        return backend("socket", options)
    if kind == "udp":
        remote, at, local = rest.partition("@")
        host, port = _host_port(remote, text)
        options = {"host": host, "port": port}
        if at:
            options["localaddr"], options["localport"] = _host_port(local, text)
        return backend("udp", options)
    raise QobraError(f"'{text}' is not a valid char driver")


def _vc_size(text: str, whole: str) -> Options:
    """``800x600`` pixels or ``80Cx24C`` characters, or either of each."""
    if not text:
        return {}
    options: Options = {}
    sides = text.split("x")
    if len(sides) != 2:
        raise QobraError(f"'{whole}' is not a valid char driver")
    for side, pixels, cells in (sides[0], "width", "cols"), (sides[1], "height", "rows"):
        options[cells if side.endswith("C") else pixels] = side.removesuffix("C")
    return options


def _host_port(text: str, whole: str) -> tuple[str, str]:
    host, colon, port = text.rpartition(":")
    if not colon:
        raise QobraError(f"'{whole}' is not a valid char driver")
    return host.strip("[]"), port


def warn_on_stderr(prefix: str) -> Callable[[str], None]:
    """A ``warn`` for :func:`split` that prints after ``prefix``."""
    return lambda text: report_line(f"{prefix}: warning: {text}")
