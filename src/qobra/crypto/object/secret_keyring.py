"""``secret_keyring``: held in the kernel's keyring, fetched by serial number."""

from __future__ import annotations

import ctypes
import os

from qobra.crypto.secret import SecretCommon
from qobra.errors import QobraError
from qobra.object.property import Int
from qobra.object.types import registry

# keyctl(2), on the architectures that Qobra runs on.
_SYS_KEYCTL = {"x86_64": 250, "aarch64": 219, "riscv64": 219}
_KEYCTL_READ = 11


@registry.register("secret_keyring")
class SecretKeyring(SecretCommon):
    """A secret that the kernel keeps."""

    type_name = "secret_keyring"
    user_creatable = True

    required = ("serial",)

    serial = Int(0, type="int32_t", width="int32")

    def load(self) -> bytes:
        number = _SYS_KEYCTL.get(os.uname().machine)
        if number is None:
            raise QobraError("The kernel's keyring is not reachable on this architecture")
        syscall = ctypes.CDLL(None, use_errno=True).syscall
        length = syscall(number, _KEYCTL_READ, self.serial & 0xFFFFFFFF, None, 0, 0)
        while length >= 0:
            buffer = ctypes.create_string_buffer(length)
            got = syscall(number, _KEYCTL_READ, self.serial & 0xFFFFFFFF, buffer, length, 0)
            if 0 <= got <= length:
                return buffer.raw[:got]
            length = got  # it grew in between, or has gone
        error = ctypes.get_errno()
        raise QobraError(f"Unable to read serial key {self.serial & 0xFFFFFFFF:08x}: {os.strerror(error)}", errno=error)
