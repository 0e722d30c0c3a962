"""SASL (RFC 4422), the server's side, by the host's libsasl2.

Which mechanisms there are and where users are known says the host's ``/etc/sasl2/qemu.conf``, or that file in
``SASL_CONF_PATH``.
"""

from __future__ import annotations

import ctypes
import threading
from ctypes import POINTER, Structure, byref, c_char_p, c_int, c_uint, c_void_p

from qobra.errors import QobraError

_APPLICATION = b"qemu"
_OK, _CONTINUE = 0, 1
_USERNAME, _SSF, _MAXOUTBUF, _SSF_EXTERNAL, _SEC_PROPS = 0, 1, 2, 100, 101
_SUCCESS_DATA = 4
_NOPLAINTEXT, _NOANONYMOUS = 0x1, 0x10
_LEAST_STRENGTH, _MOST_STRENGTH = 56, 100000
_BUFFER = 8192
_LEAST_PIECE = 256
"""Bytes that a client has to take at a time: each piece is protected by itself."""
_lock = threading.Lock()
"""libsasl2 may be called by several threads, which is not said of all that its plugins are made of."""
_loaded: ctypes.CDLL | None = None


class _SecurityProperties(Structure):
    """sasl_security_properties_t of sasl.h."""

    _fields_ = (
        ("min_ssf", c_uint),
        ("max_ssf", c_uint),
        ("maxbufsize", c_uint),
        ("security_flags", c_uint),
        ("property_names", c_void_p),
        ("property_values", c_void_p),
    )


def _library() -> ctypes.CDLL:
    """libsasl2, set up for servers. Raises QobraError where the host has none."""
    global _loaded
    with _lock:
        if _loaded is None:
            try:
                library = ctypes.CDLL("libsasl2.so.2")
            except OSError as error:
                raise QobraError(f"SASL is not available: {error}")
            text, size = POINTER(c_void_p), POINTER(c_uint)
            for name, arguments in (
                ("sasl_server_init", (c_void_p, c_char_p)),
                ("sasl_server_new", (c_char_p, c_char_p, c_char_p, c_char_p, c_char_p, c_void_p, c_uint, text)),
                ("sasl_listmech", (c_void_p, c_char_p, c_char_p, c_char_p, c_char_p, text, size, POINTER(c_int))),
                ("sasl_server_start", (c_void_p, c_char_p, c_char_p, c_uint, text, size)),
                ("sasl_server_step", (c_void_p, c_char_p, c_uint, text, size)),
                ("sasl_setprop", (c_void_p, c_int, c_void_p)),
                ("sasl_getprop", (c_void_p, c_int, text)),
                ("sasl_encode", (c_void_p, c_char_p, c_uint, text, size)),
                ("sasl_decode", (c_void_p, c_char_p, c_uint, text, size)),
                ("sasl_dispose", (text,)),
            ):
                getattr(library, name).argtypes = arguments
            if library.sasl_server_init(None, _APPLICATION) != _OK:
                raise QobraError("Failed to initialize SASL auth")
            _loaded = library
    return _loaded


def require() -> None:
    """Raises QobraError where the host has no SASL."""
    _library()


class SaslServer:
    """One client's authentication.

    ``protected`` says whether the connection needs no protection by SASL: TLS of ``strength`` bits, or a socket
    inside the host. ``ends`` are its two ends as ``ADDRESS;PORT``, the own one first; None where there are no such.
    """

    def __init__(self, service: str, *, protected: bool, strength: int, ends: tuple[str, str] | None) -> None:
        """Raises QobraError."""
        self._library = _library()
        self._handle = c_void_p()
        self._protected = protected
        own, peer = (end.encode() for end in ends) if ends is not None else (None, None)
        with _lock:
            arguments = (service.encode(), None, None, own, peer, None, _SUCCESS_DATA, byref(self._handle))
            if self._library.sasl_server_new(*arguments) != _OK:
                raise QobraError("SASL: no context for a client")
            if strength:
                self._set(_SSF_EXTERNAL, c_uint(strength))
            if protected:
                self._set(_SEC_PROPS, _SecurityProperties(0, 0, _BUFFER, 0))
            else:
                flags = _NOANONYMOUS | _NOPLAINTEXT
                self._set(_SEC_PROPS, _SecurityProperties(_LEAST_STRENGTH, _MOST_STRENGTH, _BUFFER, flags))

    def _set(self, name: int, value: ctypes.Structure | c_uint) -> None:
        if self._library.sasl_setprop(self._handle, name, byref(value)) != _OK:
            raise QobraError("SASL: a property cannot be set")

    def mechanisms(self) -> list[str]:
        """The names of what may be used here. Raises QobraError where that is nothing."""
        text, size = c_void_p(), c_uint()
        with _lock:
            result = self._library.sasl_listmech(self._handle, None, b"", b",", b"", byref(text), byref(size), None)
            names = ctypes.string_at(text, size.value) if result == _OK and text.value else b""
        if not names:
            raise QobraError("SASL: no mechanism")
        return names.decode("latin-1").split(",")

    def start(self, mechanism: str, data: bytes | None) -> tuple[bytes | None, bool]:
        """The client chose a mechanism and says ``data``. Returns what to say, and whether that was all.

        Raises QobraError where the client is not who it says it is.
        """
        text, size = c_void_p(), c_uint()
        with _lock:
            result = self._library.sasl_server_start(
                self._handle, mechanism.encode(), data, len(data or b""), byref(text), byref(size)
            )
            return self._said(result, text, size)

    def step(self, data: bytes | None) -> tuple[bytes | None, bool]:
        """The same for each answer of the client's."""
        text, size = c_void_p(), c_uint()
        with _lock:
            result = self._library.sasl_server_step(self._handle, data, len(data or b""), byref(text), byref(size))
            return self._said(result, text, size)

    @staticmethod
    def _said(result: int, text: c_void_p, size: c_uint) -> tuple[bytes | None, bool]:
        if result not in (_OK, _CONTINUE):
            raise QobraError("SASL authentication failed")
        return (ctypes.string_at(text, size.value) if text.value else None), result == _OK

    def user(self) -> str:
        """Who the client is. Raises QobraError."""
        text = c_void_p()
        with _lock:
            if self._library.sasl_getprop(self._handle, _USERNAME, byref(text)) != _OK or not text.value:
                raise QobraError("SASL: no user name")
            return ctypes.string_at(text).decode("utf-8", "replace")

    def layer(self) -> SaslLayer | None:
        """What protects the connection from now on; None where something else does.

        Raises QobraError where the mechanism is too weak.
        """
        if self._protected:
            return None
        if self._number(_SSF) < _LEAST_STRENGTH:
            raise QobraError("SASL: the mechanism does not protect the connection")
        piece = self._number(_MAXOUTBUF) or _BUFFER
        if piece < _LEAST_PIECE:
            raise QobraError("SASL: the client takes too little at a time")
        return SaslLayer(self, piece)

    def _number(self, name: int) -> int:
        where = c_void_p()
        with _lock:
            if self._library.sasl_getprop(self._handle, name, byref(where)) != _OK or not where.value:
                return 0
            return c_uint.from_address(where.value).value

    def encode(self, data: bytes) -> bytes:
        """``data``, protected. Raises QobraError."""
        return self._convert(self._library.sasl_encode, data)

    def decode(self, data: bytes) -> bytes:
        """What was protected, as far as it is whole. Raises QobraError."""
        return self._convert(self._library.sasl_decode, data)

    def _convert(self, function: ctypes._NamedFuncPointer, data: bytes) -> bytes:
        text, size = c_void_p(), c_uint()
        with _lock:
            if function(self._handle, data, len(data), byref(text), byref(size)) != _OK:
                raise QobraError("SASL: the protection of the connection is broken")
            return ctypes.string_at(text, size.value) if text.value else b""

    def close(self) -> None:
        """Forget the client."""
        with _lock:
            if self._handle.value:
                self._library.sasl_dispose(byref(self._handle))
                self._handle = c_void_p()


class SaslLayer:
    """A connection that a SASL mechanism protects: a layer as those of :mod:`qobra.chardev.layer` are."""

    def __init__(self, server: SaslServer, piece: int) -> None:
        self.ready = True
        self.ended = False
        self._server = server
        self._piece = piece

    def begin(self) -> bytes:
        """Nothing."""
        return b""

    def incoming(self, data: bytes) -> tuple[bytes, bytes]:
        """What ``data`` holds; nothing is to be answered. Raises QobraError."""
        return self._server.decode(data), b""

    def outgoing(self, data: bytes) -> bytes:
        """``data``, in pieces that the client can take. Raises QobraError."""
        return b"".join(self._server.encode(data[at : at + self._piece]) for at in range(0, len(data), self._piece))

    def take_breaks(self) -> int:
        """There are none."""
        return 0
