"""The commands ``read`` and ``readv``."""

from __future__ import annotations

from qobra.block.buffers import new_buffer
from qobra.block.io_commands._interpreter import MAX_REQUEST, SECTOR, Failed, Interpreter, Misused, io_command, now, why
from qobra.errors import QobraError

_READ_HELP = """
 reads a range of bytes

 Example:
 'read -v 512 1k' - shows 1 kilobyte from byte 512 on

 Reads a part of the open file and tells how long it took.
 -b, -- read the saved state of the machine, not the disk
 -C, -- report in a form for programs
 -l, -- how many bytes -P is to check
 -p, -- ignored, as in older versions
 -P, -- check that every byte is this one
 -q, -- say nothing of times
 -s, -- where in the data -P is to begin
 -v, -- show the data
"""

_READV_HELP = """
 reads a range of bytes into several buffers

 Example:
 'readv -v 512 1k 1k' - shows 2 kilobytes from byte 512 on

 Reads a part of the open file into one buffer for each length.
 -C, -- report in a form for programs
 -P, -- check that every byte is this one
 -q, -- say nothing of times
 -v, -- show the data
"""


@io_command(
    "read",
    "[-abCqv] [-P pattern [-s off] [-l len]] off len",
    "read bytes, from an offset on",
    alias="r",
    least=2,
    details=_READ_HELP,
)
def read(interpreter: Interpreter, words: list[str]) -> None:
    """One read."""
    options, operands = interpreter.options(words, "bCl:pP:qs:v", sizes="ls")
    pattern = options.numbers.get("P")
    check_start, check_length = options.numbers.get("s", 0), options.numbers.get("l")
    if len(operands) != 2:
        raise Misused
    offset = interpreter.number(operands[0])
    count = interpreter.number(operands[1])
    if count > MAX_REQUEST:
        raise Failed(f"length cannot exceed {MAX_REQUEST}, given {operands[1]}")
    if pattern is None and ("l" in options or "s" in options):
        raise Misused
    if check_length is None:
        check_length = count - check_start
    if check_length < 0 or check_length + check_start > count:
        raise Failed("pattern verification range exceeds end of read data")
    if "b" in options:
        for what, value in (("offset", offset), ("count", count)):
            if value % SECTOR:
                raise Failed(f"{value} is not a sector-aligned value for '{what}'")
    view = memoryview(new_buffer(count))
    start = now()
    try:
        if "b" in options:
            view[:] = interpreter.node.read_vm_state(offset, count)
        else:
            interpreter.read(offset, view)
    except (OSError, QobraError) as error:
        raise Failed(f"read failed: {why(error)}")
    finish_read(interpreter, options, view, offset, start, now(), pattern, check_start, check_length)


@io_command(
    "readv",
    "[-Cqv] [-P pattern] off len [len..]",
    "read bytes, from an offset on, into several buffers",
    least=2,
    details=_READV_HELP,
)
def readv(interpreter: Interpreter, words: list[str]) -> None:
    """One read into several buffers, which to a node are one."""
    options, operands = interpreter.options(words, "CP:qv")
    pattern = options.numbers.get("P")
    if len(operands) < 2:
        raise Misused
    offset = interpreter.number(operands[0])
    view = memoryview(new_buffer(vector_length(interpreter, operands[1:])))
    start = now()
    try:
        interpreter.read(offset, view)
    except (OSError, QobraError) as error:
        raise Failed(f"readv failed: {why(error)}")
    finish_read(interpreter, options, view, offset, start, now(), pattern, 0, len(view))


def vector_length(interpreter: Interpreter, texts: list[str]) -> int:
    """The length of all buffers of a vector together. Raises Failed."""
    total = 0
    for text in texts:
        length = interpreter.number(text)
        if length > MAX_REQUEST:
            raise Failed(f"Argument '{text}' exceeds maximum size {MAX_REQUEST}")
        total += length
        if total > MAX_REQUEST:
            raise Failed(f"The total number of bytes exceed the maximum size {MAX_REQUEST}")
    return total


def finish_read(
    interpreter: Interpreter,
    options: dict[str, str],
    view: memoryview,
    offset: int,
    start: float,
    end: float,
    pattern: int | None,
    check_start: int,
    check_length: int,
) -> None:
    """Check the pattern, show and report. Raises Failed where the pattern is not there."""
    matches = (
        pattern is None or view[check_start : check_start + check_length].tobytes() == bytes([pattern]) * check_length
    )
    if not matches:
        interpreter.out(f"Pattern verification failed at offset {offset + check_start}, {check_length} bytes\n")
    if "q" not in options:
        if "v" in options:
            interpreter.dump(view, offset)
        interpreter.report("read", start, end, offset, len(view), len(view), terse="C" in options)
    if not matches:
        raise Failed
