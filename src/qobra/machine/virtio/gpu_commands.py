"""The commands of virtio-gpu (virtio 1.2, section 5.7.6): resources, what backs them, and the outputs that show them.

A resource is a picture in the host's memory. The guest attaches pages of its own to it, transfers rectangles from
those, binds a part of it to an output, and says what was drawn (flush).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from itertools import accumulate
from struct import Struct, pack
from typing import TYPE_CHECKING, Any

from qobra.display.console import Console, Cursor
from qobra.display.edid import SIZE as EDID_SIZE
from qobra.display.edid import edid
from qobra.display.surface import BGRX, HEIGHT_MAX, WIDTH_MAX, PixelFormat, Surface
from qobra.errors import QobraError
from qobra.machine.memory import AddressSpace
from qobra.machine.vmstate import Field, Flag, Listed, Number, Raw, Together, VmState

if TYPE_CHECKING:
    from qobra.machine.vmstate import StateSource

_HEADER = Struct("<IIQIB3x")
_FENCE = 1
_OK, _OK_DISPLAY_INFO, _OK_EDID = 0x1100, 0x1101, 0x1104
_UNSPECIFIED, _OUT_OF_MEMORY, _BAD_SCANOUT, _BAD_RESOURCE, _BAD_PARAMETER = 0x1200, 0x1201, 0x1202, 0x1203, 0x1205

_CREATE, _TWO = Struct("<IIII"), Struct("<II")
_RECT = Struct("<IIII")
_TRANSFER = Struct("<IIIIQII")
_ENTRY = Struct("<QII")
_CURSOR_COMMAND = Struct("<IIIIIIII")
_UPDATE_CURSOR, _MOVE_CURSOR = 0x300, 0x301
_MAX_SCANOUTS = 16
_MAX_ENTRIES = 16384
_MIN_SCANOUT = 16
_CURSOR_SIDE = 64

_FORMATS = {
    1: BGRX,
    2: BGRX,
    3: PixelFormat(1, 2, 3),
    4: PixelFormat(1, 2, 3),
    67: PixelFormat(0, 1, 2),
    68: PixelFormat(3, 2, 1),
    121: PixelFormat(3, 2, 1),
    134: PixelFormat(0, 1, 2),
}


Rectangle = tuple[int, int, int, int]
"""Column, row, width and height."""


class _Refused(Exception):
    def __init__(self, status: int) -> None:
        self.status = status


class Resource:
    """A picture, and the guest memory that backs it, in pieces. ``format`` is the specification's number."""

    def __init__(self, width: int, height: int, format: int) -> None:
        self.width = width
        self.height = height
        self.format = format
        self.data = bytearray(4 * width * height)
        self.entries: list[tuple[int, int]] = []
        self.backing: list[memoryview] | None = None
        self._ends: list[int] = []

    def attach(self, memory: AddressSpace, entries: list[tuple[int, int]]) -> bool:
        """Have the guest's memory at these addresses, of these lengths, back the picture; False if it is no memory."""
        backing = [memory.ram(address, length) for address, length in entries]
        found = [view for view in backing if view is not None]
        if len(found) < len(backing):
            return False
        self.entries, self.backing = entries, found
        self._ends = list(accumulate(map(len, found)))
        return True

    def detach(self) -> None:
        """Nothing backs the picture any more."""
        self.entries, self.backing, self._ends = [], None, []

    def copy_in(self, offset: int, length: int, target: int) -> None:
        """Copy ``length`` bytes of the backing, from ``offset`` on, to ``target``; what is not backed stays."""
        number = bisect_right(self._ends, offset)
        pieces = self.backing or []
        while length and number < len(pieces):
            piece = pieces[number]
            start = offset - (self._ends[number] - len(piece))
            part = piece[start : start + length]
            self.data[target : target + len(part)] = part
            target, offset, length = target + len(part), offset + len(part), length - len(part)
            number += 1


SavedResource = tuple[int, int, int, int, bytes, bool, list[tuple[int, int]]]
"""Number, width, height, format, pixels, whether it is backed, and by what."""


class _Entries(Listed):
    """A list of addresses with lengths."""

    def take(self, source: StateSource, current: Any) -> Any:
        return super().take(source, [])


_RESOURCE_STATE = Together(
    Number(4), Number(4), Number(4), Number(4), Raw(4 * WIDTH_MAX * HEIGHT_MAX), Flag(),
    _Entries(Together(Number(8), Number(4)), _MAX_ENTRIES),
)  # fmt: skip


class GpuCommands:
    """The state behind the two queues of one card. ``sizes`` are those that its outputs would like to have."""

    vmstate = VmState(
        Field(
            "resources",
            _Entries(_RESOURCE_STATE, 1 << 16),
            get=lambda self: self.saved_resources(),
            put=lambda self, saved: self.restore_resources(saved),
        ),
        Field(
            "outputs",
            _Entries(Together(*(Number(4) for _ in range(6))), _MAX_SCANOUTS),
            get=lambda self: self.saved_outputs(),
            put=lambda self, saved: self.restore_outputs(saved),
        ),
    )

    def __init__(
        self, memory: AddressSpace, consoles: list[Console], *, memory_limit: int, size: tuple[int, int]
    ) -> None:
        self._memory = memory
        self.consoles = consoles
        self._limit = memory_limit
        self._used = 0
        self._resources: dict[int, Resource] = {}
        self._shown: dict[int, tuple[int, Rectangle]] = {}
        self.sizes: list[tuple[int, int] | None] = [size] + [None] * (len(consoles) - 1)
        self._preferred = size
        self.driven = False
        """Whether a driver has shown a picture since the reset."""
        self._handlers: dict[int, Callable[[bytes], bytes]] = {
            0x100: self._display_info,
            0x101: self._create,
            0x102: self._unref,
            0x103: self._set_scanout,
            0x104: self._flush,
            0x105: self._transfer,
            0x106: self._attach,
            0x107: self._detach,
            0x10A: self._edid,
            0x10C: self._without_blobs,
            0x10D: self._without_blobs,
        }

    def reset(self) -> None:
        """Drop every resource; the outputs go dark."""
        for head in list(self._shown):
            self._hide(head)
        self._resources.clear()
        self._used = 0
        self.driven = False

    # -- state

    def saved_resources(self) -> list[SavedResource]:
        """The resources, for the state that is saved."""
        return [
            (number, each.width, each.height, each.format, bytes(each.data), each.backing is not None, each.entries)
            for number, each in self._resources.items()
        ]

    def restore_resources(self, saved: list[SavedResource]) -> None:
        """Have those resources. Raises QobraError for such as no driver could have made."""
        self.reset()
        for number, width, height, format, data, backed, entries in saved:
            body = _CREATE.pack(number, format, width, height)
            try:
                self._create(body)
            except _Refused as refusal:
                raise QobraError(f"a resource could not be made: {refusal.status:#x}")
            resource = self._resources[number]
            if len(data) != len(resource.data):
                raise QobraError("a resource has the wrong size")
            resource.data[:] = data
            if backed and not resource.attach(self._memory, entries):
                raise QobraError("what backs a resource is no memory")

    def saved_outputs(self) -> list[tuple[int, int, int, int, int, int]]:
        """What the outputs show: head, resource, rectangle."""
        return [(head, number, *rectangle) for head, (number, rectangle) in self._shown.items()]

    def restore_outputs(self, saved: list[tuple[int, int, int, int, int, int]]) -> None:
        """Have the outputs show that. Raises QobraError."""
        for head, number, *rectangle in saved:
            try:
                self._set_scanout(pack("<6I", *rectangle, head, number))
            except _Refused as refusal:
                raise QobraError(f"an output cannot show what it showed: {refusal.status:#x}")

    # -- control queue

    def control(self, request: bytes) -> bytes:
        """Carry out a command; the response."""
        kind, flags, fence, context, _ring = _HEADER.unpack_from(request.ljust(_HEADER.size, b"\0"))
        handler = self._handlers.get(kind)
        status, answer = _UNSPECIFIED, b""
        if handler is not None and len(request) >= _HEADER.size:
            try:
                answer = handler(request[_HEADER.size :])
                status = {0x100: _OK_DISPLAY_INFO, 0x10A: _OK_EDID}.get(kind, _OK)
            except _Refused as refusal:
                status = refusal.status
        if not flags & _FENCE:
            return _HEADER.pack(status, 0, 0, 0, 0) + answer
        return _HEADER.pack(status, _FENCE, fence, context, 0) + answer

    def _display_info(self, _body: bytes) -> bytes:
        modes = b""
        for size in self.sizes:
            width, height = size or (0, 0)
            modes += _RECT.pack(0, 0, width, height) + _TWO.pack(int(size is not None), 0)
        return modes.ljust(24 * _MAX_SCANOUTS, b"\0")

    def _edid(self, body: bytes) -> bytes:
        scanout, _ = _unpack(_TWO, body)
        if scanout >= len(self.consoles):
            raise _Refused(_BAD_PARAMETER)
        width, height = self.sizes[scanout] or self._preferred
        return _TWO.pack(EDID_SIZE, 0) + edid(width, height)

    def _create(self, body: bytes) -> bytes:
        number, format, width, height = _unpack(_CREATE, body)
        if number == 0 or number in self._resources:
            raise _Refused(_BAD_RESOURCE)
        if format not in _FORMATS:
            raise _Refused(_BAD_PARAMETER)
        size = 4 * width * height
        if self._used + size > self._limit or width > WIDTH_MAX or height > HEIGHT_MAX:
            raise _Refused(_OUT_OF_MEMORY)
        self._used += size
        self._resources[number] = Resource(width, height, format)
        return b""

    def _unref(self, body: bytes) -> bytes:
        number, _ = _unpack(_TWO, body)
        resource = self._find(number)
        for head, (shown, _) in list(self._shown.items()):
            if shown == number:
                self._hide(head)
        self._used -= len(resource.data)
        del self._resources[number]
        return b""

    def _attach(self, body: bytes) -> bytes:
        number, count = _unpack(_TWO, body)
        resource = self._find(number)
        entries = body[_TWO.size :]
        if resource.backing is not None or count > _MAX_ENTRIES or len(entries) < count * _ENTRY.size:
            raise _Refused(_UNSPECIFIED)
        pieces = [(address, length) for address, length, _ in _ENTRY.iter_unpack(entries[: count * _ENTRY.size])]
        if not resource.attach(self._memory, pieces):
            raise _Refused(_UNSPECIFIED)
        return b""

    def _detach(self, body: bytes) -> bytes:
        number, _ = _unpack(_TWO, body)
        self._find_backed(number).detach()
        return b""

    def _transfer(self, body: bytes) -> bytes:
        x, y, width, height, offset, number, _ = _unpack(_TRANSFER, body)
        resource = self._find_backed(number)
        _check_inside(resource, x, y, width, height)
        stride = 4 * resource.width
        if (x, width) == (0, resource.width):
            # Whole rows lie one after the other on both sides.
            resource.copy_in(offset, stride * height, y * stride)
            return b""
        for row in range(height):
            resource.copy_in(offset + stride * row, 4 * width, (y + row) * stride + 4 * x)
        return b""

    def _set_scanout(self, body: bytes) -> bytes:
        x, y, width, height, head, number = _unpack(Struct("<IIIIII"), body)
        if head >= len(self.consoles):
            raise _Refused(_BAD_SCANOUT)
        if number == 0:
            self._hide(head)
            return b""
        resource = self._find(number)
        if width < _MIN_SCANOUT or height < _MIN_SCANOUT:
            raise _Refused(_BAD_PARAMETER)
        _check_inside(resource, x, y, width, height)
        self._show(head, number, (x, y, width, height))
        self.driven = True
        return b""

    def _flush(self, body: bytes) -> bytes:
        x, y, width, height, number, _ = _unpack(Struct("<IIIIII"), body)
        _check_inside(self._find(number), x, y, width, height)
        for head, (shown, _) in self._shown.items():
            if shown == number:
                self.consoles[head].update(x, y, width, height)
        return b""

    def _without_blobs(self, _body: bytes) -> bytes:
        raise _Refused(_BAD_PARAMETER)

    def _find(self, number: int) -> Resource:
        resource = self._resources.get(number)
        if resource is None:
            raise _Refused(_BAD_RESOURCE)
        return resource

    def _find_backed(self, number: int) -> Resource:
        resource = self._find(number)
        if resource.backing is None:
            raise _Refused(_UNSPECIFIED)
        return resource

    def _show(self, head: int, number: int, rectangle: Rectangle) -> None:
        resource, (x, y, width, height) = self._resources[number], rectangle
        stride, format = 4 * resource.width, _FORMATS[resource.format]
        self._shown[head] = (number, rectangle)
        self.consoles[head].show(
            Surface(width, height, resource.data, format=format, offset=y * stride + 4 * x, stride=stride)
        )

    def _hide(self, head: int) -> None:
        if self._shown.pop(head, None) is not None:
            self.consoles[head].blank()

    # -- cursor queue

    def cursor(self, request: bytes) -> None:
        """Change the pointer's place or picture; nobody is answered."""
        if len(request) < _HEADER.size + _CURSOR_COMMAND.size:
            return
        kind = _HEADER.unpack_from(request)[0]
        head, x, y, _, number, hot_x, hot_y, _ = _CURSOR_COMMAND.unpack_from(request, _HEADER.size)
        if head >= len(self.consoles) or kind not in (_UPDATE_CURSOR, _MOVE_CURSOR):
            return
        console = self.consoles[head]
        if kind == _UPDATE_CURSOR:
            resource = self._resources.get(number)
            if number == 0:
                console.define_cursor(None)
            elif resource is not None and (resource.width, resource.height) == (_CURSOR_SIDE, _CURSOR_SIDE):
                console.define_cursor(Cursor(_CURSOR_SIDE, _CURSOR_SIDE, hot_x, hot_y, bytes(resource.data)))
        console.move_cursor(x, y)


def _unpack(layout: Struct, body: bytes) -> tuple[int, ...]:
    if len(body) < layout.size:
        raise _Refused(_UNSPECIFIED)
    return layout.unpack_from(body)


def _check_inside(resource: Resource, x: int, y: int, width: int, height: int) -> None:
    if x + width > resource.width or y + height > resource.height:
        raise _Refused(_BAD_PARAMETER)
