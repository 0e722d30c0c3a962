"""``main-loop``: the limits of the event loop that everything runs in which has no thread of its own."""

from __future__ import annotations

from qobra.errors import QobraError
from qobra.object.event_loop import EventLoopBase
from qobra.object.types import registry


@registry.register("main-loop")
class MainLoop(EventLoopBase):
    """There is one main loop, so there may be one of these, which stays."""

    type_name = "main-loop"
    user_creatable = True

    def complete(self) -> None:
        self.check_limits()
        if any(isinstance(other, MainLoop) and other.completed for other in self.tree.objects.children.values()):
            raise QobraError("only one main-loop instance allowed")
        super().complete()

    def can_be_deleted(self) -> bool:
        return False
