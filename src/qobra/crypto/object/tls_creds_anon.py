"""``tls-creds-anon``: encryption without proof of identity (anonymous Diffie-Hellman of RFC 5246)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from qobra.crypto.tls import LoadableTlsCreds, apply_priority, new_context, require_tls12
from qobra.object.types import registry

if TYPE_CHECKING:
    import ssl

# The group ffdhe2048 of RFC 7919, as PEM parameters.
_FFDHE2048 = b"""\
-----BEGIN X9.42 DH PARAMETERS-----
MIICDAKCAQEA//////////+t+FRYortKmq/cViAnPTzx2LnFg84tNpWp4TZBFGQz
+8yTnc4kmz75fS/jY2MMddj2gbICrsRhetPfHtXV/WVhJDP1H18GbtCFY2VVPe0a
87VXE15/V8k1mE8McODmi3fipona8+/och3xWKE2rec1MKzKT0g6eXq8CrGCsyT7
YdEIqUuyyOP7uWrat2DX9GgdT0Kj3jlN9K5W7edjcrsZCwenyO4KbXCeAvzhzffi
7MA0BM0oNC9hkXL+nOmFg/+OTxIy7vKBg8P+OxtMb61zO7X8vC7CIAXFjvGDfRaD
ssbzSibBsu/6iGtCOGEoXJf//////////wIBAgKCAQB//////////9b8KixRXaVN
V+4rEBOennjsXOLB5xabStTwmyCKMhn95knO5xJNn3y+l/GxsYY67HtA2QFXYjC9
ae+Paur+srCSGfqPr4M3aEKxsqqe9o152quJrz+r5JrMJ4Y4cHNFu/FTRO159/Q5
DvisUJtW85qYVmUnpB08vV4FWMFZkn2w6IRUpdlkcf3ctW1bsGv6NA6noVHvHKb6
Vyt287G5XYyFg9PkdwU2uE8BfnDm+/F2YBoCZpQaF7DIuX9OdMLB/8cniRl3eUDB
4f8djaY31rmd2v5eF2EQAuLHeMG+i0HZY3mlE2DZd/1ENaEcMJQuS///////////
-----END X9.42 DH PARAMETERS-----
"""


@registry.register("tls-creds-anon")
class TlsCredsAnon(LoadableTlsCreds):
    """No certificates at all: it keeps listeners out, not impostors."""

    type_name = "tls-creds-anon"
    user_creatable = True

    def complete(self) -> None:
        listens = self.endpoint == "server" and self.dir is not None
        self._dh = self.find_file("dh-params.pem", required=False) if listens else None
        self._context = self._build()
        self.is_loaded = True

    def context(self) -> ssl.SSLContext:
        return self._context

    def _build(self) -> ssl.SSLContext:
        server = self.endpoint == "server"
        context = new_context(server)
        apply_priority(context, self.priority)
        # TLS 1.3 has no anonymous key exchange, and OpenSSL allows the older one at security level 0 only.
        require_tls12(context, self.priority)
        context.set_ciphers("ADH:AECDH:@SECLEVEL=0")
        if server:
            if self._dh is not None:
                context.load_dh_params(self._dh)
            else:
                _load_default_group(context)
        return context


def _load_default_group(context: ssl.SSLContext) -> None:
    # The ssl module takes a file name only.
    fd = os.memfd_create("dh-params")
    try:
        os.write(fd, _FFDHE2048)
        context.load_dh_params(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
