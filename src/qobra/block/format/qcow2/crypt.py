"""What encryption asks of the rest of the driver."""

from __future__ import annotations

from typing import Protocol


class Crypt(Protocol):
    """Encrypts and decrypts guest data; lengths and offsets are multiples of 512."""

    def encrypt(self, guest: int, host: int, data: memoryview) -> bytes:
        """``data`` of guest offset ``guest`` as it is to be stored at ``host``."""
        ...

    def decrypt(self, guest: int, host: int, data: memoryview) -> None:
        """Decrypt ``data``, read from ``host`` for guest offset ``guest``, in place."""
        ...
