"""What ``-vnc`` takes: where a server listens, and who may use it how."""

from __future__ import annotations

from typing import Any

from qobra.errors import QobraError

BASE_PORT = 5900
_WEB_BASE_PORT = 5700
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


def web_addresses(options: dict[str, Any], plain: dict[str, Any] | None) -> dict[str, Any] | None:
    """Where the same server takes WebSockets, if it does, by ``websocket``; ``plain`` is where it listens else.

    ``on`` is the port 5700 + DISPLAY of the same host; other values are ``[HOST:]PORT``. Raises QobraError.
    """
    text = options.get("websocket")
    if text is None or plain is None:
        return None
    if options.get("reverse"):
        raise QobraError("Cannot use websockets in reverse mode")
    if text.startswith("unix:"):
        raise QobraError("UNIX sockets not supported with websock")
    host, _, port = text.rpartition(":")
    usual = plain["data"].get("host", "")
    if text == "on":
        display = int(plain["data"]["port"]) - BASE_PORT if plain["type"] == "inet" else 0
        port = str(_WEB_BASE_PORT + display)
    if not (port.isascii() and port.isdigit()):
        raise QobraError(f"address resolution failed for {host or usual}:{port}: it is no port")
    if int(port) > _MOST_PORT:
        raise QobraError(f"port {port} out of range")
    data: dict[str, Any] = {"host": host.removeprefix("[").removesuffix("]") or usual, "port": port}
    if "to" in options and text == "on":
        data["to"] = _WEB_BASE_PORT + options["to"]
    data |= {family: options[family] for family in ("ipv4", "ipv6") if family in options}
    return {"type": "inet", "data": data}


def share(options: dict[str, Any]) -> str:
    """The policy for clients that want the screen for themselves. Raises QobraError."""
    chosen: str = options.get("share", "allow-exclusive")
    if chosen not in _SHARES:
        raise QobraError("unknown vnc share= option")
    return chosen
