"""``passthrough``: the host's own TPM, by its character device. The guest has it alone, and its state stays here."""

from __future__ import annotations

import os

from qobra.errors import QobraError, strerror
from qobra.tpm import messages
from qobra.tpm.tpm import Tpm, registry

_DEFAULT_PATH = "/dev/tpm0"
_CANCEL_PATHS = ("/sys/class/tpm/{0}/device/cancel", "/sys/class/misc/{0}/device/cancel")


@registry.register("passthrough")
class Passthrough(Tpm):
    """The TPM at ``path``. Writing to ``cancel-path`` has a command that takes long end early."""

    kind = "passthrough"
    description = "Passthrough TPM backend driver"
    parameters = ("path", "cancel-path")

    _fd = -1
    _cancel_fd = -1

    def open(self) -> None:
        path = self.options.get("path", _DEFAULT_PATH)
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise QobraError(f"Cannot access TPM device using '{path}': {strerror(error)}", errno=error.errno)
        try:
            if messages.is_20(self._transfer(messages.PROBE_20)):
                self.is_20 = True
            elif not messages.is_12(self._transfer(messages.PROBE_12)):
                raise QobraError(f"'{path}' is not a TPM device.")
        except OSError:
            raise QobraError(f"'{path}' is not a TPM device.")
        self._cancel_fd = self._open_cancel(path)

    def _open_cancel(self, path: str) -> int:
        given = self.options.get("cancel-path")
        name = os.path.basename(path)
        for candidate in (given,) if given is not None else (each.format(name) for each in _CANCEL_PATHS):
            try:
                return os.open(candidate, os.O_WRONLY | os.O_CLOEXEC)
            except OSError as error:
                if given is not None:
                    raise QobraError(f"Could not open the TPM cancel path: {strerror(error)}", errno=error.errno)
        return -1  # then nothing is cancelled

    def _transfer(self, command: bytes) -> bytes:
        if os.write(self._fd, command) != len(command):
            raise QobraError("the TPM did not take all of a command")
        return os.read(self._fd, self.buffer_size)

    def perform(self, locality: int, command: bytes) -> bytes:
        return self._transfer(command)

    def cancel(self) -> None:
        if self._cancel_fd >= 0:
            try:
                os.write(self._cancel_fd, b"-")
            except OSError:
                pass  # it goes on to its end then

    def shut_down(self) -> None:
        for fd in (self._fd, self._cancel_fd):
            if fd >= 0:
                os.close(fd)
        self._fd = self._cancel_fd = -1
