"""Let one thread find and read what another works on: the two overlap."""

from __future__ import annotations

import threading
from _queue import SimpleQueue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Iterable
    from typing import TypeVar

    T = TypeVar("T")


def read_ahead(items: Iterable[T], depth: int) -> Generator[T, None, None]:
    """The same items, found in a thread of its own, which is up to ``depth`` of them ahead of the caller.

    So ``depth + 2`` items exist at a time: what they hold must not be used again sooner. What goes wrong there is
    raised here. Close the generator, or use it up: that ends the thread.
    """
    found: SimpleQueue[tuple[T] | BaseException | None] = SimpleQueue()
    room = threading.Semaphore(depth + 1)
    stopped = False

    def work() -> None:
        end: BaseException | None = None
        try:
            for item in items:
                room.acquire()
                if stopped:
                    break
                found.put((item,))
        except BaseException as error:
            end = error
        found.put(end)

    thread = threading.Thread(target=work, name="read ahead", daemon=True)
    thread.start()
    try:
        while (box := found.get()) is not None:
            if isinstance(box, BaseException):
                raise box
            yield box[0]
            room.release()
    finally:
        stopped = True
        room.release()
        thread.join()
