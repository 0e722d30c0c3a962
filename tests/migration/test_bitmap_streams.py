"""Records of bitmaps, also from a source that sends what no source would."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from qobra.block.bitmap import DirtyBitmap
from qobra.block.layer import BlockLayer
from qobra.errors import QobraError
from qobra.migration import bitmaps
from qobra.migration.bitmaps import BitmapReceiver, BitmapSender

MIB = 1 << 20


class Settings:
    mapping = None


@pytest.fixture
def layers() -> Iterator[tuple[BlockLayer, BlockLayer]]:
    both = BlockLayer(), BlockLayer()
    for layer in both:
        layer.add_node({"driver": "null-co", "node-name": "n", "size": MIB})
    yield both
    for layer in both:
        layer.close()


def sent(layer: BlockLayer) -> list[bytes]:
    """The records that carry all bitmaps of ``layer``."""
    records: list[bytes] = []

    class Out:
        def record(self, _kind: int, *parts: bytes) -> None:
            records.append(b"".join(parts))

    out: Any = Out()
    sender = BitmapSender(layer, Settings())  # type: ignore[arg-type]
    sender.announce(out)
    sender.send(out, lambda: None)
    sender.end(moved=True)
    return records


def receiver_of(layer: BlockLayer) -> BitmapReceiver:
    return BitmapReceiver(layer, Settings())  # type: ignore[arg-type]


def test_what_came_before_a_recovery_may_come_again(layers: tuple[BlockLayer, BlockLayer]) -> None:
    source, destination = layers
    for name in ("a", "b"):
        DirtyBitmap(source.graph.nodes["n"], name, 4096).set(8192, 4096)
    records = sent(source)
    announced, bits = records[:2], records[2:]
    assert len(bits) == 4
    receiver = receiver_of(destination)
    for record in (*announced, *bits[:3]):
        receiver.take(record)
    found = destination.graph.nodes["n"].bitmaps
    found["a"].set(65536, 4096)  # the guest writes, the bitmap being complete
    for record in bits:
        receiver.take(record)
    assert list(found["a"].dirty_ranges()) == [(8192, 4096), (65536, 4096)]
    assert list(found["b"].dirty_ranges()) == [(8192, 4096)]
    assert not found["a"].busy and not found["b"].busy


def test_a_name_that_is_no_text_arrives_as_it_is(layers: tuple[BlockLayer, BlockLayer]) -> None:
    source, destination = layers
    DirtyBitmap(source.graph.nodes["n"], "\udcff\udc80", 4096).set(8192, 4096)
    receiver = receiver_of(destination)
    for record in sent(source):
        receiver.take(record)
    assert list(destination.graph.nodes["n"].bitmaps["\udcff\udc80"].dirty_ranges()) == [(8192, 4096)]


def test_how_many_a_stream_makes_is_bounded(
    layers: tuple[BlockLayer, BlockLayer], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, destination = layers
    monkeypatch.setattr(bitmaps, "MAX_BITMAPS", 3)
    for name in "abcd":
        DirtyBitmap(source.graph.nodes["n"], name, 4096)
    records = sent(source)
    receiver = receiver_of(destination)
    for record in (records[0], records[4], *records[1:4]):
        receiver.take(record)
    # Those that are complete count too.
    assert capsys.readouterr().err.count("\n") == 1
    assert list(destination.graph.nodes["n"].bitmaps) == ["a"]
    for record in records:
        receiver.take(record)
    assert capsys.readouterr().err == "" and list(destination.graph.nodes["n"].bitmaps) == ["a"]


def test_how_much_a_stream_makes_is_bounded(
    layers: tuple[BlockLayer, BlockLayer], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, destination = layers
    monkeypatch.setattr(bitmaps, "MAX_BITS", MIB // 512 // 8 * 2)
    for name in "abc":
        DirtyBitmap(source.graph.nodes["n"], name, 512)
    receiver = receiver_of(destination)
    for record in sent(source):
        receiver.take(record)
    assert "The bitmaps of the stream take more than 512 bytes" in capsys.readouterr().err
    assert not destination.graph.nodes["n"].bitmaps


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_record_that_is_cut_off_is_refused(layers: tuple[BlockLayer, BlockLayer], cut: int) -> None:
    source, destination = layers
    DirtyBitmap(source.graph.nodes["n"], "a", 4096).set(0, 4096)
    start, bits, _complete = sent(source)
    receiver = receiver_of(destination)
    receiver.take(start)
    with pytest.raises(QobraError, match="the state ends too early"):
        receiver.take(bits[:cut])


@pytest.mark.parametrize(("start", "length"), [(MIB - 32768, 1), (0, 32)])
@pytest.mark.parametrize("beyond", [0, 1])
def test_bits_beyond_the_end_are_refused(
    layers: tuple[BlockLayer, BlockLayer], start: int, length: int, beyond: int
) -> None:
    source, destination = layers
    DirtyBitmap(source.graph.nodes["n"], "a", 4096).set(0, 4096)
    announced, bits, _complete = sent(source)
    receiver = receiver_of(destination)
    receiver.take(announced)
    head = bits[: -12 - MIB // 32768]
    record = head + start.to_bytes(8, "little") + bytes(4) + b"\xff" * (length + beyond)
    if beyond:
        with pytest.raises(QobraError, match="bits lie beyond the end of their bitmap"):
            receiver.take(record)
    else:
        receiver.take(record)
        assert destination.graph.nodes["n"].bitmaps["a"].count() == length * 32768
