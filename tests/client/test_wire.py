"""Messages cut out of a stream of bytes."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qobra.client import ProtocolError, wire
from qobra.client.wire import MessageReader, encode

MESSAGES = [{"QMP": {}}, {"return": {"a": ["}", "{\n"]}}, {"event": "X", "data": {"ü": None}}]


@given(st.booleans(), st.sampled_from(["\n", "\r\n"]), st.lists(st.integers(1, 40), min_size=1))
def test_any_cut_gives_the_same_messages(pretty: bool, end: str, cuts: list[int]) -> None:
    texts = [json.dumps(message, indent=4 if pretty else None).replace("\n", end) for message in MESSAGES]
    stream = (end.join(texts) + end).encode()
    reader = MessageReader()
    found = []
    position = 0
    while position < len(stream):
        size = cuts[len(found) % len(cuts)]
        found += reader.feed(stream[position : position + size])
        position += size
    assert found == MESSAGES


@pytest.mark.parametrize("line", [b"SSH-2.0-OpenSSH\r\n", b"[1]\n", b'{"a": \n', b"{}}\n", b"[" * 100_000 + b"\n"])
def test_what_is_not_qmp_is_refused(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        MessageReader().feed(line)


@pytest.mark.parametrize("piece", [b"x" * 1000, b"{\n" + b" \n" * 500])
def test_a_message_without_end_is_refused(piece: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_MESSAGE", 10_000)
    reader = MessageReader()
    with pytest.raises(ProtocolError, match="longer than 10000 bytes"):
        for _ in range(50):
            reader.feed(piece.replace(b"\n", b"x\n") if reader._lines else piece)


def test_encode() -> None:
    assert json.loads(encode("stop", None, 3, False)) == {"execute": "stop", "id": 3}
    assert json.loads(encode("yank", {"a": 1}, 4, True)) == {"exec-oob": "yank", "arguments": {"a": 1}, "id": 4}
