"""``bench``: how fast requests of one kind to an image are served."""

from __future__ import annotations

import threading
import time

from qobra.block.buffers import new_buffer
from qobra.block.cache_modes import CACHE_MODES
from qobra.cli._img._target import reason
from qobra.cli._tool.opening import command_line, opening
from qobra.cli._tool.report import Program, ToolError, usage
from qobra.errors import QobraError
from qobra.units import integer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qobra.block.backend import BlockBackend

HELP = """\
bench [-c COUNT] [-d DEPTH] [-f FMT | --image-opts] [--flush-interval N] [-i AIO] [-n] [--no-drain] [-o OFFSET]
      [--pattern BYTE] [-q] [-s SIZE] [-S STEP] [-t CACHE] [-w] [-U] FILENAME

Send COUNT (75000) requests of SIZE bytes (4k), each STEP bytes (SIZE) after the one before, and say how long they took.
Reads, or with -w writes, of which DEPTH (64) are in flight at once, each in a thread of its own.

  --flush-interval N  flush after each N writes, once those before are done
  --no-drain          flush without waiting for them
  -i AIO              threads, native (needs a cache mode past the host's cache) or io_uring
"""

MAX_DEPTH = 256
"""Threads, whatever DEPTH is."""
AIO_MODES = ("threads", "native", "io_uring")


class Order:
    """What to do, as the options say it."""

    count = 75000
    drain = True
    depth = 64
    aio = "threads"
    offset = 0
    size = 4096
    step = 0
    flush_interval = 0
    pattern = 0
    writes = False

    def __init__(self, program: Program) -> None:
        self._program = program

    def look(self, option: str, value: str) -> None:
        """Take an option. Raises ToolError for a value that cannot be."""
        if option == "c":
            self.count = _plain_number(value, "request count")
        elif option == "d":
            self.depth = _plain_number(value, "queue depth")
        elif option == "i":
            if value not in AIO_MODES:
                raise ToolError(f"Invalid aio option: {value}")
            self.aio = value if self.aio != "native" else "native"
        elif option == "n":
            self.aio = "native"
        elif option == "o":
            self.offset = self._program.number("offset", value)
        elif option == "s":
            self.size = self._program.number("buffer size", value, 0, (1 << 31) - 1)
        elif option == "S":
            self.step = self._program.number("step_size", value, 0, (1 << 31) - 1)
        elif option == "t" and value not in CACHE_MODES:
            raise ToolError("Invalid cache mode")
        elif option == "pattern":
            self.pattern = _plain_number(value, "pattern byte", 255)
        elif option == "flush-interval":
            self.flush_interval = _plain_number(value, "flush interval")


def main(program: Program, arguments: list[str]) -> int:
    """Run the subcommand."""
    order = Order(program)
    line, images = command_line(
        program,
        arguments,
        "c:d:f:i:no:qs:S:t:wU",
        ("flush-interval=", "pattern=", "no-drain", "image-opts", "force-share|U"),
        order.look,
    )
    order.writes = line.has("w")
    order.drain = not line.has("no-drain")
    with images:
        if len(line.operands) != 1:
            raise usage("Expecting one image file name")
        if not order.writes and order.flush_interval:
            raise ToolError("--flush-interval is only available in write tests")
        if order.flush_interval and order.flush_interval < order.depth:
            raise ToolError("Flush interval can't be smaller than depth")
        backend = images.open(
            line.operands[0],
            **opening(line),
            writable=order.writes,
            cache=line.value("t", "writeback"),
            aio=order.aio,
        )
        step = order.step or order.size
        print(
            f"Sending {order.count} {'write' if order.writes else 'read'} requests, {order.size} bytes each, "
            f"{order.depth} in parallel (starting at offset {order.offset}, step size {step})"
        )
        if order.flush_interval:
            print(f"Sending flush every {order.flush_interval} requests")
        begin = time.perf_counter()
        Load(backend, order, step).run()
        print(f"Run completed in {time.perf_counter() - begin:3.3f} seconds.")
    return 0


class Load:
    """Sends the requests of an order, from as many threads as are to be in flight."""

    def __init__(self, backend: BlockBackend, order: Order, step: int) -> None:
        self._backend = backend
        self._order = order
        self._step = step
        self._length = backend.length
        self._lock = threading.Lock()
        self._drained = threading.Condition(self._lock)
        self._sent = self._done = 0
        self._offset = order.offset
        self._flushing = False
        self._failure: OSError | QobraError | None = None

    def run(self) -> None:
        """Send them all. Raises ToolError."""
        depth = max(1, min(self._order.depth, self._order.count, MAX_DEPTH))
        threads = [threading.Thread(target=self._work, daemon=True) for _ in range(depth - 1)]
        for thread in threads:
            thread.start()
        self._work()
        for thread in threads:
            thread.join()
        if self._failure is not None:
            raise ToolError(f"Failed request: {reason(self._failure)}")

    def _work(self) -> None:
        order, backend = self._order, self._backend
        data = memoryview(new_buffer(order.size))
        data[:] = bytes([order.pattern]) * order.size
        try:
            while (offset := self._begin()) is not None:
                if order.writes:
                    backend.write(offset, data)
                else:
                    backend.read_into(offset, data)
                self._end()
        except (OSError, QobraError) as error:
            with self._lock:
                self._failure = self._failure or error
                self._drained.notify_all()

    def _begin(self) -> int | None:
        """Where the next request goes; None where there is none left."""
        order = self._order
        with self._lock:
            while self._flushing and self._failure is None:
                self._drained.wait()
            if self._failure is not None or self._sent == order.count:
                return None
            offset = self._offset
            self._sent += 1
            self._offset = (self._offset + self._step) % max(1, self._length)
            if order.drain and order.flush_interval and self._sent % order.flush_interval == 0:
                self._flushing = True  # nothing more until what was sent is done and flushed
            return offset

    def _end(self) -> None:
        """A request is done; whoever does the last before a flush flushes."""
        interval = self._order.flush_interval
        with self._lock:
            self._done += 1
            flush = bool(interval) and self._done % interval == 0
        if flush:
            self._backend.flush()
            with self._lock:
                self._flushing = False
                self._drained.notify_all()


def _plain_number(text: str, what: str, most: int = (1 << 31) - 1) -> int:
    value = integer(text)
    if value is None or not 0 <= value <= most:
        raise ToolError(f"Invalid {what} specified")
    return value
