"""``secret``: given inline or in a file."""

from __future__ import annotations

from qobra.crypto.secret import SecretCommon
from qobra.errors import QobraError, strerror
from qobra.object.property import String
from qobra.object.types import registry

_MAX_LENGTH = 16 << 20  # a key or a password, not a disk


@registry.register("secret")
class Secret(SecretCommon):
    """A secret from ``data`` or from the contents of ``file``."""

    type_name = "secret"
    user_creatable = True

    data = String()
    file = String()

    def load(self) -> bytes:
        if self.data is not None and self.file is not None:
            raise QobraError("'file' and 'data' are mutually exclusive")
        if self.data is not None:
            return str(self.data).encode()
        if self.file is None:
            raise QobraError("Either 'file' or 'data' must be provided")
        try:
            with open(self.file, "rb") as stream:
                data = stream.read(_MAX_LENGTH + 1)
        except OSError as error:
            raise QobraError(
                f"Unable to read {self.file}: Failed to open file \u201c{self.file}\u201d: {strerror(error)}",
                errno=error.errno,
            )
        if len(data) > _MAX_LENGTH:
            raise QobraError(f"Unable to read {self.file}: larger than {_MAX_LENGTH} bytes")
        return data
