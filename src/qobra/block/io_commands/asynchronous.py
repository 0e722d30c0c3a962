"""The commands ``aio_read``, ``aio_write`` and ``aio_flush``: requests that run while the next lines are read."""

from __future__ import annotations

import threading
from collections.abc import Callable

from qobra.block.accounting import FLUSH, READ, WRITE
from qobra.block.io_commands._interpreter import Failed, Finished, Interpreter, Misused, io_command, now, why
from qobra.block.io_commands.read import finish_read, vector_length
from qobra.block.io_commands.write import DEFAULT_PATTERN
from qobra.errors import QobraError

_READ_HELP = """
 reads a range of bytes while the next commands run

 Example:
 'aio_read -v 512 1k 1k' - shows 2 kilobytes from byte 512 on

 The command itself has succeeded once the request is on its way; aio_flush waits for what has not ended.
 -C, -- report in a form for programs
 -i, -- count as an invalid request, and do nothing
 -P, -- check that every byte is this one
 -q, -- say nothing of times
 -v, -- show the data
"""

_WRITE_HELP = """
 writes a range of bytes while the next commands run

 Example:
 'aio_write 512 1k 1k' - writes 2 kilobytes at byte 512

 The command itself has succeeded once the request is on its way; aio_flush waits for what has not ended.
 -C, -- report in a form for programs
 -f, -- let it be on stable storage before it is done
 -i, -- count as an invalid request, and do nothing
 -P, -- the byte to write
 -q, -- say nothing of times
 -u, -- with -z, space may be given back
 -z, -- write zeroes as such
"""


class _Request:
    """A request in a thread of its own. ``report`` prints what came of it, in the interpreter's thread."""

    def __init__(
        self,
        interpreter: Interpreter,
        work: Callable[[], None],
        report: Callable[[float, float], None],
        failure: str,
    ) -> None:
        self._interpreter = interpreter
        self._work = work
        self._report = report
        self._failure = failure
        self._error: OSError | QobraError | None = None
        self._start = now()
        self._end = 0.0
        self.done = False
        """Whether it has ended."""
        self._thread = threading.Thread(target=self._run, name="qemu-io request", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._work()
        except (OSError, QobraError) as error:
            self._error = error
        self._end = now()
        self.done = True
        self._interpreter.ended()

    def finish(self) -> None:
        """Wait for it, and report."""
        self._thread.join()
        interpreter = self._interpreter
        if self._error is not None:
            interpreter.out(f"{self._failure} failed: {why(self._error)}\n")
            return
        try:
            self._report(self._start, self._end)
        except Failed as failure:
            if failure.text:
                interpreter.out(failure.text + "\n")


def report_ended(interpreter: Interpreter) -> None:
    """Report the requests that have ended, in their order."""
    for request in [each for each in interpreter.pending if each.done]:
        interpreter.pending.remove(request)
        request.finish()


def wait_all(interpreter: Interpreter) -> None:
    """Wait for every request, and report."""
    while interpreter.pending:
        interpreter.pending.pop(0).finish()


def _injecting(interpreter: Interpreter, kind: int, called: str) -> Callable[[str, str], None]:
    """What ``-i`` does, as soon as it is met: it counts an invalid request, and ends the command."""

    def inject(option: str, _value: str) -> None:
        if option == "i":
            interpreter.root.accounting.add_invalid(kind)
            interpreter.out(f"injecting invalid {called} request\n")
            raise Finished

    return inject


@io_command(
    "aio_read",
    "[-Ciqv] [-P pattern] off len [len..]",
    "start a read, and go on",
    least=2,
    details=_READ_HELP,
)
def aio_read(interpreter: Interpreter, words: list[str]) -> None:
    """Start a read."""
    options, operands = interpreter.options(words, "CP:iqv", check=_injecting(interpreter, READ, "read"))
    pattern = options.numbers.get("P")
    if len(operands) < 2:
        raise Misused
    offset = interpreter.number(operands[0])
    view = memoryview(bytearray(vector_length(interpreter, operands[1:])))
    interpreter.pending.append(
        _Request(
            interpreter,
            lambda: interpreter.read(offset, view, counted=True),
            lambda start, end: finish_read(interpreter, options, view, offset, start, end, pattern, 0, len(view)),
            "readv",
        )
    )


@io_command(
    "aio_write",
    "[-Cfiquz] [-P pattern] off len [len..]",
    "start a write, and go on",
    least=2,
    details=_WRITE_HELP,
    writes=True,
)
def aio_write(interpreter: Interpreter, words: list[str]) -> None:
    """Start a write."""
    options, operands = interpreter.options(words, "CfiP:quz", check=_injecting(interpreter, WRITE, "write"))
    pattern = options.numbers.get("P", DEFAULT_PATTERN)
    if len(operands) < 2:
        raise Misused
    if "z" in options and len(operands) != 2:
        raise Failed("-z supports only a single length parameter")
    if "u" in options and "z" not in options:
        raise Failed("-u requires -z to be specified")
    offset = interpreter.number(operands[0])
    root = interpreter.root
    if "z" in options:
        count = interpreter.number(operands[1])

        def work() -> None:
            root.write_zeroes(offset, count, may_unmap="u" in options, fua="f" in options, counted=False)
    else:
        count = vector_length(interpreter, operands[1:])
        data = bytes([pattern]) * count

        def work() -> None:
            root.write(offset, data, fua="f" in options)

    def report(start: float, end: float) -> None:
        if "q" not in options:
            interpreter.report("wrote", start, end, offset, count, count, terse="C" in options)

    interpreter.pending.append(_Request(interpreter, work, report, "aio_write"))


@io_command("aio_flush", "", "wait for all that was started", most=0)
def aio_flush(interpreter: Interpreter, words: list[str]) -> None:
    """Wait for all requests; it counts as a flush."""
    accounting, clock = interpreter.root.accounting, interpreter.root.layer.clock
    start_ns = clock.monotonic_ns()
    wait_all(interpreter)
    accounting.add(FLUSH, 1, 0, clock.monotonic_ns() - start_ns)
