"""What USB mice and tablets have in common: buttons, two axes, a wheel."""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Any

from qobra.machine.usb.hid import UsbHid
from qobra.machine.vmstate import VmState, u8

if TYPE_CHECKING:
    from qobra.object.tree import ObjectTree

_BUTTONS = {"left": 0x01, "right": 0x02, "middle": 0x04, "side": 0x08, "extra": 0x10}
_WHEEL = {"wheel-up": 1, "wheel-down": -1}
_STATE = Struct("<BhhbH")
"""Buttons, x, y, wheel: how things stand, or for what is relative how far they moved."""
_STEP, _FAR = 127, 0x7FFF


class UsbPointer(UsbHid):
    """A pointing device. ``absolute``: the axes are a place, not a movement."""

    abstract = True
    absolute = False

    vmstate = VmState(u8("_buttons"), partial=True)

    def __init__(self, tree: ObjectTree) -> None:
        super().__init__(tree)
        self._buttons = 0
        self._x = self._y = self._wheel = 0

    def device_reset(self) -> None:
        super().device_reset()
        self._buttons = self._x = self._y = self._wheel = 0

    def input_event(self, event: dict[str, Any]) -> None:
        data = event["data"]
        if event["type"] == "btn":
            if data["button"] in _WHEEL:
                self._wheel += _WHEEL[data["button"]] if data["down"] else 0
            else:
                bit = _BUTTONS.get(data["button"], 0)
                self._buttons = self._buttons | bit if data["down"] else self._buttons & ~bit
            return
        name = "_x" if data["axis"] == "x" else "_y"
        value = data["value"] if self.absolute else getattr(self, name) + data["value"]
        setattr(self, name, max(0 if self.absolute else -_FAR, min(_FAR, value)))

    def input_sync(self) -> None:
        x, y, wheel = self._x, self._y, max(-_STEP, min(_STEP, self._wheel))
        self._wheel = 0
        if not self.absolute:
            self._x = self._y = 0
        if self._waiting:
            buttons, old_x, old_y, old_wheel, _ = _STATE.unpack(self._waiting[-1])
            if buttons == self._buttons:
                # Movements add up while the host does not look.
                self._waiting.pop()
                wheel = max(-_STEP, min(_STEP, old_wheel + wheel))
                if not self.absolute:
                    x, y = (max(-_FAR, min(_FAR, old + new)) for old, new in ((old_x, x), (old_y, y)))
        self.enqueue(_STATE.pack(self._buttons, x, y, wheel, 0))

    def endpoint_in(self, endpoint: int, room: int) -> bytes:
        self.board.input.activate(self, True)  # somebody looks
        return super().endpoint_in(endpoint, room)

    def next_report(self) -> bytes:
        if not self._waiting:
            return self._report(self._buttons, self._x if self.absolute else 0, self._y if self.absolute else 0, 0)
        buttons, x, y, wheel, _ = _STATE.unpack(self._waiting.popleft())
        if not self.absolute:
            step_x, step_y = (max(-_STEP, min(_STEP, axis)) for axis in (x, y))
            if (step_x, step_y) != (x, y):
                self._waiting.appendleft(_STATE.pack(buttons, x - step_x, y - step_y, 0, 0))
            x, y = step_x, step_y
        return self._report(buttons, x, y, wheel)

    def _report(self, buttons: int, x: int, y: int, wheel: int) -> bytes:
        if self.absolute:
            return bytes((buttons, x & 0xFF, x >> 8, y & 0xFF, y >> 8, wheel & 0xFF))
        return bytes((buttons, x & 0xFF, y & 0xFF, wheel & 0xFF))
