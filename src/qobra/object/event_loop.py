"""The type that iothreads derive from, and in QEMU the main loop too."""

from __future__ import annotations

from collections.abc import Callable

from qobra.errors import QobraError
from qobra.object.property import Int
from qobra.object.qom import Object

_THREAD_POOL_MAX_DEFAULT = 64
_MOST_THREADS = (1 << 31) - 1


def _set_limit(name: str) -> Callable[[EventLoopBase, int], None]:
    def set(loop: EventLoopBase, value: int) -> None:
        before = loop.get(name)
        loop.values[name] = value
        if loop.completed:
            try:
                loop.check_limits()
            except QobraError:
                loop.values[name] = before
                raise

    return set


class EventLoopBase(Object):
    """Limits of an event loop. Qobra's workers take them as given: how many requests a batch may hold."""

    type_name = "event-loop-base"
    interfaces = ("user-creatable",)
    abstract = True

    aio_max_batch = Int(0, minimum=0)
    thread_pool_min = Int(0, minimum=0, set=_set_limit("thread-pool-min"))
    thread_pool_max = Int(_THREAD_POOL_MAX_DEFAULT, minimum=0, set=_set_limit("thread-pool-max"))
    completed = False

    def complete(self) -> None:
        self.check_limits()
        self.completed = True

    def check_limits(self) -> None:
        """Raises QobraError where the pool would have no thread, or fewer at most than at least."""
        if not 0 <= self.thread_pool_min <= self.thread_pool_max or not 1 <= self.thread_pool_max <= _MOST_THREADS:
            raise QobraError("bad thread-pool-min/thread-pool-max values")
