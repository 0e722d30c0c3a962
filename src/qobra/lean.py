"""Parts of the standard library without the modules they come in.

``threading``, ``contextlib``, ``functools`` and ``collections`` import each other, and take a seventh of the time of
``qobra-img info``. What the start of every program uses of them is here; elsewhere the originals are as good.

``array`` imports ``collections.abc``, and with it ``collections``, to be registered as a sequence. Where this module
comes first it gets what is in there without the rest.
"""

from __future__ import annotations

import _collections_abc
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections import deque
    from contextlib import contextmanager
    from functools import cached_property
    from threading import Condition, Lock, RLock, local
else:
    from _collections import deque

    if "collections" not in sys.modules:
        sys.modules["collections"] = sys.modules["collections.abc"] = _collections_abc
        import array

        del array, sys.modules["collections"], sys.modules["collections.abc"]

    from _thread import RLock
    from _thread import _local as local
    from _thread import allocate_lock as Lock

    class Condition:
        """A ``threading.Condition`` that is made when somebody first waits; with nobody waiting, none need be told."""

        __slots__ = ("_lock", "_made", "acquire", "release")

        def __init__(self, lock=None):
            self._lock = RLock() if lock is None else lock
            self._made = None
            self.acquire, self.release = self._lock.acquire, self._lock.release

        def __enter__(self):
            return self._lock.__enter__()

        def __exit__(self, *_exc):
            self._lock.release()

        def wait(self, timeout=None):
            if self._made is None:
                import threading

                self._made = threading.Condition(self._lock)
            return self._made.wait(timeout)

        def notify(self, n=1):
            if self._made is not None:
                self._made.notify(n)

        def notify_all(self):
            if self._made is not None:
                self._made.notify_all()

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


__all__ = ["Condition", "Lock", "RLock", "cached_property", "contextmanager", "deque", "local"]
