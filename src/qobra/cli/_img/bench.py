"""``bench``: how fast requests of one kind to an image are served."""

from __future__ import annotations

import time

from qobra.block.cache_modes import CACHE_MODES
from qobra.cli._img._target import reason
from qobra.cli._tool.opening import Images
from qobra.cli._tool.report import Program, ToolError, usage
from qobra.errors import QobraError
from qobra.getopt import parse_command

HELP = """\
bench [-c COUNT] [-d DEPTH] [-f FMT | --image-opts] [--flush-interval N] [-i AIO] [-n] [--no-drain] [-o OFFSET]
      [--pattern BYTE] [-q] [-s SIZE] [-S STEP] [-t CACHE] [-w] [-U] FILENAME

Send COUNT (75000) requests of SIZE bytes (4k), each STEP bytes (SIZE) after the one before, and say how long they took.
Reads, or with -w writes. Requests are served one after another; DEPTH is accepted for the sake of old command lines.

  --flush-interval N  flush after each N writes
"""

AIO_MODES = ("threads", "native", "io_uring")


class Order:
    """What to do."""

    count = 75000
    depth = 64
    offset = 0
    size = 4096
    step = 0
    flush_interval = 0
    pattern = 0
    writes = False


def main(program: Program, arguments: list[str]) -> int:
    """Run the subcommand."""
    options, operands = parse_command(
        arguments,
        "c:d:f:i:no:qs:S:t:wU",
        ("flush-interval=", "pattern=", "no-drain", "image-opts", "force-share|U", "object="),
    )
    order = Order()
    fmt = None
    cache = "writeback"
    image_opts = force_share = no_drain = False
    with Images(program) as images:
        for option, value in options:
            if option == "c":
                order.count = _plain_number(value, "request count")
            elif option == "d":
                order.depth = _plain_number(value, "queue depth")
            elif option == "f":
                fmt = value
            elif option == "i":
                if value not in AIO_MODES:
                    raise ToolError(f"Invalid aio option: {value}")
            elif option == "o":
                order.offset = program.number("offset", value)
            elif option == "s":
                order.size = program.number("buffer size", value, 0, (1 << 31) - 1)
            elif option == "S":
                order.step = program.number("step_size", value, 0, (1 << 31) - 1)
            elif option == "t":
                if value not in CACHE_MODES:
                    raise ToolError("Invalid cache mode")
                cache = value
            elif option == "w":
                order.writes = True
            elif option == "U":
                force_share = True
            elif option == "pattern":
                order.pattern = _plain_number(value, "pattern byte", 255)
            elif option == "flush-interval":
                order.flush_interval = _plain_number(value, "flush interval")
            elif option == "no-drain":
                no_drain = True
            elif option == "image-opts":
                image_opts = True
            elif option == "object":
                images.add_object(value)
        if len(operands) != 1:
            raise usage("Expecting one image file name")
        if not order.writes and order.flush_interval:
            raise ToolError("--flush-interval is only available in write tests")
        if order.flush_interval and order.flush_interval < order.depth and not no_drain:
            raise ToolError("Flush interval can't be smaller than depth")
        images.create_objects()
        backend = images.open(
            operands[0], fmt=fmt, image_opts=image_opts, writable=order.writes, cache=cache, force_share=force_share
        )
        step = order.step or order.size
        print(
            f"Sending {order.count} {'write' if order.writes else 'read'} requests, {order.size} bytes each, "
            f"{order.depth} in parallel (starting at offset {order.offset}, step size {step})"
        )
        if order.flush_interval:
            print(f"Sending flush every {order.flush_interval} requests")
        length = backend.length
        data = memoryview(bytearray([order.pattern]) * order.size)
        begin = time.perf_counter()
        offset = order.offset
        try:
            for number in range(1, order.count + 1):
                if order.writes:
                    backend.write(offset, data)
                    if order.flush_interval and number % order.flush_interval == 0:
                        backend.flush()
                else:
                    backend.read_into(offset, data)
                offset += step
                if length > order.offset and offset + order.size > length:
                    offset = order.offset
        except (OSError, QobraError) as error:
            raise ToolError(f"Failed request: {reason(error)}")
        print(f"Run completed in {time.perf_counter() - begin:3.3f} seconds.")
    return 0


def _plain_number(text: str, what: str, most: int = (1 << 31) - 1) -> int:
    try:
        value = int(text, 0)
    except ValueError:
        value = -1
    if not 0 <= value <= most:
        raise ToolError(f"Invalid {what} specified")
    return value
