"""The commands ``write``, ``writev`` and ``discard``."""

from __future__ import annotations

from qobra.block.io_commands._interpreter import MAX_REQUEST, SECTOR, Failed, Interpreter, Misused, io_command, now, why
from qobra.block.io_commands.read import vector_length
from qobra.errors import QobraError, strerror

DEFAULT_PATTERN = 0xCD

_WRITE_HELP = """
 writes a range of bytes

 Example:
 'write 512 1k' - writes 1 kilobyte at byte 512

 Writes bytes 0xcd to a part of the open file, or others.
 -b, -- write to the saved state of the machine, not to the disk
 -c, -- write compressed
 -C, -- report in a form for programs
 -f, -- let it be on stable storage before it is done
 -n, -- with -z, fail where it would have to be written out
 -p, -- ignored, as in older versions
 -P, -- the byte to write
 -q, -- say nothing of times
 -s, -- write what this file holds, over and over
 -u, -- with -z, space may be given back
 -z, -- write zeroes as such
"""

_WRITEV_HELP = """
 writes a range of bytes from several buffers

 Example:
 'writev 512 1k 1k' - writes 2 kilobytes at byte 512

 Writes bytes 0xcd, or others, from one buffer for each length.
 -C, -- report in a form for programs
 -f, -- let it be on stable storage before it is done
 -P, -- the byte to write
 -q, -- say nothing of times
"""

_DISCARD_HELP = """
 discards a range of bytes

 Example:
 'discard 512 1k' - discards 1 kilobyte at byte 512

 -C, -- report in a form for programs
 -q, -- say nothing of times
"""


@io_command(
    "write",
    "[-bcCfnquz] [-P pattern | -s source_file] off len",
    "write bytes, from an offset on",
    alias="w",
    least=2,
    details=_WRITE_HELP,
    writes=True,
)
def write(interpreter: Interpreter, words: list[str]) -> None:
    """One write."""
    options, operands = interpreter.options(words, "bcCfnpP:qs:uz")
    pattern = options.numbers.get("P", DEFAULT_PATTERN)
    if len(operands) != 2:
        raise Misused
    _check_flags(options)
    offset = interpreter.number(operands[0])
    count = interpreter.number(operands[1])
    if count > MAX_REQUEST and "n" not in options:
        raise Failed(f"length cannot exceed {MAX_REQUEST} without -n, given {operands[1]}")
    if "b" in options or "c" in options:
        for what, value in (("offset", offset), ("count", count)):
            if value % SECTOR:
                raise Failed(f"{value} is not a sector-aligned value for '{what}'")
    data = b"" if "z" in options else _contents(interpreter, options, pattern, count)
    start = now()
    try:
        _write(interpreter, options, offset, count, data)
    except (OSError, QobraError) as error:
        raise Failed(f"write failed: {why(error)}")
    if "q" not in options:
        interpreter.report("wrote", start, now(), offset, count, count, terse="C" in options)


def _check_flags(options: dict[str, str]) -> None:
    if "b" in options and "z" in options:
        raise Failed("-b and -z cannot be specified at the same time")
    if "f" in options and ("b" in options or "c" in options):
        raise Failed("-f and -b or -c cannot be specified at the same time")
    if "n" in options and "z" not in options:
        raise Failed("-n requires -z to be specified")
    if "u" in options and "z" not in options:
        raise Failed("-u requires -z to be specified")
    if sum(each in options for each in "zPs") > 1:
        raise Failed("Only one of -z, -P, and -s can be specified at the same time")


def _contents(interpreter: Interpreter, options: dict[str, str], pattern: int, count: int) -> bytes:
    if "s" not in options:
        return bytes([pattern]) * count
    try:
        with open(options["s"], "rb") as stream:
            part = stream.read(count)
    except OSError as error:
        interpreter.complain(f"{options['s']}: {strerror(error)}")
        raise Failed
    if not part:
        interpreter.complain(f"{options['s']}: file is empty")
        raise Failed
    return (part * (-(-count // len(part))))[:count]


def _write(interpreter: Interpreter, options: dict[str, str], offset: int, count: int, data: bytes) -> None:
    root = interpreter.root
    if "b" in options:
        interpreter.node.write_vm_state(offset, data)
        if not root.writeback:
            root.flush(counted=False)
    elif "z" in options:
        unmap, no_fallback, fua = (each in options for each in "unf")
        root.write_zeroes(offset, count, may_unmap=unmap, no_fallback=no_fallback, fua=fua, counted=False)
    elif "c" in options:
        with root.slot():
            interpreter.node.write_compressed(offset, data)
    else:
        root.write(offset, data, fua="f" in options, counted=False)


@io_command(
    "writev",
    "[-Cfq] [-P pattern] off len [len..]",
    "write bytes, from an offset on, out of several buffers",
    least=2,
    details=_WRITEV_HELP,
    writes=True,
)
def writev(interpreter: Interpreter, words: list[str]) -> None:
    """One write from several buffers."""
    options, operands = interpreter.options(words, "CfqP:")
    pattern = options.numbers.get("P", DEFAULT_PATTERN)
    if len(operands) < 2:
        raise Misused
    offset = interpreter.number(operands[0])
    count = vector_length(interpreter, operands[1:])
    start = now()
    try:
        interpreter.root.write(offset, bytes([pattern]) * count, fua="f" in options, counted=False)
    except (OSError, QobraError) as error:
        raise Failed(f"writev failed: {why(error)}")
    if "q" not in options:
        interpreter.report("wrote", start, now(), offset, count, count, terse="C" in options)


@io_command(
    "discard",
    "[-Cq] off len",
    "let go of bytes, from an offset on",
    alias="d",
    least=2,
    details=_DISCARD_HELP,
    writes=True,
)
def discard(interpreter: Interpreter, words: list[str]) -> None:
    """One discard."""
    options, operands = interpreter.options(words, "Cq")
    if len(operands) != 2:
        raise Misused
    offset = interpreter.number(operands[0])
    count = interpreter.number(operands[1])
    if count > MAX_REQUEST:
        raise Failed(f"length cannot exceed {MAX_REQUEST}, given {operands[1]}")
    start = now()
    try:
        interpreter.root.discard(offset, count, counted=False)
    except (OSError, QobraError) as error:
        raise Failed(f"discard failed: {why(error)}")
    if "q" not in options:
        interpreter.report("discard", start, now(), offset, count, count, terse="C" in options)
