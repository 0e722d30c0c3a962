"""VeNCrypt, version 0.2: TLS beneath RFB (the RFB protocol as the TigerVNC project keeps it, section "VeNCrypt")."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qobra.display.vnc.wire import Gone

if TYPE_CHECKING:
    from qobra.display.vnc.handshake import Admission

_VERSION = b"\0\2"
_KINDS = {
    "tls-none": 257, "tls-vnc": 258, "x509-none": 260, "x509-vnc": 261, "x509-sasl": 263, "tls-sasl": 264,
}  # fmt: skip
_VERSION_TAKEN, _VERSION_REFUSED = b"\0", b"\1"
_KIND_TAKEN, _KIND_REFUSED = b"\1", b"\0"


def agree(admission: Admission) -> None:
    """Agree on what is beneath VeNCrypt and begin TLS. Raises Gone where client and server have nothing in common."""
    wire, vencrypt = admission.wire, admission.security.vencrypt
    assert vencrypt is not None
    wire.send(_VERSION)
    if wire.read(len(_VERSION)) != _VERSION:
        wire.send(_VERSION_REFUSED)
        raise Gone
    kind = _KINDS[vencrypt].to_bytes(4, "big")
    wire.send(_VERSION_TAKEN + b"\1" + kind)
    if wire.read(4) != kind:
        wire.send(_KIND_REFUSED)
        raise Gone
    wire.send(_KIND_TAKEN)
    admission.secure()
