"""Pre-shared keys for Python's ssl module, which takes them itself only from 3.13 on.

Before that the two callbacks of OpenSSL are set on the SSL_CTX inside the SSLContext (its first field),
through the very libssl that Python's own module is linked to.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import ssl

FindKey = Callable[[str], "bytes | None"]

_SERVER_CALL = ctypes.CFUNCTYPE(
    ctypes.c_uint, ctypes.c_void_p, ctypes.c_char_p, ctypes.POINTER(ctypes.c_ubyte), ctypes.c_uint
)
_CLIENT_CALL = ctypes.CFUNCTYPE(
    ctypes.c_uint,
    ctypes.c_void_p,
    ctypes.c_char_p,
    ctypes.POINTER(ctypes.c_char),
    ctypes.c_uint,
    ctypes.POINTER(ctypes.c_ubyte),
    ctypes.c_uint,
)


def serve_keys(context: ssl.SSLContext, find: FindKey) -> None:
    """Have a server's ``context`` accept the users that ``find`` knows a key of."""
    if hasattr(context, "set_psk_server_callback"):
        context.set_psk_server_callback(lambda identity: find(identity or "") or b"")
        return

    def call(_ssl: Any, identity: bytes | None, out: Any, limit: int) -> int:
        key = find((identity or b"").decode("utf-8", "replace"))
        if not key or len(key) > limit:
            return 0
        ctypes.memmove(out, key, len(key))
        return len(key)

    _install(context, "SSL_CTX_set_psk_server_callback", _SERVER_CALL(call))


def offer_key(context: ssl.SSLContext, identity: str, key: bytes) -> None:
    """Have a client's ``context`` present itself as ``identity`` with ``key``."""
    if hasattr(context, "set_psk_client_callback"):
        context.set_psk_client_callback(lambda _hint: (identity, key))
        return
    name = identity.encode() + b"\0"

    def call(_ssl: Any, _hint: Any, out_name: Any, name_limit: int, out: Any, limit: int) -> int:
        if len(name) > name_limit or len(key) > limit:
            return 0
        ctypes.memmove(out_name, name, len(name))
        ctypes.memmove(out, key, len(key))
        return len(key)

    _install(context, "SSL_CTX_set_psk_client_callback", _CLIENT_CALL(call))


def _install(context: ssl.SSLContext, setter: str, call: Any) -> None:
    import _ssl

    native = ctypes.c_void_p.from_address(id(context) + object.__basicsize__)
    function = getattr(ctypes.CDLL(_ssl.__file__), setter)
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    function.restype = None
    function(native, ctypes.cast(call, ctypes.c_void_p))
    # The C side holds no reference.
    context.psk_call = call  # type: ignore[attr-defined]
