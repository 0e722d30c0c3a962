"""Someone who uses the disk: writes blocks that can be told apart later."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qobra.nbd import Client

BLOCK = 64 * 1024
IN_FLIGHT = 16
READ = 4 << 20


def content(block: int, version: int) -> bytes:
    """What block number ``block`` holds once it was written for the ``version``-th time."""
    return random.Random(block << 32 | version).randbytes(BLOCK)


class Writer:
    """Writes through an NBD client.

    ``versions`` tells how often each block was written, ``count`` how many writes there were, and ``seconds`` how long
    they took, without the making of what was written.
    """

    def __init__(self, client: Client, size: int) -> None:
        self._client = client
        self._blocks = size // BLOCK
        self._random = random.Random(0)
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._write_on, name="writer", daemon=True)
        self._error: Exception | None = None
        self.versions: dict[int, int] = {}
        self.count = 0
        self.seconds = 0.0

    def fill(self, amount: int) -> int:
        """Write ``amount`` bytes in blocks spread over the disk; returns how many bytes it came to."""
        blocks = self._random.sample(range(self._blocks), amount // BLOCK)
        for start in range(0, len(blocks), IN_FLIGHT):
            self._write(blocks[start : start + IN_FLIGHT])
        return len(blocks) * BLOCK

    def start(self) -> None:
        """Begin to write all over the disk, in a thread."""
        self._thread.start()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """While in here no write is under way."""
        with self._lock:
            yield

    def stop(self) -> None:
        """End the writing; raises what went wrong with it."""
        self._stopping.set()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _write_on(self) -> None:
        try:
            while not self._stopping.wait(0.005):
                with self._lock:
                    self._write(self._random.sample(range(self._blocks), min(4, self._blocks)))
        except Exception as error:
            self._error = error

    def _write(self, blocks: list[int]) -> None:
        writes = []
        for block in blocks:
            version = self.versions.get(block, 0) + 1
            writes.append((content(block, version), block * BLOCK))
            self.versions[block] = version
        began = time.monotonic()
        requests = [self._client.aio_pwrite(data, offset) for data, offset in writes]
        for request in requests:
            request.result()
        self.seconds += time.monotonic() - began
        self.count += len(requests)


def mismatches(
    backup: Client, base: Client | None, size: int, expected: dict[int, int], show: Callable[[float], None]
) -> int:
    """How many blocks of ``backup`` are not as ``expected`` (or, never written, as in ``base``; zero without one)."""
    wrong = 0
    for offset in range(0, size, READ):
        length = min(READ, size - offset)
        data = memoryview(backup.pread(length, offset))
        original = memoryview(base.pread(length, offset)) if base is not None else memoryview(bytes(length))
        for start in range(0, length, BLOCK):
            end = min(length, start + BLOCK)
            block = (offset + start) // BLOCK
            wanted = content(block, expected[block]) if block in expected else original[start:end]
            wrong += data[start:end] != wanted
        show((offset + length) / size)
    return wrong
