"""How a client and the server agree on a version and on who the client is (RFC 6143, section 7.1)."""

from __future__ import annotations

import hmac
import os
from collections.abc import Callable

from qobra.display.vnc.wire import Gone, Wire

SECURITY = {"none": 1, "vnc": 2}
_INVALID = 0
_GREETING = b"RFB 003.008\n"
_OLDEST, _CHOOSES, _TELLS_WHY = 3, 7, 8
_MINORS = {3: 3, 4: 3, 5: 3, 7: 7, 8: 8}
_CHALLENGE, _PASSWORD = 16, 8
_FAILED = b"Authentication failed\0"


def admit(wire: Wire, auth: str, password: Callable[[], bytes | None]) -> None:
    """Let a client in that does what ``auth`` (of VncPrimaryAuth) asks for. Raises Gone for any other.

    ``password`` gives the password at the time when it is needed; None where there is none, or no longer.
    """
    minor = _version(wire)
    kind = SECURITY[auth]
    if minor < _CHOOSES:
        wire.send(kind.to_bytes(4, "big"))
    else:
        wire.send(bytes((1, kind)))
        if wire.number(1) != kind:
            _refuse(wire, minor)
    if auth == "vnc":
        challenge = os.urandom(_CHALLENGE)
        wire.send(challenge)
        answer, expected = wire.read(_CHALLENGE), password()
        if expected is None or not hmac.compare_digest(answer, response(expected, challenge)):
            _refuse(wire, minor)
        wire.send(bytes(4))
    elif minor >= _TELLS_WHY:
        wire.send(bytes(4))


def response(password: bytes, challenge: bytes) -> bytes:
    """What a client that knows ``password`` answers (RFC 6143, section 7.2.2): ``challenge``, encrypted by DES.

    The first 8 bytes of the password are the key, each with its bits turned round.
    """
    from cryptography.hazmat.primitives.ciphers import Cipher, modes

    try:
        from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
    except ImportError:  # before version 43
        from cryptography.hazmat.primitives.ciphers.algorithms import TripleDES

    key = bytes(int(f"{byte:08b}"[::-1], 2) for byte in password[:_PASSWORD].ljust(_PASSWORD, b"\0"))
    # Three times with one key is once.
    return Cipher(TripleDES(3 * key), modes.ECB()).encryptor().update(challenge)


def _version(wire: Wire) -> int:
    wire.send(_GREETING)
    answer = wire.read(len(_GREETING))
    major, minor = answer[4:7], answer[8:11]
    if not (answer.startswith(b"RFB ") and answer[7:8] == b"." and major.isdigit() and minor.isdigit()):
        raise Gone
    if int(major) != _OLDEST or int(minor) not in _MINORS:
        wire.send(_INVALID.to_bytes(4, "big"))
        raise Gone
    return _MINORS[int(minor)]


def _refuse(wire: Wire, minor: int) -> None:
    wire.send((1).to_bytes(4, "big"))
    if minor >= _TELLS_WHY:
        wire.send(len(_FAILED).to_bytes(4, "big") + _FAILED)
    raise Gone
