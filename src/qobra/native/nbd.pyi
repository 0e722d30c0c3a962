from mmap import mmap

from qobra.block.slots import Slot
from qobra.native.places import Lock as Lock
from qobra.native.places import Places
from qobra.native.stream import Stream

IS_LEFT: int
IS_BROKEN: int
IS_NONSENSE: int
IS_STALE: int
IS_ASIDE: int
IS_LONG_WRITE: int

class Batches(Stream):
    cold: int
    again: bool
    def __init__(
        self, lock: Lock, sock: int, inbox: mmap, arena: memoryview, slot: Slot, *, structured: bool, writable: bool
    ) -> None: ...
    def run(self, places: Places) -> int: ...
    def serve(self, places: Places) -> int: ...
    def serve_cold(self, places: Places) -> int: ...
    def take_long(self) -> tuple[int, int, int, int] | None: ...
    def take_aside(self) -> list[tuple[int, int, int, int, int, int | bytes]]: ...
    def put_cold(self, flags: int, cookie: int, offset: int, length: int) -> bool: ...
