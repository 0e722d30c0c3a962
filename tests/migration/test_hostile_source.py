"""A source that sends what no source would: the destination says why in a line, and ends."""

from __future__ import annotations

import random
import socket
from typing import Any

import pytest

from qobra.migration import machine_state, stream
from qobra.migration.configuration import put_configuration, put_name
from qobra.migration.ram import RUN, put_blocks, ram_blocks

PAGE = bytes(4096)


class Sink:
    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._sock.sendall(data)


def records(chance: random.Random, machine: Any) -> list[tuple[int, bytes]]:
    """A stream that begins well, and then has anything."""
    blocks = bytearray()
    with machine.control:
        put_blocks(blocks, ram_blocks(machine.board))
        devices = [(kind, bytes(payload)) for kind, payload in machine_state.save_devices(machine, "paused")]
    good = [
        (stream.CONFIGURATION, bytes(put_configuration(machine, with_uuid=False))),
        (stream.ANSWER, b""),
        (stream.CAPABILITY, bytes(put_name("postcopy-ram"))),
        (stream.BLOCKS, bytes(blocks)),
    ]
    number = chance.randrange(3)
    run = RUN.pack(number, chance.randrange(600), chance.choice((0, 1, 16, 1 << 31)))
    wild = [
        (stream.LATER, RUN.pack(0, 16, 16)),
        (stream.LATER, run),
        (stream.ZEROES, run),
        (stream.PAGES, run + PAGE * chance.randrange(3)),
        (stream.DEFLATED, run + chance.randbytes(30)),
        (stream.ZSTD, run + chance.randbytes(30)),
        (stream.DELTA, run + chance.randbytes(5)),
        (stream.CHANNELS, chance.randbytes(17)),
        (stream.SYNC, b""),
        (stream.RECOVER, b""),
        (stream.CAPABILITY, bytes(put_name(chance.choice(("multifd", "none"))))),
        (stream.BITMAPS, chance.randbytes(20)),
        (stream.SWITCH, b""),
        (stream.END, b""),
        *devices[:2],
    ]
    if chance.random() < 0.5:
        # A guest that runs, and then something.
        good += [(stream.LATER, RUN.pack(0, 16, 16)), *devices, (stream.SWITCH, b"")]
    return good + chance.choices(wild, k=8)


@pytest.mark.parametrize("seed", range(30))
def test_it_is_refused(sides: Any, seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    chance = random.Random(seed)
    both = sides("postcopy-ram")
    way = both.way()
    with both.source.control:
        both.source.run_state.stop("paused")
    sent = records(chance, both.source)
    both.call(both.destination, "migrate-incoming", uri=way)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(way.removeprefix("unix:"))
        out = stream.StreamWriter(Sink(sock))
        try:
            out.begin()
            for kind, payload in sent:
                out.record(kind, payload)
        except OSError:
            pass  # it has left, as it should
    both.until(both.destination, "failed", "postcopy-paused", "completed")
    if both.status(both.destination) == "failed":
        assert both.destination.migration.wait(60)
        lines = [line for line in capsys.readouterr().err.splitlines() if "Migration paused" not in line]
        assert len(lines) == 2 and "load of migration failed" in lines[1] and "Traceback" not in lines[0]
