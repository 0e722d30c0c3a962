"""One picture as bands: strips of lines, each made from a key, so that what did not change is not drawn again."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any

from qobra.display.surface import HEIGHT_MAX, WIDTH_MAX, Surface

if TYPE_CHECKING:
    from qobra.display.console import Console


class Frame:
    """``width`` x ``height`` pixels in bands of ``band_height`` lines, of which the last may be cut off.

    ``look`` is all else that the picture depends on (colours, fonts); ``draw(key)`` gives the lines of a band as
    pixels of four bytes, blue, green, red.
    """

    __slots__ = ("band_height", "bands", "draw", "height", "look", "width")

    def __init__(
        self,
        width: int,
        height: int,
        bands: Sequence[Any],
        draw: Callable[[Any], bytes],
        *,
        look: Hashable,
        band_height: int = 1,
    ) -> None:
        self.width = width
        self.height = height
        self.bands = bands
        self.draw = draw
        self.look = look
        self.band_height = band_height


class Painter:
    """Keeps a console's picture up to date with the frames that it is given."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._surface: Surface | None = None
        self._frame: Frame | None = None

    def darken(self) -> None:
        """Show nothing, as large as before."""
        if self._frame is not None:
            self._surface = self._frame = None
            self._console.blank()

    def paint(self, frame: Frame) -> None:
        """Show ``frame``: draw the bands that differ from the last one's."""
        if not (0 < frame.width <= WIDTH_MAX and 0 < frame.height <= HEIGHT_MAX):
            return
        before, surface = self._frame, self._surface
        self._frame = frame
        if surface is None or (surface.width, surface.height) != (frame.width, frame.height):
            before, surface = None, Surface.blank(frame.width, frame.height)
            self._surface = surface
        elif before is not None and before.look != frame.look:
            before = None
        changed = self._draw(surface, frame, before.bands if before is not None else ())
        if self._console.surface is not surface:
            self._console.show(surface)
        elif changed is not None:
            first, last = changed
            self._console.update(0, first, frame.width, last - first)

    @staticmethod
    def _draw(surface: Surface, frame: Frame, before: Sequence[Any]) -> tuple[int, int] | None:
        """Draw what changed; first line and end of it."""
        drawn: dict[Any, bytes] = {}
        length, first, last = frame.band_height * surface.stride, -1, -1
        bands = frame.bands
        if len(before) != len(bands):
            before = (None,) * len(bands)
        elif before == bands:
            return None
        for number, key in enumerate(bands):
            if key == before[number]:
                continue
            pixels = drawn.get(key)
            if pixels is None:
                pixels = drawn[key] = frame.draw(key)
            start = number * length
            end = min(start + length, len(surface.data))
            surface.data[start:end] = pixels if len(pixels) == end - start else pixels[: end - start]
            first = number if first < 0 else first
            last = number + 1
        return (first * frame.band_height, min(last * frame.band_height, frame.height)) if first >= 0 else None
