"""Telnet and WebSocket: however the stream is cut, and whatever is in it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qobra.chardev.layer.telnet import TelnetLayer
from qobra.chardev.layer.websocket import WebSocketLayer
from qobra.errors import QobraError

REQUEST = (
    b"GET / HTTP/1.1\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    b"Sec-WebSocket-Version: 13\r\n\r\n"
)


def run(make: Callable[[], Any], data: bytes, cuts: list[int]) -> tuple[bytes, bytes, bool, int]:
    layer = make()
    inside = answer = b""
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    for begin, end in pairwise(places):
        more, back = layer.incoming(data[begin:end])
        inside += more
        answer += back
        if layer.ended:
            break
    return inside, answer, layer.ended, layer.take_breaks()


@given(st.binary(max_size=60) | st.lists(st.sampled_from([255, 243, 250, 240, 251, 65]), max_size=60).map(bytes))
def test_telnet_in_any_pieces(data: bytes) -> None:
    whole = run(TelnetLayer, data, [])
    assert run(TelnetLayer, data, list(range(len(data)))) == whole
    assert TelnetLayer().incoming(TelnetLayer().outgoing(data)) == (data, b"")


frames = st.builds(
    lambda opcode, payload, masked: bytes((0x80 | opcode, 0x80 * masked | len(payload))) + b"\0" * 4 * masked + payload,
    st.integers(0, 15),
    st.binary(max_size=40),
    st.booleans() | st.just(True),
)


@given(st.lists(frames | st.binary(max_size=20), max_size=6).map(b"".join), st.lists(st.integers(0, 500), max_size=8))
def test_websocket_in_any_pieces(data: bytes, cuts: list[int]) -> None:
    whole = run(WebSocketLayer, REQUEST + data, [])
    inside, answer, ended, _ = run(WebSocketLayer, REQUEST + data, cuts)
    assert (inside, answer, ended) == whole[:3]


@given(st.binary(max_size=200) | st.text("GET /:\r\nabc13", max_size=200).map(str.encode))
def test_websocket_requests_are_refused_in_words(data: bytes) -> None:
    layer = WebSocketLayer()
    try:
        assert layer.incoming(data + b"\r\n\r\n")[0] == b""
    except QobraError as error:
        assert str(error)
    else:
        pytest.fail("accepted")
