from array import array
from collections.abc import Sequence
from typing import Any

from qobra.block.slots import Flight
from qobra.native.marks import Marks
from qobra.native.old_blocks import OldBlocks

class Gate:
    closed: int

class Words:
    epoch: int
    draining: int
    generation: int

class Slot:
    busy: int
    entries: int
    gate: Gate
    def __init__(self, flight: Flight, gate: Gate) -> None: ...
    def enter(self) -> None: ...
    def leave(self) -> None: ...
    def __enter__(self) -> Slot: ...
    def __exit__(self, *_exc: object) -> None: ...
    def close(self) -> None: ...

class Places:
    generation: int
    length: int
    writable: bool
    highest: int
    def __init__(
        self,
        generation: int,
        length: int,
        unit_bits: int,
        writable: bool,
        linear: tuple[int, int] | None,
        marks: Sequence[tuple[Marks, int]] = (),
        keepers: Sequence[OldBlocks] = (),
    ) -> None: ...
    def add_leaf(self, fd: int, alignment: int = 1) -> int: ...
    def put_page(self, number: int, page: array[int]) -> Any: ...
    def drop_pages(self) -> Any: ...
    def clear(self, number: int, low: int, high: int) -> None: ...
    def put(self, number: int, low: int, high: int, entry: int, step: int) -> None: ...
    def read(self, offset: int, into: memoryview | bytearray, *, may_wait: bool = True) -> bool: ...
    def write(self, offset: int, data: bytes | memoryview | bytearray) -> bool: ...
