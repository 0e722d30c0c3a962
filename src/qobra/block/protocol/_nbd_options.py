"""The many ways to say where an NBD export is: ``server``, older options, ``nbd:`` names and URIs."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

from qobra.errors import QobraError
from qobra.nbd.protocol import DEFAULT_PORT

if TYPE_CHECKING:
    from qobra.block.node import Options

_EXPORT = ":exportname="
_NO_ADDRESS = "NBD server address missing"


def server_address(options: Options) -> dict[str, Any]:
    """The SocketAddress of the server, from ``server`` or the older ``host``, ``port``, ``path``. Raises QobraError."""
    server = options.get("server")
    old = [name for name in ("path", "host", "port") if name in options]
    if server is not None:
        if old:
            raise QobraError("Cannot use 'server' and path/host/port at the same time", errno=errno.EINVAL)
        return dict(server)
    if "path" in options and "host" in options:
        raise QobraError("path and host may not be used at the same time", errno=errno.EINVAL)
    if "path" in options:
        if "port" in options:
            raise QobraError("port may not be used without host", errno=errno.EINVAL)
        return {"type": "unix", "path": options["path"]}
    if "host" in options:
        return {"type": "inet", "host": options["host"], "port": str(options.get("port", DEFAULT_PORT))}
    raise QobraError(_NO_ADDRESS, errno=errno.EINVAL)


def parse_filename(filename: str) -> Options:
    """``server`` and ``export`` from a URI, ``nbd:HOST:PORT``, ``nbd:unix:PATH``, these with ``:exportname=NAME``."""
    if "://" in filename:
        return _parse_uri(filename)
    if not filename.startswith("nbd:"):
        raise QobraError("File name string for NBD must start with 'nbd:'", errno=errno.EINVAL)
    place, found, export = filename.removeprefix("nbd:").partition(_EXPORT)
    if not place:
        raise QobraError(_NO_ADDRESS, errno=errno.EINVAL)
    options: Options = {"server": parse_place(place)}
    if found and export:
        options["export"] = export
    return options


def uri(address: dict[str, Any], export: str | None) -> str:
    """The URI that means the same, or "" where none does."""
    from urllib.parse import quote  # dear to import, and every driver is imported when a format is probed

    name = "/" + quote(export, safe="/") if export is not None else ""
    if address["type"] == "unix" and not address.get("abstract"):
        return f"nbd+unix://{name}?socket={address['path']}"
    if address["type"] == "inet" and address.keys().isdisjoint(("ipv4", "ipv6", "to")):
        return f"nbd://{address['host']}:{address['port']}{name}"
    return ""


def _parse_uri(text: str) -> Options:
    from qobra.nbd import uri as uris

    try:
        parsed = uris.parse(text)
    except QobraError:
        raise QobraError("No valid URL specified", errno=errno.EINVAL)
    # An inet URI without a host means this one to the library, and it lets other parameters by; here both are errors.
    inet = parsed.address["type"] == "inet"
    no_host = inet and text.split("://", 1)[1][:1] in ("", "/", ":")
    if no_host or parsed.tls or _names_in_query(text) != ([] if inet else ["socket"]):
        raise QobraError("No valid URL specified", errno=errno.EINVAL)
    options: Options = {"server": parsed.address}
    if parsed.export:
        options["export"] = parsed.export
    return options


def _names_in_query(text: str) -> list[str]:
    """The names of the parameters that a URI ends with."""
    query = text.partition("#")[0].partition("?")[2]
    return [each.partition("=")[0] for each in query.replace(";", "&").split("&") if each]


def parse_place(place: str) -> dict[str, Any]:
    """The SocketAddress that ``HOST:PORT`` or ``unix:PATH`` says. Raises QobraError."""
    if place.startswith("unix:"):
        return {"type": "unix", "path": place[5:]}
    host, colon, rest = place.rpartition(":") if place.startswith("[") else place.partition(":")
    port = rest.partition(",")[0]
    if not colon or not port or len(place) > 512:
        raise QobraError(f"error parsing address '{place}'", errno=errno.EINVAL)
    return {"type": "inet", "host": host.strip("[]") if host.startswith("[") else host, "port": port}
