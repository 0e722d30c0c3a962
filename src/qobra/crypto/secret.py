"""Secrets: how passwords and keys get in, plain or encrypted with another secret (AES-256-CBC, PKCS#7)."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable

from qobra.errors import QobraError
from qobra.object.property import Bool, Enum, String
from qobra.object.qom import Object
from qobra.packages import need

FindObject = Callable[[str, str | None], "Object | None"]

_BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/="
_BLOCK = 16
_KEY_LENGTH = 32


class SecretCommon(Object):
    """What every kind of secret has; a kind says where its raw bytes come from."""

    type_name = "secret_common"
    interfaces = ("user-creatable",)
    abstract = True

    loaded = Bool(get=lambda self: self.raw is not None, writable=False)
    format = Enum("QCryptoSecretFormat", ("raw", "base64"), "raw")
    keyid = String()
    iv = String()

    raw: bytes | None = None

    def load(self) -> bytes:
        """The bytes as they were given, before decoding and decryption."""
        raise NotImplementedError

    def complete(self) -> None:
        data = self.load()
        if self.keyid is not None:
            data = _decrypt(self, data)
        elif self.format == "base64":
            data = decode_base64(data)
        self.raw = data


def secret_bytes(find_object: FindObject, id: str) -> bytes:
    """The bytes of the secret ``id``; ``find_object`` is the machine's ``objects.find``."""
    found = find_object(id, None)
    if found is None:
        raise QobraError(f"No secret with id '{id}'")
    if not isinstance(found, SecretCommon):
        raise QobraError(f"Object with id '{id}' is not a secret")
    if found.raw is None:
        raise QobraError(f"Secret with id '{id}' has no data")
    return found.raw


def decode_base64(data: bytes) -> bytes:
    """Whole groups of four characters, in any number of lines. Raises QobraError: a shortened key is no key."""
    joined = data.translate(None, b"\r\n\t")
    if joined.strip(_BASE64):
        raise QobraError("Base64 data contains invalid characters")
    try:
        return base64.b64decode(joined, validate=True)
    except binascii.Error:
        raise QobraError("Base64 data is not valid")


def _decrypt(secret: SecretCommon, data: bytes) -> bytes:
    need("cryptography", "An encrypted secret")
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    key = secret_bytes(secret.tree.find, secret.keyid)
    if len(key) != _KEY_LENGTH:
        raise QobraError(f"Key should be {_KEY_LENGTH} bytes in length")
    if secret.iv is None:
        raise QobraError("IV is required to decrypt secret")
    iv = decode_base64(secret.iv.encode())
    if len(iv) != _BLOCK:
        raise QobraError(f"IV should be {_BLOCK} bytes in length not {len(iv)}")
    if secret.format == "base64":
        data = decode_base64(data)
    if len(data) % _BLOCK or not data:
        raise QobraError(f"Length {len(data)} must be a multiple of block size {_BLOCK}")
    decryptor = Cipher(algorithms.AES(key), modes.CBC(iv)).decryptor()
    plain = decryptor.update(data) + decryptor.finalize()
    padding = plain[-1]
    if not 0 < padding <= _BLOCK:
        raise QobraError(f"Incorrect number of padding bytes ({padding}) found on decrypted data")
    return plain[:-padding]
