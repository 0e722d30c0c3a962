"""``vc``: a text console of the machine, which displays can show in place of its graphics cards."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from qobra.chardev.chardev import Chardev, registry
from qobra.display import font
from qobra.display.text_console import COLUMNS, ROWS, SIDE_MAX, TextConsole
from qobra.errors import QobraError

if TYPE_CHECKING:
    from qobra.machine.machine import Machine

_TYPED_MAX = 256
"""Bytes that wait for a front end that takes none; what is typed beyond them is lost, as with a real keyboard."""
_TITLE = "\x1b[37;44m%s console\x1b[0m\r\n"


@registry.register("vc")
class VirtualConsole(Chardev):
    """A terminal of ``width`` x ``height`` pixels or ``cols`` x ``rows`` characters."""

    kind = "vc"
    needs_board = True

    def __init__(self, machine: Machine, id: str, options: dict[str, Any]) -> None:
        super().__init__(machine, id, options)
        self._console: TextConsole | None = None
        self._typed = bytearray()
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        board = self.machine.board
        if board is None:
            raise QobraError("'vc' is not a valid char driver name")
        width = self._side("width", "cols", font.WIDTH)
        height = self._side("height", "rows", font.HEIGHT)
        if not width or not height:
            width, height = COLUMNS * font.WIDTH, ROWS * font.HEIGHT
        self._console = TextConsole(board.consoles, width, height, self.type)
        self._console.write((_TITLE % self.id).encode())
        self.set_open(True)

    def _side(self, pixels: str, cells: str, cell: int) -> int:
        side: int = self.options.get(pixels) or self.options.get(cells, 0) * cell
        if not 0 <= side <= SIDE_MAX:
            raise QobraError(f"A console has at most {SIDE_MAX} x {SIDE_MAX} pixels")
        return side

    def stop(self) -> None:
        with self._wake:
            self._wake.notify()
        if self._console is not None:
            self._console.close()

    def transmit(self, data: bytes) -> int:
        if self._console is not None:
            self._console.write(data)
        return len(data)

    def type(self, data: bytes) -> None:
        """Somebody typed ``data``, or the terminal answers; does not wait."""
        with self._wake:
            if self.closed or len(self._typed) + len(data) > _TYPED_MAX:
                return
            self._typed += data
            if self._thread is None:
                self._thread = threading.Thread(target=self._hand_over, name=f"vc {self.id}", daemon=True)
                self._thread.start()
            self._wake.notify()

    def _hand_over(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self.closed or self._typed)
                if self.closed:
                    return
                data = bytes(self._typed)
                self._typed.clear()
            self.deliver(data)
