"""Pages on their way in: what is packed goes to several threads, and some come over channels of their own."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from qobra.errors import QobraError, strerror
from qobra.migration.channel import GivenUp
from qobra.migration.lanes import Lanes
from qobra.migration.page_out import HELLO, PACKED, TOKEN_SIZE
from qobra.migration.ram import take_pages
from qobra.migration.stream import MEMORY, SYNC, StreamReader

if TYPE_CHECKING:
    from qobra.migration.ram import RamBlock
    from qobra.migration.ways import AnyChannel

_HELLO_S = 10.0


class PageIn:
    """Takes records of pages into ``blocks``; ``threads`` unpack them. From one thread, but for what it starts."""

    def __init__(self, blocks: Callable[[], list[RamBlock]], threads: int) -> None:
        self._blocks = blocks
        self._lanes: Lanes[tuple[int, bytes]] = Lanes(threads, lambda _lane, record: self._place(*record))
        self._channels: list[AnyChannel] = []
        self._threads: list[threading.Thread] = []
        self._all_here: threading.Barrier | None = None
        self.error: BaseException | None = None
        """Why a channel has failed."""

    def take(self, kind: int, payload: bytes) -> None:
        """A record of the stream. Raises QobraError, also for an earlier one."""
        if kind in PACKED:
            self._lanes.put((kind, payload))
        else:
            self._place(kind, payload)

    def drain(self) -> None:
        """Wait until all that came over the stream is in its place. Raises what was wrong with it."""
        self._lanes.drain()

    def end_pass(self) -> None:
        """Wait until all is in its place that came before, on any channel. Raises what was wrong with it."""
        self.drain()
        if self._all_here is not None:
            try:
                self._all_here.wait()
            except threading.BrokenBarrierError:
                raise self.error or QobraError("Some channel has ended", errno=errno.EIO)

    def share(self, payload: bytes, accept: Callable[[], AnyChannel], failed: Callable[[], None]) -> None:
        """Take the channels that a record announces; ``failed`` is called from another thread if one of them does.

        Whoever comes that is not the source is told of and sent away, by ``accept`` being called again.
        Raises QobraError, OSError or GivenUp.
        """
        if len(payload) != TOKEN_SIZE + 1 or not payload[-1] or self._threads:
            raise QobraError("The channels of the stream are not described as such", errno=errno.EINVAL)
        token, count = payload[:TOKEN_SIZE], payload[-1]
        self._all_here = threading.Barrier(count + 1)
        while len(self._channels) < count:
            channel = accept()
            hello = _greeting(channel, len(HELLO) + len(payload))
            if hello is None:
                continue
            if hello[:-1] != HELLO + token:
                raise QobraError("A channel is not of this migration", errno=errno.EINVAL)
            self._channels.append(channel)
        for channel in self._channels:
            self._threads.append(threading.Thread(target=self._run, args=(channel, failed), daemon=True))
            self._threads[-1].start()

    def close(self) -> None:
        """No more pages come this way."""
        if self._all_here is not None:
            self._all_here.abort()
        for channel in self._channels:
            channel.cancel()
        for thread in self._threads:
            thread.join()
        self._lanes.close()

    def _place(self, kind: int, payload: bytes) -> None:
        take_pages(kind, payload, self._blocks())

    def _run(self, channel: AnyChannel, failed: Callable[[], None]) -> None:
        assert self._all_here is not None
        reader = StreamReader(channel)
        try:
            while True:
                kind, payload = reader.record()
                if kind == SYNC:
                    self._all_here.wait()
                elif kind in MEMORY:
                    self._place(kind, payload)
                else:
                    raise QobraError(f"Unexpected savevm section type {kind}", errno=errno.EINVAL)
        except threading.BrokenBarrierError:
            pass
        except GivenUp as error:
            self._end(error)
        except OSError as error:
            self._end(QobraError(f"Unable to read from channel: {strerror(error)}", errno=error.errno))
        except QobraError as error:
            self._end(error)
            # A channel that has ended may have brought all: then what comes over the stream is still to be read.
            if error.errno != errno.EIO:
                failed()

    def _end(self, error: BaseException) -> None:
        # Who waits for this channel waits in vain.
        self.error = self.error or error
        if self._all_here is not None:
            self._all_here.abort()


def _greeting(channel: AnyChannel, length: int) -> bytes | None:
    """The ``length`` bytes that ``channel`` begins with, or all; None of one that does not come with them in time."""
    hello = b""
    deadline = time.monotonic() + _HELLO_S
    while len(hello) < length:
        if not channel.readable(max(deadline - time.monotonic(), 0)):
            return None
        byte = channel.read(1)
        if not byte:
            break
        hello += byte
    return hello
