"""Consoles: the outputs of graphics devices, each with a picture and a pointer; and texts with a keyboard."""

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
    """Output ``head`` of ``device``, or a text of none.

    Viewers listen: ``resized()``, ``updated(x, y, width, height)``, ``moved()``.
    """

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
        self.typed: Callable[[bytes], None] | None = None
        """Takes what is typed at a text; what is typed at a device's picture is for the guest's keyboard."""

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
    """The consoles of one machine: those of devices in the order in which these came, then texts."""

    def __init__(self, tree: ObjectTree) -> None:
        self._tree = tree
        self._consoles: list[Console] = []
        self._texts: list[Console] = []
        self._shown: dict[Console, Object] = {}
        self._settled = False
        self._selected: Console | None = None
        self.on_selected: list[Callable[[], None]] = []
        """Called when another console is :meth:`active`."""

    def add(self, device: Any, head: int = 0) -> Console:
        """A console for output ``head`` of ``device``."""
        console = Console(device, head)
        self._consoles.append(console)
        self._shown[console] = show(self._tree, console)
        return console

    def add_text(self, typed: Callable[[bytes], None]) -> Console:
        """A console for a text, with what takes that which is typed there."""
        console = Console(None, 0)
        console.typed = typed
        self._texts.append(console)
        if self._settled:
            self._shown[console] = show(self._tree, console)
        return console

    def settle(self) -> None:
        """The board's own devices are there: texts have the numbers after theirs."""
        self._settled = True
        for console in self._texts:
            if console not in self._shown:
                self._shown[console] = show(self._tree, console)

    def remove(self, device: Any) -> None:
        """``device`` is gone."""
        for console in [each for each in self._consoles if each.device is device]:
            self._consoles.remove(console)
            self._shown.pop(console).unparent()

    def remove_text(self, console: Console) -> None:
        """The text is gone; who looks at it is shown another console."""
        self._texts.remove(console)
        if console in self._shown:
            self._shown.pop(console).unparent()
        if console is self._selected:
            self._selected = None
        self._tell_selected()

    def __iter__(self) -> Iterator[Console]:
        return iter((*self._consoles, *self._texts))

    def first(self) -> Console:
        """The console that is shown first. Raises QobraError where there is none."""
        for console in self:
            return console
        raise QobraError("There is no console to take a screendump from")

    def select(self, number: int) -> None:
        """Show the console of that number, from 0 on, to all who have not chosen one; no number without a console."""
        consoles = tuple(self)
        if number < len(consoles):
            self._selected = consoles[number]
            self._tell_selected()

    def active(self) -> Console | None:
        """The console that is shown to those who have not chosen one."""
        return self._selected if self._selected in (consoles := tuple(self)) else next(iter(consoles), None)

    def _tell_selected(self) -> None:
        for listener in tuple(self.on_selected):
            listener()

    def find(self, device: Any, head: int, id: str) -> Console:
        """Output ``head`` of ``device``, which the user calls ``id``. Raises QobraError."""
        if device is None:
            raise QobraError(f"Device '{id}' not found", DEVICE_NOT_FOUND)
        for console in self._consoles:
            if console.device is device and console.head == head:
                return console
        raise QobraError(f"Device {id} (head {head}) is not bound to a QemuConsole")
