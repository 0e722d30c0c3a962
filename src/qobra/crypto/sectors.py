"""Encrypting disk sectors: AES in the modes that LUKS knows, with the initialisation vectors that go with them.

Data is a number of sectors of 512 bytes, and each has its own vector, made from its number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qobra.errors import QobraError
from qobra.packages import need

if TYPE_CHECKING:
    from collections.abc import Callable

SECTOR = 512

KEY_BYTES = {"aes-128": 16, "aes-192": 24, "aes-256": 32}
MODES = ("ecb", "cbc", "xts", "ctr")
IV_GENERATORS = ("plain", "plain64", "essiv")


class SectorCipher:
    """A cipher with its key. Thread-safe.

    ``cipher`` is one of :data:`KEY_BYTES`; for ``xts`` the key is twice as long. ``iv_hash`` is essiv's hash, whose
    digest has to be as long as a key of AES. Raises QobraError for what cannot be.
    """

    def __init__(
        self, cipher: str, mode: str, key: bytes, iv_generator: str = "plain64", iv_hash: str = "sha256"
    ) -> None:
        if cipher not in KEY_BYTES:
            raise QobraError(f"Algorithm '{cipher}' not supported")
        if mode not in MODES:
            raise QobraError(f"Cipher mode '{mode}' not supported")
        wanted = KEY_BYTES[cipher] * (2 if mode == "xts" else 1)
        if len(key) != wanted:
            raise QobraError(f"Cipher key length {len(key)} should be {wanted}")
        need("cryptography", "Encryption")
        from cryptography.hazmat.primitives.ciphers import Cipher, modes
        from cryptography.hazmat.primitives.ciphers.algorithms import AES

        self._cipher: Callable[..., Any] = Cipher
        self._algorithm = AES(key)
        make = {"ecb": lambda _iv: modes.ECB(), "cbc": modes.CBC, "xts": modes.XTS, "ctr": modes.CTR}
        self._mode: Callable[[bytes], Any] = make[mode]
        self._iv_mask = 0xFFFFFFFF if iv_generator == "plain" else (1 << 64) - 1
        self._essiv: Any = None
        if iv_generator == "essiv":
            import hashlib

            salt = hashlib.new(iv_hash, key).digest()
            if len(salt) not in KEY_BYTES.values():
                raise QobraError(f"No AES cipher with key size {len(salt)} available")
            self._essiv = Cipher(AES(salt), modes.ECB())

    def encrypt(self, sector: int, data: bytes | bytearray | memoryview) -> bytes:
        """``data``, whole sectors from number ``sector`` on, encrypted."""
        view = memoryview(data)
        return b"".join(
            self._context(sector + at // SECTOR).encryptor().update(view[at : at + SECTOR])
            for at in range(0, len(view), SECTOR)
        )

    def decrypt(self, sector: int, data: bytes | bytearray | memoryview) -> bytes:
        """The reverse of :meth:`encrypt`."""
        view = memoryview(data)
        return b"".join(
            self._context(sector + at // SECTOR).decryptor().update(view[at : at + SECTOR])
            for at in range(0, len(view), SECTOR)
        )

    def _context(self, sector: int) -> Any:
        iv = (sector & self._iv_mask).to_bytes(16, "little")
        if self._essiv is not None:
            iv = self._essiv.encryptor().update(iv)
        return self._cipher(self._algorithm, self._mode(iv))
