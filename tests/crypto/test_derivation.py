"""Keys derived from passphrases."""

from __future__ import annotations

import builtins
import hashlib
import os
import signal
import threading
from typing import Any

import pytest

from qobra.crypto import derivation
from qobra.crypto.derivation import derive_key


@pytest.mark.parametrize("name", ["sha1", "sha256", "sha512", "md5"])
def test_keys_are_those_of_pbkdf2(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = hashlib.pbkdf2_hmac(name, b"secret", b"salt", 1000, 40)
    assert derive_key(name, b"secret", b"salt", 1000, 40) == expected
    monkeypatch.setattr(derivation, "MOST_AT_ONCE", 1)
    assert derive_key(name, b"secret", b"salt", 1000, 40) == expected


def test_a_host_without_the_ciphers(monkeypatch: pytest.MonkeyPatch) -> None:
    load = builtins.__import__

    def missing(name: str, *arguments: Any) -> Any:
        if name.startswith("cryptography"):
            raise ImportError
        return load(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", missing)
    assert derive_key("sha256", b"a", b"b", 10, 32) == hashlib.pbkdf2_hmac("sha256", b"a", b"b", 10, 32)


def test_a_failure_in_the_other_thread_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(derivation, "MOST_AT_ONCE", 1)
    with pytest.raises(ValueError):
        derive_key("nosuch", b"a", b"b", 10, 32)


def test_a_signal_is_heard_while_a_key_is_derived(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    monkeypatch.setattr(derivation, "_derive", lambda *_arguments: release.wait(30))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # one of many test processes ignores it
    timer = threading.Timer(0.05, os.kill, [os.getpid(), signal.SIGINT])
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            derive_key("sha256", b"a", b"b", derivation.MOST_AT_ONCE, 32)
    finally:
        release.set()
        timer.join()
        signal.signal(signal.SIGINT, before)
