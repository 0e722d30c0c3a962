"""Pages as changes, pages deflated, and a destination that answers."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qobra.errors import QobraError
from qobra.machine.launch import simple_machine
from qobra.migration.channel import Channel
from qobra.migration.page_coding import AS_ZLIB, AS_ZSTD, PAGE, DeltaCache, Packer, apply_delta, encode_delta, unpack
from qobra.migration.page_out import PackedOut, PageOut
from qobra.migration.ram import RamSender, ram_blocks, take_pages
from qobra.migration.stream import SYNC, StreamReader, StreamWriter

Make = Callable[..., Any]

changes = st.lists(st.tuples(st.integers(0, PAGE - 1), st.binary(min_size=1, max_size=300)), max_size=12)


def changed(page: bytes, where: list[tuple[int, bytes]]) -> bytes:
    new = bytearray(page)
    for at, data in where:
        new[at : at + len(data)] = data
    return bytes(new[:PAGE])


@given(changes, changes)
def test_changes_make_the_new_page_of_the_old(first: list[Any], second: list[Any]) -> None:
    old = changed(bytes(PAGE), first)
    new = changed(old, second)
    delta = encode_delta(old, new)
    assert delta is not None and len(delta) < PAGE
    assert (delta == b"") == (old == new)
    page = bytearray(old)
    apply_delta(memoryview(page), delta)
    assert page == new


def test_what_would_not_be_shorter_is_no_change() -> None:
    assert encode_delta(bytes(PAGE), bytes([1]) * PAGE) is None
    assert encode_delta(bytes(PAGE), b"\1" + bytes(PAGE - 1)) == b"\0\1\1"
    assert encode_delta(bytes(PAGE), bytes(200) + b"ab" + bytes(PAGE - 202)) == b"\xc8\1\2ab"


@given(st.binary(max_size=40))
def test_changes_from_anywhere_stay_in_the_page(delta: bytes) -> None:
    memory = bytearray(3 * PAGE)
    try:
        apply_delta(memoryview(memory)[PAGE : 2 * PAGE], delta)
    except QobraError as error:
        assert "Failed to decode a page" in str(error)
    assert not any(memory[:PAGE]) and not any(memory[2 * PAGE :])


@pytest.mark.parametrize("kind", [AS_ZLIB, AS_ZSTD])
def test_what_is_unpacked_has_its_length(kind: int) -> None:
    packed = Packer(kind, 9).pack(memoryview(bytes(PAGE)))
    assert packed is not None and unpack(kind, packed, PAGE) == bytes(PAGE)
    assert Packer(kind, 9).pack(os.urandom(PAGE)) is None
    for data, length in ((packed, 2 * PAGE), (packed[:-1], PAGE), (b"", PAGE), (b"junk", PAGE)):
        with pytest.raises(QobraError, match="Failed to decompress pages"):
            unpack(kind, data, length)


def test_the_cache_holds_so_much() -> None:
    cache = DeltaCache(2 * PAGE)
    pages = [bytes([number]) + bytes(PAGE - 1) for number in range(3)]
    assert [cache.encode((0, number), pages[number]) for number in range(3)] == [None] * 3
    assert cache.encode((0, 1), pages[2]) == b"\0\1\2"
    assert cache.encode((0, 0), pages[0]) is None
    cache.forget(0, 0, 2)
    assert cache.encode((0, 1), pages[2]) is None
    found = cache.describe()
    assert (found["pages"], found["bytes"], found["cache-miss"], found["overflow"]) == (1, 3, 5, 0)
    assert found["cache-miss-rate"] == 5 / 6 and found["encoding-rate"] == PAGE / 3


class Pipe:
    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: Any) -> None:
        self.data += data

    def read(self, length: int) -> bytes:
        part = bytes(self.data[:length])
        del self.data[:length]
        return part


@pytest.mark.parametrize("packed", [False, True])
def test_memory_arrives_by_its_changes(packed: bool) -> None:
    source, destination = (simple_machine("x86_64", "pc", memory=4 << 20) for _ in range(2))
    pipe = Pipe()
    out, into = StreamWriter(pipe), StreamReader(pipe)
    deltas = DeltaCache(1 << 20)
    blocks = ram_blocks(destination.board)
    sender = RamSender(ram_blocks(source.board), lambda _block: False, deltas=deltas)
    pages = PackedOut(out, Packer(AS_ZLIB, 6), 3, wait=True) if packed else PageOut(out)
    lengths = []
    for number in range(6):
        source.board.memory.write(0x200010 + number, b"%d" % number)
        source.board.memory.write(0x280000 + 4096 * number, os.urandom(4096) if number != 4 else bytes(4096))
        if number == 5:
            source.board.memory.write(0x280000, bytes(16 * 4096))
        sender.send_pass(pages, lambda: None)
        pages.end_pass()
        lengths.append(len(pipe.data))
        while pipe.data:
            if (record := into.record())[0] != SYNC:
                take_pages(*record, blocks)
        assert destination.board.memory.read(0x200000, 0x100000) == source.board.memory.read(0x200000, 0x100000)
    assert deltas.describe()["pages"] >= 3
    pages.close()
    source.close()
    destination.close()


@pytest.mark.parametrize("capabilities", [("xbzrle",), ("compress",), ("return-path",), ("auto-converge", "xbzrle")])
def test_machines_move_with_them(pair_of: Make, capabilities: tuple[str, ...]) -> None:
    pair = pair_of()
    for name in capabilities:
        pair.set_capability(name)
    with pair.source.control:
        pair.source.board.memory.write(0x123456, b"somewhere" * 1000)
        pair.source.run_state.start()
    pair.migrate()
    assert pair.destination.run_state.running and pair.source.run_state.state == "postmigrate"
    assert pair.destination.board.memory.read(0x123456, 9000) == b"somewhere" * 1000
    info = pair.source.migration.describe()
    assert ("xbzrle-cache" in info) == ("xbzrle" in capabilities)
    assert ("compression" in info) == ("compress" in capabilities)
    if "compress" in capabilities:
        assert 0 < info["compression"]["pages"] <= info["ram"]["normal"]
        assert info["compression"]["compression-rate"] > 1


def test_a_source_that_asks_goes_on_if_the_destination_does_not(pair_of: Make) -> None:
    pair = pair_of()
    source = pair.source
    pair.set_capability("return-path")
    with source.control:
        source.run_state.start()
    ours, theirs = socket.socketpair()
    with source.control:
        source.migration.start_over(Channel(ours.detach()))
    theirs.settimeout(30)
    with theirs:
        while not theirs.recv(1 << 20).endswith(b"\x09\0\0\0\0\0\0\0\0"):
            pass
        with source.control:
            source.migration.cancel()  # too late: the other side may run already
    assert source.migration.wait(60)
    assert source.run_state.running
    assert source.migration.describe()["error-desc"] == "The destination did not take the machine over"


def test_a_way_that_goes_out_only_has_no_answer(pair_of: Make) -> None:
    pair = pair_of()
    pair.set_capability("return-path")
    with pair.source.control:
        pair.source.migration.start("exec:cat >/dev/null")
    assert pair.source.migration.wait(60)
    assert pair.source.migration.describe()["error-desc"] == "Unable to open return-path for postcopy"


def test_what_is_refused_at_once_is_remembered(pair_of: Make) -> None:
    migration = pair_of().source.migration
    for uri, complaint in (("unix:", "invalid Unix socket address"), ("tcp:1", "error parsing address '1'")):
        with pytest.raises(QobraError, match=complaint):
            migration.start(uri)
        assert migration.describe() == {"status": "failed", "error-desc": complaint}
    with pytest.raises(QobraError, match="expects a value between 0 and 10000"):
        migration.settings.set_parameters({"announce-step": 0})


def test_what_was_not_packed_yet_has_no_rate() -> None:
    packer = Packer(AS_ZLIB, 9)
    nothing = {"pages": 0, "busy": 0, "busy-rate": 0, "compressed-size": 0, "compression-rate": 0}
    assert packer.describe() == nothing
    packed = packer.pack(bytes(2 * PAGE))
    assert packed is not None
    packer.note(busy=True)
    packer.note(busy=False)
    size = len(packed)
    found = {"pages": 2, "busy": 1, "busy-rate": 0.5, "compressed-size": size, "compression-rate": 2 * PAGE / size}
    assert packer.describe() == found
