"""SASL beneath RFB (the RFB protocol as the TigerVNC project keeps it, section "SASL")."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from qobra.crypto.sasl import SaslServer
from qobra.display.vnc.wire import Gone, Wire
from qobra.errors import QobraError

if TYPE_CHECKING:
    from qobra.display.vnc.handshake import Admission

_LONGEST_NAME = 100
_LONGEST_DATA = 1 << 20
_MOST_STEPS = 32
"""No mechanism asks and answers so often."""


def authenticate(admission: Admission) -> None:
    """Have the client say who it is; the connection is then as safe as it must be. Raises Gone where it cannot."""
    wire = admission.wire
    try:
        server = SaslServer("vnc", protected=_protected(admission), strength=wire.strength, ends=_ends(wire))
    except QobraError:
        raise Gone
    wire.on_close.append(server.close)
    try:
        names = server.mechanisms()
        wire.send(_counted(",".join(names).encode("latin-1")))
        length = wire.number(4)
        if not 0 < length <= _LONGEST_NAME:
            raise Gone
        name = wire.read(length).decode("latin-1")
        if name not in names:
            raise Gone
        try:
            answer, done = server.start(name, _read(wire))
            steps = 0
            while not _say(wire, answer, done):
                steps += 1
                if steps > _MOST_STEPS:
                    raise Gone
                answer, done = server.step(_read(wire))
        except QobraError:
            admission.refuse()
        layer = server.layer()
        admission.user = server.user()
        if not admission.security.may_enter(admission.user):
            admission.refuse()
    except QobraError:
        admission.refuse()
    admission.accept()
    if layer is not None:
        wire.add(layer)


def _protected(admission: Admission) -> bool:
    return admission.wire.strength > 0 or admission.wire.sock.family == socket.AF_UNIX


def _ends(wire: Wire) -> tuple[str, str] | None:
    """Both ends as SASL names them."""
    if wire.sock.family == socket.AF_UNIX:
        return None
    try:
        own, peer = (f"{name[0]};{name[1]}" for name in (wire.sock.getsockname(), wire.sock.getpeername()))
    except OSError:
        raise Gone
    return own, peer


def _counted(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def _read(wire: Wire) -> bytes | None:
    """What the client says, which ends with a zero that is not part of it; None where that is nothing at all."""
    length = wire.number(4)
    if length > _LONGEST_DATA:
        raise Gone
    return wire.read(length)[:-1] if length else None


def _say(wire: Wire, data: bytes | None, done: bool) -> bool:
    """Say ``data`` in the same way, and whether that was all."""
    wire.send(_counted(data + b"\0" if data is not None else b"") + bytes((done,)))
    return done
