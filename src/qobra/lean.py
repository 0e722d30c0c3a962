"""Parts of the standard library without the modules they come in.

``threading``, ``contextlib``, ``functools`` and ``collections`` import each other, and take a seventh of the time of
``qobra-img info`` and of a daemon's start. What the start of every program uses of them is here; elsewhere the
originals are as good.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable
    from contextlib import contextmanager
    from functools import cached_property
    from threading import Condition, Event, Lock, RLock, local
    from typing import Any
else:
    from _collections import deque
    from _thread import RLock
    from _thread import _local as local
    from _thread import allocate_lock as Lock

    class Condition:
        """Wait until told; whoever waits or tells holds the lock."""

        __slots__ = ("_lock", "_waiting", "acquire", "release")

        def __init__(self, lock=None):
            self._lock = RLock() if lock is None else lock
            self._waiting = deque()  # locks that those who wait have taken, and want again
            self.acquire, self.release = self._lock.acquire, self._lock.release

        def __enter__(self):
            return self._lock.__enter__()

        def __exit__(self, *_exc):
            self._lock.release()

        def wait(self, timeout=None):
            mine = Lock()
            mine.acquire()
            self._waiting.append(mine)
            told = False
            deep = isinstance(self._lock, RLock)
            held = self._lock._release_save() if deep else self._lock.release()
            try:
                told = mine.acquire(timeout=-1 if timeout is None else max(timeout, 0))
                return told
            finally:
                self._lock._acquire_restore(held) if deep else self._lock.acquire()
                if not told and mine in self._waiting:
                    self._waiting.remove(mine)

        def notify(self, n=1):
            while n and self._waiting:
                self._waiting.popleft().release()
                n -= 1

        def notify_all(self):
            self.notify(len(self._waiting))

    class Event:
        """Something that happens once."""

        __slots__ = ("_condition", "_set")

        def __init__(self):
            self._condition = Condition()
            self._set = False

        def is_set(self):
            return self._set

        def set(self):
            with self._condition:
                self._set = True
                self._condition.notify_all()

        def wait(self, timeout=None):
            with self._condition:
                return self._set or self._condition.wait(timeout)

    class cached_property:
        """An attribute that is worked out when it is first asked for."""

        def __init__(self, function):
            self._function = function
            self.__doc__ = function.__doc__

        def __set_name__(self, owner, name):
            self._name = name

        def __get__(self, instance, owner=None):
            if instance is None:
                return self
            found = instance.__dict__[self._name] = self._function(instance)
            return found

    def contextmanager(function):
        """Make a generator function that yields once what ``with`` enters and leaves."""

        def manager(*args, **kwargs):
            return _Managed(function(*args, **kwargs))

        manager.__name__, manager.__doc__, manager.__wrapped__ = function.__name__, function.__doc__, function
        return manager

    class _Managed:
        __slots__ = ("_generator",)

        def __init__(self, generator):
            self._generator = generator

        def __enter__(self):
            return next(self._generator)

        def __exit__(self, kind, error, traceback):
            if error is None:
                for _more in self._generator:
                    raise RuntimeError("generator didn't stop")
                return False
            try:
                self._generator.throw(error)
            except StopIteration:
                return True
            except BaseException as raised:
                if raised is error or (isinstance(error, StopIteration) and raised.__cause__ is error):
                    error.__traceback__ = traceback
                    return False
                raise
            raise RuntimeError("generator didn't stop after throw()")


_deferred = False


def defer_threading() -> None:
    """Threads of :func:`start_thread` may begin without ``threading``.

    For a program whose main thread imports it before any of those can: what imports it first is the main thread to it.
    """
    global _deferred
    _deferred = True


def start_thread(target: Callable[..., object], *args: Any, name: str, imports: bool = True) -> None:
    """Run ``target(*args)`` in a thread that the program's end does not wait for.

    One that ``imports`` nothing may begin without ``threading``.
    """
    if (_deferred or not imports) and "threading" not in sys.modules:
        from _thread import start_new_thread

        start_new_thread(target, args)
    else:
        import threading

        threading.Thread(target=target, args=args, name=name, daemon=True).start()


__all__ = [
    "Condition",
    "Event",
    "Lock",
    "RLock",
    "cached_property",
    "contextmanager",
    "defer_threading",
    "deque",
    "local",
    "start_thread",
]
