"""``rng-random``: random numbers from a file, by default /dev/urandom."""

from __future__ import annotations

import os
from collections.abc import Callable

from qobra.errors import QobraError
from qobra.machine.rng import RngBackend
from qobra.object.property import String
from qobra.object.types import registry


def _set_filename(source: RngRandom, filename: str) -> None:
    if source.is_open:
        raise QobraError("Property 'filename' can no longer be set")
    source.values["filename"] = filename


@registry.register("rng-random")
class RngRandom(RngBackend):
    """A character special file that never ends."""

    type_name = "rng-random"
    user_creatable = True

    filename = String("/dev/urandom", set=_set_filename)
    _fd = -1

    def open(self) -> None:
        try:
            self._fd = os.open(self.filename, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise QobraError.from_os(f"Could not open '{self.filename}'", error)

    def random(self, length: int, waits: Callable[[], bool]) -> bytes:
        return os.read(self._fd, length)

    def finalize(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
