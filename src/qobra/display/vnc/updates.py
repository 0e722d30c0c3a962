"""What a client is to be shown, and how it is put into messages (RFC 6143, sections 7.6 and 7.7)."""

from __future__ import annotations

import threading
import zlib
from struct import Struct

from qobra.display.console import Console, Cursor
from qobra.display.surface import Surface
from qobra.display.vnc.audio import SOUND
from qobra.display.vnc.pixels import NATIVE, ClientFormat

RAW, ZLIB = 0, 6
DESKTOP_SIZE, RICH_CURSOR, POINTER_MOTION, EXTENDED_KEYS = -223, -239, -257, -258
_OPAQUE = 128
_UPDATE, _RECTANGLE = Struct(">BxH"), Struct(">4Hi")

Area = tuple[int, int, int, int]
"""Left, top, right and bottom edge; the latter two lie outside."""


class Updates:
    """What one client sees of ``console`` and what it has asked for.

    Devices draw at any time, in the control strand; what changed is gathered until the client wants to know.
    """

    def __init__(self, console: Console, *, sound: bool = False) -> None:
        """``sound``: there is some, for clients that know of it."""
        self._console = console
        self._sound = sound
        self._sound_is_news = False
        self.condition = threading.Condition()
        self.format = ClientFormat(NATIVE)
        self.encodings: list[int] = []
        self.absolute: bool | None = None
        """Whether the client was told that places count, and not motion; None: not told anything yet."""
        self._size = (console.surface.width, console.surface.height)
        self._changed: Area | None = None
        self._wanted: Area | None = None
        self._cursor_changed = False
        self._compressor: zlib._Compress | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height as the client knows them."""
        return self._size

    def listen(self) -> None:
        """Hear of what the console shows from now on."""
        self._console.on_updated.append(self._updated)
        self._console.on_resized.append(self._resized)
        self._console.on_cursor.append(self._moved)

    def leave(self) -> None:
        """Hear no more."""
        console = self._console
        if self._updated in console.on_updated:
            console.on_updated.remove(self._updated)
            console.on_resized.remove(self._resized)
            console.on_cursor.remove(self._moved)

    @property
    def console(self) -> Console:
        """What the client looks at."""
        return self._console

    def look_at(self, console: Console) -> None:
        """The client looks at ``console`` from now on. Call it in the control strand."""
        if console is self._console:
            return
        self.leave()
        console.bring_up_to_date()
        with self.condition:
            self._console = console
            self._cursor_changed = True
        self.listen()
        self._resized()

    def _updated(self, x: int, y: int, width: int, height: int) -> None:
        with self.condition:
            self._changed = _union(self._changed, (x, y, x + width, y + height))
            self.condition.notify()

    def _resized(self) -> None:
        surface = self._console.surface
        self._updated(0, 0, surface.width, surface.height)

    def _moved(self) -> None:
        with self.condition:
            self._cursor_changed = True
            self.condition.notify()

    @property
    def polls(self) -> bool:
        """Whether the client waits for what the device tells only if it is asked."""
        return self._wanted is not None and self._console.refresh is not None

    def refresh(self) -> None:
        """Have the device say what changed."""
        self._console.bring_up_to_date()

    def want(self, area: Area, *, incremental: bool) -> None:
        """The client asks for what changed in ``area``, or for all of it."""
        with self.condition:
            self._wanted = _union(self._wanted, area)
            if not incremental:
                self._changed = _union(self._changed, area)
            self.condition.notify()

    def accept(self, encodings: list[int]) -> None:
        """The client can read these, best first."""
        with self.condition:
            self.encodings = encodings
            self._cursor_changed = RICH_CURSOR in encodings
            self._sound_is_news = self._sound and SOUND in encodings
            if EXTENDED_KEYS in encodings or POINTER_MOTION in encodings:
                self.absolute = None
            self.condition.notify()

    def due(self, absolute: bool) -> bool:
        """Whether there is something to tell now. Call it with the condition held."""
        if self._wanted is None:
            return False
        news = self._cursor_changed or self._sound_is_news or self._news(absolute)
        return self._resized_for_it() or news or self._area() is not None

    def _resized_for_it(self) -> bool:
        surface = self._console.surface
        return self._size != (surface.width, surface.height) and DESKTOP_SIZE in self.encodings

    def _area(self) -> Area | None:
        """What changed where the client looks, as far as there is a picture."""
        surface = self._console.surface
        seen = (0, 0, min(surface.width, self._size[0]), min(surface.height, self._size[1]))
        return _common(_common(self._changed, self._wanted), seen)

    def _news(self, absolute: bool) -> bool:
        return self.absolute is not absolute and POINTER_MOTION in self.encodings

    def take(self, absolute: bool) -> bytes:
        """The message that tells it; empty where there is nothing that the client would understand."""
        with self.condition:
            surface = self._console.surface
            rectangles: list[bytes] = []
            if self._resized_for_it():
                self._size = (surface.width, surface.height)
                rectangles.append(_RECTANGLE.pack(0, 0, *self._size, DESKTOP_SIZE))
                self._wanted = self._changed = (0, 0, *self._size)
            area, cursor = self._area(), self._cursor_changed
            if self._changed is not None and _common(self._changed, self._wanted) == self._changed:
                self._changed = None
            self._cursor_changed = False
            if self._news(absolute):
                rectangles.append(_RECTANGLE.pack(int(absolute), 0, *self._size, POINTER_MOTION))
                if EXTENDED_KEYS in self.encodings:
                    rectangles.append(_RECTANGLE.pack(0, 0, *self._size, EXTENDED_KEYS))
                self.absolute = absolute
            if self._sound_is_news:
                rectangles.append(_RECTANGLE.pack(0, 0, *self._size, SOUND))
                self._sound_is_news = False
            if cursor and RICH_CURSOR in self.encodings and self._console.cursor is not None:
                rectangles.append(_cursor(self._console.cursor, self.format))
            if area is None and not rectangles:
                return b""
            self._wanted = None
            form = self.format
            encoding = next((each for each in self.encodings if each in (RAW, ZLIB)), RAW)
        if area is not None:
            rectangles.append(self._pixels(surface, form, area, encoding))
        return _UPDATE.pack(0, len(rectangles)) + b"".join(rectangles)

    def _pixels(self, surface: Surface, form: ClientFormat, area: Area, encoding: int) -> bytes:
        x, y, width, height = area[0], area[1], area[2] - area[0], area[3] - area[1]
        data = form.convert(surface, x, y, width, height)
        if encoding == ZLIB:
            if self._compressor is None:
                self._compressor = zlib.compressobj(1)
            packed = self._compressor.compress(data) + self._compressor.flush(zlib.Z_SYNC_FLUSH)
            data = len(packed).to_bytes(4, "big") + packed
        return _RECTANGLE.pack(x, y, width, height, encoding) + data


def _cursor(cursor: Cursor, form: ClientFormat) -> bytes:
    picture = Surface(cursor.width, cursor.height, bytearray(cursor.data))
    pixels = form.convert(picture, 0, 0, cursor.width, cursor.height)
    mask = bytearray()
    for row in range(cursor.height):
        opacity = cursor.data[4 * row * cursor.width + 3 : 4 * (row + 1) * cursor.width : 4]
        bits = "".join("1" if value >= _OPAQUE else "0" for value in opacity)
        length = -(-cursor.width // 8)
        mask += int(bits.ljust(8 * length, "0"), 2).to_bytes(length, "big")
    head = _RECTANGLE.pack(cursor.hot_x, cursor.hot_y, cursor.width, cursor.height, RICH_CURSOR)
    return head + pixels + bytes(mask)


def _union(one: Area | None, other: Area) -> Area:
    if one is None:
        return other
    return min(one[0], other[0]), min(one[1], other[1]), max(one[2], other[2]), max(one[3], other[3])


def _common(one: Area | None, other: Area | None) -> Area | None:
    if one is None or other is None:
        return None
    left, top, right, bottom = (
        max(one[0], other[0]),
        max(one[1], other[1]),
        min(one[2], other[2]),
        min(one[3], other[3]),
    )
    return (left, top, right, bottom) if left < right and top < bottom else None
