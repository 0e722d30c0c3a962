"""Consoles: the outputs of graphics devices, each with a picture and a pointer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from qobra.display.qom import show
from qobra.display.surface import Surface
from qobra.errors import DEVICE_NOT_FOUND, QobraError

if TYPE_CHECKING:
    from qobra.object.qom import Object
    from qobra.object.tree import ObjectTree

_FIRST_WIDTH, _FIRST_HEIGHT = 640, 480


class Cursor:
    """A pointer's picture: ``width`` x ``height`` pixels in ``data``, blue, green, red, opacity; and its hot spot."""

    __slots__ = ("data", "height", "hot_x", "hot_y", "width")

    def __init__(self, width: int, height: int, hot_x: int, hot_y: int, data: bytes) -> None:
        self.width = width
        self.height = height
        self.hot_x = hot_x
        self.hot_y = hot_y
        self.data = data


class Console:
    """Output ``head`` of ``device``. Viewers listen: ``resized()``, ``updated(x, y, width, height)``, ``moved()``."""

    def __init__(self, device: Any, head: int) -> None:
        self.device = device
        self.head = head
        self.surface = Surface.blank(_FIRST_WIDTH, _FIRST_HEIGHT)
        self.cursor: Cursor | None = None
        self.cursor_place = (0, 0)
        self.on_resized: list[Callable[[], None]] = []
        self.on_updated: list[Callable[[int, int, int, int], None]] = []
        self.on_cursor: list[Callable[[], None]] = []
        self.refresh: Callable[[], None] | None = None
        """Asks the device to bring its picture up to date, where it does not do so by itself."""

    def bring_up_to_date(self) -> None:
        """Somebody looks."""
        if self.refresh is not None:
            self.refresh()

    def show(self, surface: Surface) -> None:
        """The device shows another picture from now on."""
        self.surface = surface
        for listener in tuple(self.on_resized):
            listener()

    def blank(self) -> None:
        """The device shows nothing: black, as large as it was."""
        self.show(Surface.blank(self.surface.width, self.surface.height))

    def update(self, x: int, y: int, width: int, height: int) -> None:
        """The device drew inside that rectangle."""
        for listener in tuple(self.on_updated):
            listener(x, y, width, height)

    def define_cursor(self, cursor: Cursor | None) -> None:
        """The pointer looks like that from now on; None hides it."""
        self.cursor = cursor
        self._tell_cursor()

    def move_cursor(self, x: int, y: int) -> None:
        """The pointer is at ``x``, ``y``."""
        self.cursor_place = (x, y)
        self._tell_cursor()

    def _tell_cursor(self) -> None:
        for listener in tuple(self.on_cursor):
            listener()


class Consoles:
    """The consoles of one machine, in the order in which their devices came."""

    def __init__(self, tree: ObjectTree) -> None:
        self._tree = tree
        self._consoles: list[Console] = []
        self._shown: dict[Console, Object] = {}

    def add(self, device: Any, head: int = 0) -> Console:
        """A console for output ``head`` of ``device``."""
        console = Console(device, head)
        self._consoles.append(console)
        self._shown[console] = show(self._tree, console)
        return console

    def remove(self, device: Any) -> None:
        """``device`` is gone."""
        for console in [each for each in self._consoles if each.device is device]:
            self._consoles.remove(console)
            self._shown.pop(console).unparent()

    def __iter__(self) -> Iterator[Console]:
        return iter(tuple(self._consoles))

    def first(self) -> Console:
        """The console that is shown first. Raises QobraError where there is none."""
        if not self._consoles:
            raise QobraError("There is no console to take a screendump from")
        return self._consoles[0]

    def find(self, device: Any, head: int, id: str) -> Console:
        """Output ``head`` of ``device``, which the user calls ``id``. Raises QobraError."""
        if device is None:
            raise QobraError(f"Device '{id}' not found", DEVICE_NOT_FOUND)
        for console in self._consoles:
            if console.device is device and console.head == head:
                return console
        raise QobraError(f"Device {id} (head {head}) is not bound to a QemuConsole")
