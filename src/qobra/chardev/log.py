"""The common options ``logfile`` and ``logappend``: a copy of all that goes out of a character device."""

from __future__ import annotations

import os

from qobra.errors import QobraError


class Log:
    """A file that grows. Losing the log must not hurt the device, so failures to write are ignored."""

    def __init__(self, path: str, append: bool) -> None:
        mode = os.O_APPEND if append else os.O_TRUNC
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | mode, 0o666)
        except OSError as error:
            raise QobraError.from_os(f"Could not create '{path}'", error)

    def write(self, data: bytes) -> None:
        """Append ``data``."""
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError:
            pass

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)
