"""``tls-creds-psk``: a key that both sides know (RFC 4279; RFC 8446 section 4.2.11)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qobra.crypto.tls import LoadableTlsCreds, apply_priority, new_context, require_tls12
from qobra.errors import QobraError, strerror
from qobra.object.property import String
from qobra.object.types import registry

if TYPE_CHECKING:
    import ssl

_MAX_LENGTH = 1 << 20


@registry.register("tls-creds-psk")
class TlsCredsPsk(LoadableTlsCreds):
    """Keys of ``keys.psk``, one ``user:hexadecimal key`` a line. A client sends ``username``."""

    type_name = "tls-creds-psk"
    user_creatable = True

    username = String()

    def complete(self) -> None:
        if self.dir is None:
            raise QobraError("Missing 'dir' property value")
        server = self.endpoint == "server"
        if server and self.username is not None:
            raise QobraError("username should not be set when endpoint=server")
        path = self.find_file("keys.psk", required=True) or ""
        keys = _read_keys(path)
        context = new_context(server)
        apply_priority(context, self.priority)
        # In TLS 1.3 OpenSSL takes such a key for a session to resume, which Python's session context forbids.
        require_tls12(context, self.priority)
        context.set_ciphers("kPSK:kECDHEPSK:kDHEPSK")
        if server:
            from qobra.psk import serve_keys

            serve_keys(context, keys.get)
        else:
            from qobra.psk import offer_key

            username = self.username or "qemu"
            if username not in keys:
                raise QobraError(f"Username {username} not found in PSK file {path}")
            offer_key(context, username, keys[username])
        self._context = context
        self.is_loaded = True

    def context(self) -> ssl.SSLContext:
        return self._context


def _read_keys(path: str) -> dict[str, bytes]:
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            text = stream.read(_MAX_LENGTH)
    except OSError as error:
        raise QobraError(f"Unable to read {path}: {strerror(error)}", errno=error.errno)
    keys = {}
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        username, colon, key = line.strip().rpartition(":")
        try:
            keys[username] = bytes.fromhex(key)
        except ValueError:
            colon = ""
        if not colon:
            raise QobraError(f"Unable to load PSK keys from {path}: a line is not 'user:hexadecimal key'")
    return keys
