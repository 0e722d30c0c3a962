"""A namespace, and where namespaces are allocated: a subsystem, or a controller that is in none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qobra.errors import QobraError

if TYPE_CHECKING:
    from qobra.block.backend import BlockBackend

MAX_NAMESPACES = 256


class Namespace:
    """Namespace ``number`` on the block front end ``device``, which has its backend.

    ``shared``: several controllers may have it at a time. ``attached_at_first``: to controllers that come later too.
    ``uuid`` and ``eui64`` identify it where they are set.
    """

    def __init__(
        self,
        device: Any,
        number: int,
        *,
        shared: bool = False,
        attached_at_first: bool = True,
        uuid: bytes = b"",
        eui64: int = 0,
    ) -> None:
        self.device = device
        self.number = number
        self.shared = shared
        self.attached_at_first = attached_at_first
        self.uuid = uuid
        self.eui64 = eui64

    @property
    def backend(self) -> BlockBackend:
        """Where its blocks are."""
        backend: BlockBackend = self.device.backend
        return backend

    @property
    def block_size(self) -> int:
        """Bytes of a logical block."""
        return int(self.device.logical_size)

    @property
    def blocks(self) -> int:
        """The size in logical blocks."""
        return self.backend.length // self.block_size

    @property
    def granularity(self) -> int:
        """What deallocation comes in, in bytes."""
        return int(self.device.granularity)


class Allocation:
    """Namespaces by their numbers. ``controllers`` are the controller devices that may have them, by id."""

    def __init__(self) -> None:
        self.namespaces: dict[int, Namespace] = {}
        self.controllers: dict[int, Any] = {}

    def choose(self, number: int) -> int:
        """``number``, or for 0 the lowest free one. Raises QobraError for what is taken."""
        if not 0 <= number <= MAX_NAMESPACES:
            raise QobraError(f"invalid namespace id (must be between 0 and {MAX_NAMESPACES})")
        if number in self.namespaces:
            raise QobraError(f"namespace id '{number}' already allocated")
        if number:
            return number
        for free in range(1, MAX_NAMESPACES + 1):
            if free not in self.namespaces:
                return free
        raise QobraError("no free namespace id")

    def join(self, device: Any) -> int:
        """Give a controller device an id, the lowest free one."""
        id = next(number for number in range(len(self.controllers) + 1) if number not in self.controllers)
        self.controllers[id] = device
        return id

    def leave(self, device: Any) -> None:
        """The controller is gone."""
        self.controllers = {id: each for id, each in self.controllers.items() if each is not device}

    def attached_to(self, namespace: Namespace) -> list[int]:
        """The ids of the controllers that have ``namespace``."""
        return [id for id, each in sorted(self.controllers.items()) if namespace.number in each.controller.attached]
