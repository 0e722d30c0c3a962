"""``rng-builtin``: the kernel's random numbers, by system call."""

from __future__ import annotations

import os
from collections.abc import Callable

from qobra.machine.rng import RngBackend
from qobra.object.types import registry


@registry.register("rng-builtin")
class RngBuiltin(RngBackend):
    """getrandom(2)."""

    type_name = "rng-builtin"
    user_creatable = True

    def random(self, length: int, waits: Callable[[], bool]) -> bytes:
        return os.urandom(length)
