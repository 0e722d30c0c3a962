"""What iothreads have in common with the main loop."""

from __future__ import annotations

from qobra.errors import QobraError
from qobra.object.property import Int
from qobra.object.qom import Object

_THREAD_POOL_MAX_DEFAULT = 64


class EventLoopBase(Object):
    """Limits of an event loop. Qobra's workers take them as given: how many requests a batch may hold."""

    type_name = "event-loop-base"
    interfaces = ("user-creatable",)
    abstract = True

    aio_max_batch = Int(0, minimum=0)
    thread_pool_min = Int(0, minimum=0)
    thread_pool_max = Int(_THREAD_POOL_MAX_DEFAULT, minimum=0)

    def complete(self) -> None:
        if not 0 <= self.thread_pool_min <= self.thread_pool_max or self.thread_pool_max < 1:
            raise QobraError("bad thread-pool-min/thread-pool-max values")
