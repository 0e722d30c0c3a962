"""How a client and the server agree on a version and on who the client is (RFC 6143, section 7.1)."""

from __future__ import annotations

import hmac
import os
from typing import TYPE_CHECKING

from qobra.display.vnc.wire import Gone, Wire

if TYPE_CHECKING:
    import ssl

    from qobra.display.vnc.security import Security

_KINDS = {"none": 1, "vnc": 2, "vencrypt": 19, "sasl": 20}
_INVALID = 0
_GREETING = b"RFB 003.008\n"
_OLDEST, _CHOOSES, _TELLS_WHY = 3, 7, 8
_MINORS = {3: 3, 4: 3, 5: 3, 7: 7, 8: 8}
_OF_OLD_CLIENTS = ("none", "vnc")
_CHALLENGE, _PASSWORD = 16, 8
_FAILED = b"Authentication failed\0"


class Admission:
    """Lets one client in. What became known of it is in ``certified`` and ``user``, as VncClientInfo has them."""

    def __init__(self, wire: Wire, security: Security) -> None:
        self.wire = wire
        self.security = security
        self.certified: str | None = None
        self.user: str | None = None
        self._minor = _TELLS_WHY

    def secure(self) -> None:
        """Have the connection inside TLS from now on. Raises Gone where the client cannot, or may not."""
        from qobra.chardev.layer.tls import TlsLayer

        def check(session: ssl.SSLObject) -> None:
            self.certified = self.security.certified(session)
            cipher = session.cipher()
            if cipher is not None and self.security.proves_itself:
                self.wire.strength = cipher[2]

        assert self.security.creds is not None
        context = self.security.creds.server_context()
        self.wire.add(TlsLayer(context, server=True, check_peer=check))

    def welcome(self, auth: str) -> None:
        """Let the client in if it does what ``auth`` (of VncPrimaryAuth) asks for. Raises Gone where not."""
        self._minor = _version(self.wire)
        kind = _KINDS[auth]
        if self._minor >= _CHOOSES:
            self.wire.send(bytes((1, kind)))
            if self.wire.number(1) != kind:
                self.refuse()
        elif auth in _OF_OLD_CLIENTS:
            self.wire.send(kind.to_bytes(4, "big"))
        else:
            self.wire.send(_INVALID.to_bytes(4, "big"))
            raise Gone
        if auth == "vencrypt":
            from qobra.display.vnc.vencrypt import agree

            agree(self)
            self.ask(self.security.inner, accepted=True)
        else:
            # To older clients nothing is said where nothing was asked.
            self.ask(auth, accepted=self._minor >= _TELLS_WHY)

    def ask(self, auth: str, *, accepted: bool) -> None:
        """Ask for what is none of encryption. ``accepted``: say so where nothing is to be asked."""
        if auth == "vnc":
            self._ask_password()
        elif auth == "sasl":
            from qobra.display.vnc.sasl import authenticate

            authenticate(self)
        elif accepted:
            self.accept()

    def _ask_password(self) -> None:
        challenge = os.urandom(_CHALLENGE)
        self.wire.send(challenge)
        answer, expected = self.wire.read(_CHALLENGE), self.security.password()
        if expected is None or not hmac.compare_digest(answer, response(expected, challenge)):
            self.refuse()
        self.accept()

    def accept(self) -> None:
        """Tell the client that it is in."""
        self.wire.send(bytes(4))

    def refuse(self) -> None:
        """Tell the client that it is not, and raise Gone."""
        self.wire.send((1).to_bytes(4, "big"))
        if self._minor >= _TELLS_WHY:
            self.wire.send(len(_FAILED).to_bytes(4, "big") + _FAILED)
        raise Gone


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
