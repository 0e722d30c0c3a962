from array import array

def count_entries(
    table: bytes | bytearray | memoryview,
    first: int,
    seen: bytearray,
    stored: bytearray,
    bits: int,
    limit: int,
    weight: int,
    active: bool,
    tally: array[int],
) -> int: ...
def pack_table(
    table: bytes | bytearray | memoryview,
    start: int,
    entries: int,
    bits: int,
    zeroes: bool,
    runs: array[int],
    count: int,
) -> int: ...
def split_holes(
    runs: array[int], first: int, count: int, fd: int, known: array[int], into: array[int], made: int
) -> tuple[int, int]: ...
def json_lines(runs: array[int], count: int) -> str: ...
def empty_entries(words: array[int], first: int, limit: int, width: int) -> int: ...
def fill_entries(words: array[int], first: int, count: int, width: int, word: int, step: int) -> None: ...
