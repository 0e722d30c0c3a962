"""Sources of entropy that users create for devices."""

from __future__ import annotations

from collections.abc import Callable

from qobra.object.property import Bool
from qobra.object.qom import Object


class RngBackend(Object):
    """A source. ``random`` gives bytes; it may wait, so devices ask in a worker."""

    type_name = "rng-backend"
    interfaces = ("user-creatable",)
    abstract = True

    opened = Bool(get=lambda self: self.is_open, writable=False)
    is_open = False

    def complete(self) -> None:
        self.open()
        self.is_open = True

    def open(self) -> None:
        """Get ready. Raises QobraError."""

    def random(self, length: int, waits: Callable[[], bool]) -> bytes:
        """``length`` bytes or fewer; none at the end of the source.

        One that has nothing yet has its user wait for as long as ``waits`` says, which is asked at each :meth:`wake`.
        """
        raise NotImplementedError

    def wake(self) -> None:
        """Somebody may wait no longer."""
