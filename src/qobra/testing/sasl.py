"""The client's side of SASL for tests, by the host's libsasl2."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, byref, c_char_p, c_uint, c_ulong, c_void_p

_OK, _CONTINUE, _INTERACT = 0, 1, 2
_USER, _AUTHNAME, _PASS, _REALM, _END = 0x4001, 0x4002, 0x4004, 0x4008, 0
_SEC_PROPS = 101


class _Callback(Structure):
    _fields_ = (("id", c_ulong), ("procedure", c_void_p), ("context", c_void_p))


class _Interact(Structure):
    _fields_ = (
        ("id", c_ulong), ("challenge", c_char_p), ("prompt", c_char_p), ("default", c_char_p), ("result", c_char_p),
        ("length", c_uint),
    )  # fmt: skip


class _Properties(Structure):
    _fields_ = (
        ("min_ssf", c_uint), ("max_ssf", c_uint), ("maxbufsize", c_uint), ("flags", c_uint),
        ("names", c_void_p), ("values", c_void_p),
    )  # fmt: skip


class SaslClient:
    """One attempt of ``user`` with ``password`` by one mechanism. Raises PermissionError where it cannot go on."""

    def __init__(self, user: str, password: str, *, protected: bool) -> None:
        """``protected``: something else protects the connection."""
        self._library = library = ctypes.CDLL("libsasl2.so.2")
        text, size = POINTER(c_void_p), POINTER(c_uint)
        for name, arguments in (
            ("sasl_client_init", (c_void_p,)),
            ("sasl_client_new", (c_char_p, c_char_p, c_char_p, c_char_p, c_void_p, c_uint, text)),
            ("sasl_client_start", (c_void_p, c_char_p, c_void_p, text, size, text)),
            ("sasl_client_step", (c_void_p, c_char_p, c_uint, c_void_p, text, size)),
            ("sasl_setprop", (c_void_p, ctypes.c_int, c_void_p)),
            ("sasl_encode", (c_void_p, c_char_p, c_uint, text, size)),
            ("sasl_decode", (c_void_p, c_char_p, c_uint, text, size)),
        ):
            getattr(library, name).argtypes = arguments
        library.sasl_client_init(None)
        self._answers = {_USER: b"", _AUTHNAME: user.encode(), _PASS: password.encode(), _REALM: None}
        wanted = (_USER, _AUTHNAME, _PASS, _REALM, _END)
        self._callbacks = (_Callback * len(wanted))(*(_Callback(each, None, None) for each in wanted))
        self._handle = c_void_p()
        self._prompts = c_void_p()
        library.sasl_client_new(b"vnc", b"localhost", None, None, self._callbacks, 0, byref(self._handle))
        strength = (0, 0) if protected else (56, 100000)
        library.sasl_setprop(self._handle, _SEC_PROPS, byref(_Properties(*strength, 65536, 0)))

    def start(self, mechanism: str) -> bytes | None:
        """What the client says first."""
        text, size, name = c_void_p(), c_uint(), c_void_p()

        def attempt() -> int:
            return int(
                self._library.sasl_client_start(
                    self._handle, mechanism.encode(), byref(self._prompts), byref(text), byref(size), byref(name)
                )
            )

        self._attempt(attempt)
        return ctypes.string_at(text, size.value) if text.value else None

    def step(self, data: bytes | None) -> bytes | None:
        """What it says to ``data`` of the server's."""
        text, size = c_void_p(), c_uint()

        def attempt() -> int:
            return int(
                self._library.sasl_client_step(
                    self._handle, data, len(data or b""), byref(self._prompts), byref(text), byref(size)
                )
            )

        self._attempt(attempt)
        return ctypes.string_at(text, size.value) if text.value else None

    def _attempt(self, attempt: object) -> None:
        assert callable(attempt)
        while (result := attempt()) == _INTERACT:
            prompts = ctypes.cast(self._prompts, POINTER(_Interact))
            number = 0
            while prompts[number].id != _END:
                answer = self._answers[prompts[number].id]
                answer = prompts[number].default or b"" if answer is None else answer
                prompts[number].result, prompts[number].length = answer, len(answer)
                number += 1
        if result not in (_OK, _CONTINUE):
            raise PermissionError(f"SASL: {result}")

    def encode(self, data: bytes) -> bytes:
        """``data``, protected."""
        return self._convert(self._library.sasl_encode, data)

    def decode(self, data: bytes) -> bytes:
        """What was protected, as far as it is whole."""
        return self._convert(self._library.sasl_decode, data)

    def _convert(self, function: ctypes._NamedFuncPointer, data: bytes) -> bytes:
        text, size = c_void_p(), c_uint()
        if function(self._handle, data, len(data), byref(text), byref(size)) != _OK:
            raise PermissionError("SASL: broken protection")
        return ctypes.string_at(text, size.value) if text.value else b""
