import mmap

from qobra.block.slots import Slot
from qobra.native.places import Places

IS_LEFT: int
IS_BROKEN: int
IS_NONSENSE: int
IS_STALE: int
IS_ASIDE: int
IS_LONG_WRITE: int

class Lock:
    def __enter__(self) -> Lock: ...
    def __exit__(self, *_exc: object) -> None: ...

class Batches:
    start: int
    end: int
    position: int
    error: int
    cold: int
    again: bool
    drained: bool
    def __init__(
        self, slot: Slot, lock: Lock, sock: int, inbox: mmap.mmap, arena: mmap.mmap, *, structured: bool, writable: bool
    ) -> None: ...
    def run(self, places: Places) -> int: ...
    def serve(self, places: Places) -> int: ...
    def serve_cold(self, places: Places) -> int: ...
    def set_payload(self, buffer: bytearray) -> None: ...
    def take_long(self) -> tuple[int, int, int, int] | None: ...
    def take_aside(self) -> list[tuple[int, int, int, int, int, int | bytes]]: ...
    def put_cold(self, flags: int, cookie: int, offset: int, length: int) -> bool: ...
