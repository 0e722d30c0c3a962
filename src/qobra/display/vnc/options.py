"""What ``-vnc`` takes: where a server listens, and who may use it how."""

from __future__ import annotations

from typing import Any

from qobra.errors import QobraError

BASE_PORT = 5900
_MOST_PORT = 65535
_SHARES = ("allow-exclusive", "force-shared", "ignore")


def addresses(options: dict[str, Any]) -> dict[str, Any] | None:
    """SocketAddressLegacy of ``HOST:DISPLAY`` (and ``to``) or ``unix:PATH``; None for ``none``. Raises QobraError."""
    text = options["vnc"]
    if text in ("", "none"):
        return None
    if text.startswith("unix:"):
        return {"type": "unix", "data": {"path": text.removeprefix("unix:")}}
    host, colon, display = text.rpartition(":")
    if not colon:
        raise QobraError("no vnc port specified")
    if not (display.isascii() and display.isdigit()):
        raise QobraError(f"can't convert to a number: {display}")
    base = 0 if options.get("reverse") else BASE_PORT
    if int(display) > _MOST_PORT - base:
        raise QobraError(f"port {display} out of range")
    data: dict[str, Any] = {"host": host.removeprefix("[").removesuffix("]"), "port": str(base + int(display))}
    if "to" in options:
        data["to"] = base + options["to"]
    data |= {family: options[family] for family in ("ipv4", "ipv6") if family in options}
    return {"type": "inet", "data": data}


def share(options: dict[str, Any]) -> str:
    """The policy for clients that want the screen for themselves. Raises QobraError."""
    chosen: str = options.get("share", "allow-exclusive")
    if chosen not in _SHARES:
        raise QobraError("unknown vnc share= option")
    return chosen
