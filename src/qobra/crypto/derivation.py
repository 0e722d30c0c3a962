"""Keys derived from passphrases: PBKDF2 (RFC 8018, section 5.2) with an HMAC."""

from __future__ import annotations

import _thread
import hashlib

MOST_AT_ONCE = 1 << 20
"""Rounds that take about as long as a signal may wait."""


def derive_key(hash_name: str, secret: bytes, salt: bytes, rounds: int, length: int) -> bytes:
    """A key of ``length`` bytes. Other threads run meanwhile, and a signal is heard: a header may ask for minutes."""
    if rounds < MOST_AT_ONCE:
        return _derive(hash_name, secret, salt, rounds, length)
    outcome: list[bytes | BaseException] = []
    done = _thread.allocate_lock()

    def work() -> None:
        try:
            outcome.append(_derive(hash_name, secret, salt, rounds, length))
        except BaseException as error:
            outcome.append(error)
        done.release()

    done.acquire()
    _thread.start_new_thread(work, ())
    done.acquire()  # unlike the library, which returns to Python when it is done, this heeds signals
    result = outcome[0]
    if isinstance(result, BaseException):
        raise result
    return result


def _derive(hash_name: str, secret: bytes, salt: bytes, rounds: int, length: int) -> bytes:
    # The library of the cipher brings an OpenSSL of its own, mostly a newer one, in which a round takes half as long.
    try:
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC

        algorithm = getattr(hashes, hash_name.upper(), None)
        if algorithm is not None:
            return PBKDF2HMAC(algorithm(), length, salt, rounds).derive(secret)
    except ImportError:
        pass
    return hashlib.pbkdf2_hmac(hash_name, secret, salt, rounds, length)
