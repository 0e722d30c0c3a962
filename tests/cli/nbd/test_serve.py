"""When qobra-nbd ends: a signal, or the last client that leaves."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest

from qobra.block.layer import BlockLayer
from qobra.cli._nbd import serve

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@pytest.fixture
def server() -> Iterator[serve.Server]:
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signals are handled in the main thread")
    before = [(number, signal.getsignal(number)) for number in SIGNALS]
    layer = BlockLayer()
    yield serve.Server(layer)
    layer.close()
    for number, handler in before:
        signal.signal(number, handler)


@pytest.mark.parametrize("persistent", [True, False])
def test_a_signal_ends_it_wherever_the_waiting_is(server: serve.Server, persistent: bool) -> None:
    """The handler runs between any two lines of the thread that waits; no lock of the wait may be in its way."""
    lines = 0

    def trace(_frame: FrameType, event: str, _argument: Any) -> Any:
        nonlocal lines
        if event == "line" and callable(signal.getsignal(signal.SIGHUP)):
            lines += 1
            if lines == at:
                signal.raise_signal(signal.SIGHUP)
        return trace

    before = sys.gettrace()
    for at in range(1, 200):
        lines = 0
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        end = threading.Timer(0.05, server.reasons.put, ["signal"])
        end.start()
        sys.settrace(trace)
        try:
            serve.end_by_signals(server)
            serve.wait(server, persistent=persistent)
        finally:
            sys.settrace(before)
        end.cancel()
        end.join()
        while not server.reasons.empty():
            server.reasons.get()
        if lines < at:
            break
    assert 2 < at < 200


def test_it_ends_with_the_last_client(server: serve.Server) -> None:
    server.reasons.put("left")
    serve.wait(server, persistent=False)
    for reason in ("left", "left", "signal"):
        server.reasons.put(reason)
    serve.wait(server, persistent=True)
    assert server.reasons.empty()
