"""Dirty bitmaps in a stream: which bitmaps of which nodes move, under which names, and their bits.

A bitmap goes after the guest was stopped; or, in postcopy, after the guest runs on the other side, where a bitmap
notes writes from the start and is given the old bits when they have come.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from struct import Struct
from typing import TYPE_CHECKING, Any

from qobra.block.bitmap import DirtyBitmap
from qobra.errors import QobraError
from qobra.machine.vmstate import StateSource, put_text
from qobra.migration.stream import BITMAPS, StreamWriter
from qobra.report import report_error, visible

if TYPE_CHECKING:
    from qobra.block.layer import BlockLayer
    from qobra.block.node import BlockNode
    from qobra.migration.settings import Settings

_START, _BITS, _COMPLETE = 1, 2, 3
_ENABLED, _PERSISTENT = 1, 2
_MAX_NAME = 255
_SPAN = Struct("<QI")
_BITS_CHUNK = 512 << 10
"""Bytes of bits in one record."""
MAX_BITMAPS = 4096
"""Bitmaps that one stream can make."""
MAX_BITS = 1 << 30
"""Bytes that the bits of all of them can take."""


class _Moving:
    """One bitmap that moves, and what it is called on the way."""

    def __init__(self, bitmap: DirtyBitmap, node_alias: str, alias: str, persistent: bool) -> None:
        self.bitmap = bitmap
        self.node_alias = node_alias
        self.alias = alias
        self.persistent = persistent
        self.enabled = bitmap.enabled


class BitmapSender:
    """The bitmaps of ``layer`` that go along. Raises QobraError where one cannot."""

    def __init__(self, layer: BlockLayer, settings: Settings) -> None:
        self._layer = layer
        self._mapping = settings.mapping
        self._moving = list(self._find())
        for each in self._moving:
            each.bitmap.check()
        for each in self._moving:
            each.bitmap.busy = each.bitmap.moving = True

    def _find(self) -> Iterator[_Moving]:
        mapping = {each["node-name"]: each for each in self._mapping or ()}
        for node in _candidates(self._layer):
            aliases: dict[str, dict[str, Any]] | None = None
            node_alias = self._layer.device_or_node_name(_top_filter(self._layer, node))
            if self._mapping is not None:
                if node.node_name not in mapping:
                    continue
                entry = mapping[node.node_name]
                node_alias = entry["alias"]
                aliases = {each["name"]: each for each in entry["bitmaps"]}
            for bitmap in node.bitmaps.values():
                name, persistent = bitmap.name or "", bitmap.persistent
                if bitmap.inconsistent:
                    raise QobraError(f"Bitmap '{name}' is inconsistent and cannot be used")
                alias = name
                if aliases is not None:
                    if name not in aliases:
                        continue
                    alias = aliases[name]["alias"]
                    persistent = aliases[name].get("transform", {}).get("persistent", persistent)
                elif node_alias.startswith("#"):
                    raise QobraError(
                        f"Bitmap '{name}' in a node with auto-generated name '{node_alias}' can't be migrated"
                    )
                if len(alias.encode("utf-8", "surrogateescape")) > _MAX_NAME:
                    raise QobraError(
                        f"Cannot migrate bitmap '{name}' on node '{node.node_name}': "
                        f"Name is longer than {_MAX_NAME} bytes"
                    )
                yield _Moving(bitmap, node_alias, alias, persistent)

    def freeze(self) -> None:
        """The guest stands still: nothing is noted any more."""
        for each in self._moving:
            each.enabled = each.bitmap.enabled

    def announce(self, out: StreamWriter) -> None:
        """Write which bitmaps there are: from when that has come, they note writes on the other side."""
        for each in self._moving:
            flags = (_ENABLED if each.enabled else 0) | (_PERSISTENT if each.persistent else 0)
            head = _head(_START, each)
            head += each.bitmap.granularity.to_bytes(4, "little") + bytes((flags,))
            out.record(BITMAPS, head)

    def send(self, out: StreamWriter, stop: Callable[[], None]) -> None:
        """Write the bits of each."""
        for each in self._moving:
            bitmap, span = each.bitmap, each.bitmap.granularity * 8 * _BITS_CHUNK
            for start, _length in self._spans(bitmap, span):
                stop()
                length = min(span, bitmap.length - start)
                out.record(BITMAPS, _head(_BITS, each), _SPAN.pack(start, 0), bitmap.to_bytes(start, length))
            out.record(BITMAPS, _head(_COMPLETE, each))

    @staticmethod
    def _spans(bitmap: DirtyBitmap, span: int) -> Iterator[tuple[int, int]]:
        position = 0
        while (position := bitmap.next_dirty(position)) < bitmap.length:
            start = position // span * span
            yield start, span
            position = start + span

    def end(self, *, moved: bool) -> None:
        """It is over. Bitmaps that moved are not stored in their images here, until the machine runs again."""
        for each in self._moving:
            each.bitmap.busy = False
            each.bitmap.moving = moved


def keep_bitmaps(layer: BlockLayer) -> None:
    """The machine goes on here: its bitmaps are its own again."""
    for node in layer.graph.nodes.values():
        for bitmap in node.bitmaps.values():
            bitmap.moving = False


def _candidates(layer: BlockLayer) -> Iterator[BlockNode]:
    """Nodes whose bitmaps move: all that have some but filters that a job put in."""
    for node in layer.graph.nodes.values():
        if any(bitmap.name for bitmap in node.bitmaps.values()):
            yield node


def _top_filter(layer: BlockLayer, node: BlockNode) -> BlockNode:
    """The topmost filter over ``node``: a drive's name is that of what lies under its filters."""
    while True:
        above = [parent for parent, _name in layer.graph.parents(node) if parent.is_filter]
        if layer.device_or_node_name(node) != node.node_name or len(above) != 1:
            return node
        if layer.device_or_node_name(above[0]) == above[0].node_name and not layer.graph.parents(above[0]):
            return node
        node = above[0]


def _head(kind: int, each: _Moving) -> bytearray:
    out = bytearray((kind,))
    put_text(out, each.node_alias)
    put_text(out, each.alias)
    return out


class BitmapReceiver:
    """Makes the bitmaps that come. One that has no place here, by name, is told of and dropped with all that follow."""

    def __init__(self, layer: BlockLayer, settings: Settings) -> None:
        self._layer = layer
        self._settings = settings
        self._made: dict[tuple[str, str], tuple[DirtyBitmap, bool]] = {}
        self._complete: set[tuple[str, str]] = set()
        self._room = MAX_BITS
        self._given_up = False

    @property
    def expects_more(self) -> bool:
        """Whether bitmaps were announced that are not complete."""
        return bool(self._made)

    def take(self, payload: bytes) -> None:
        """One record. In the strand. Raises QobraError for a record that is malformed."""
        if self._given_up:
            return
        source = StateSource(payload)
        kind, node_alias, alias = source.number(1), source.text(), source.text()
        if kind == _START:
            try:
                self._start(source, node_alias, alias)
            except QobraError as error:
                report_error(error)
                self.give_up()
            return
        if (node_alias, alias) in self._complete:
            return  # again, after a recovery
        if (node_alias, alias) not in self._made:
            raise QobraError(f"Error: unknown dirty bitmap '{visible(alias)}' for block device '{visible(node_alias)}'")
        bitmap, enabled = self._made[node_alias, alias]
        if kind == _BITS:
            self._load(source, bitmap)
        elif kind == _COMPLETE:
            bitmap.reclaim()
            if not enabled:
                bitmap.disable()
            del self._made[node_alias, alias]
            self._complete.add((node_alias, alias))
        else:
            raise QobraError(f"Unknown kind of a bitmap's record: {kind}")

    def _start(self, source: StateSource, node_alias: str, alias: str) -> None:
        if len(self._made) + len(self._complete) >= MAX_BITMAPS:
            raise QobraError(f"The stream has more than {MAX_BITMAPS} bitmaps")
        granularity, flags = source.number(4), source.number(1)
        persistent = bool(flags & _PERSISTENT)
        node_name, name = node_alias, alias
        mapping = self._settings.mapping
        if mapping is not None:
            entry = next((each for each in mapping if each["alias"] == node_alias), None)
            if entry is None:
                raise QobraError(f"Unknown node alias '{visible(node_alias)}'")
            node_name = entry["node-name"]
            found = next((each for each in entry["bitmaps"] if each["alias"] == alias), None)
            if found is None:
                raise QobraError(
                    f"Unknown bitmap alias '{visible(alias)}' on node '{node_name}' (alias '{visible(node_alias)}')"
                )
            name = found["name"]
            persistent = found.get("transform", {}).get("persistent", persistent)
            node = self._layer.graph.find(node_name)
            if node is None:
                raise QobraError(f"Cannot find device='{node_name}' nor node-name='{node_name}'")
        else:
            node = self._layer.find_device_or_node(node_name)
            while node.is_filter and node.filtered is not None:
                node = node.filtered
        if name in node.bitmaps:
            raise QobraError(f"Bitmap with the same name ('{name}') already exists on destination")
        bitmap = DirtyBitmap(node, name, granularity, enabled=True, persistent=persistent)
        self._room -= bitmap.length // granularity // 8
        if self._room < 0:
            bitmap.remove()
            raise QobraError(f"The bitmaps of the stream take more than {MAX_BITS} bytes")
        # What the guest writes from now on is recorded apart, and added to the bits once they are there.
        bitmap.freeze()
        self._made[node_alias, alias] = bitmap, bool(flags & _ENABLED)

    @staticmethod
    def _load(source: StateSource, bitmap: DirtyBitmap) -> None:
        start, _reserved = _SPAN.unpack(source.take(_SPAN.size))
        data = source.take(source.left)
        per_byte = bitmap.granularity * 8
        if start % per_byte or start + (len(data) - 1) * per_byte >= bitmap.length:
            raise QobraError("bits lie beyond the end of their bitmap")
        bitmap.load(start, data)

    def give_up(self) -> None:
        """Drop the bitmaps that are not complete."""
        self._given_up = True
        for bitmap, _enabled in self._made.values():
            bitmap.busy = False
            bitmap.remove()
        self._made.clear()
