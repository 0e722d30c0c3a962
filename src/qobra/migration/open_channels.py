"""The channels that one side of a migration has open."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from qobra.errors import QobraError
from qobra.migration.channel import Channel, GivenUp

if TYPE_CHECKING:
    from qobra.migration.ways import AnyChannel


class OpenChannels:
    """Channels, the first of which has the stream. One thread adds and closes them; any may break them meanwhile."""

    def __init__(self) -> None:
        self._channels: list[AnyChannel] = []
        self._lock = threading.Lock()
        self.given_up = False
        """No more are wanted."""

    def add(self, channel: Channel, secure: Callable[[Channel], AnyChannel]) -> AnyChannel:
        """Own ``channel``, and return what ``secure`` makes of it.

        Raises GivenUp, also while it is made. Where that raises QobraError or OSError, the channel is closed.
        """
        with self._lock:
            self._channels.append(channel)
        if self.given_up:
            raise GivenUp
        try:
            secured = secure(channel)
        except (QobraError, OSError):
            with self._lock:
                self._channels.remove(channel)
            channel.abort()
            raise
        with self._lock:
            self._channels[self._channels.index(channel)] = secured
        return secured

    def give_up(self) -> None:
        """Let go whoever reads or writes now, or begins to."""
        self.given_up = True
        self.let_go()

    def let_go(self) -> None:
        """Let go whoever reads or writes now."""
        with self._lock:
            for channel in self._channels:
                channel.cancel()

    def hang_up(self) -> bool:
        """Break the stream, so that both sides find its end; False where there is none."""
        with self._lock:
            for channel in self._channels[:1]:
                channel.hang_up()
            return bool(self._channels)

    def close(self, *, abort: bool = False) -> None:
        """Close all, nobody using them any more; as after a failure, to ``abort``."""
        with self._lock:
            channels, self._channels = self._channels, []
        for channel in channels:
            if abort:
                channel.abort()
            else:
                channel.close()
