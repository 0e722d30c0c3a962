"""One client of a VNC server: its messages become input, what the console shows becomes updates."""

from __future__ import annotations

import threading
from collections.abc import Callable
from struct import Struct
from typing import TYPE_CHECKING, Any

from qobra.display.vnc.audio import Sound
from qobra.display.vnc.keysyms import QCODES, Typing
from qobra.display.vnc.pixels import NATIVE, ClientFormat
from qobra.display.vnc.updates import Updates
from qobra.display.vnc.wire import Gone, Wire, basic_info
from qobra.errors import QobraError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from qobra.audio.audiodev import Audiodev
    from qobra.display.console import Console

_SET_FORMAT, _SET_ENCODINGS, _WANT, _KEY, _POINTER, _CUT_TEXT, _QEMU = 0, 2, 3, 4, 5, 6, 255
_QEMU_KEY, _QEMU_SOUND = 0, 1
_FRAME_SECONDS = 1 / 30
_AREA = Struct(">4H")
_BUTTONS = ("left", "middle", "right", "wheel-up", "wheel-down", "wheel-left", "wheel-right")
_ABSOLUTE_MOST = 0x7FFF
_MOTION_CENTRE = 0x7FFF


class Input:
    """Where a client's input goes: ``deliver`` takes InputEvents; ``absolute`` says whether places count.

    ``select`` shows the console of a number, from 0 on.
    """

    def __init__(
        self,
        deliver: Callable[[list[dict[str, Any]]], None],
        absolute: Callable[[], bool],
        select: Callable[[int], None],
    ) -> None:
        self.deliver = deliver
        self.absolute = absolute
        self.select = select


class VncClient:
    """A connection, which a thread reads and another writes to once the client is let in."""

    def __init__(self, wire: Wire, input: Input, *, websocket: bool = False) -> None:
        self.wire = wire
        self.info = basic_info(wire.sock, wire.sock.getpeername(), websocket=websocket)
        self.shared = True
        self._input = input
        self._typing = Typing()
        self._updates: Updates | None = None
        self._sound: Sound | None = None
        self._closed = False
        self._held: dict[tuple[str, str | int], None] = {}
        """Keys that are down, by type and data of their KeyValue, in the order in which they went down."""
        self._buttons = 0
        self._place: tuple[int, int] | None = None

    def look_at(
        self, console: Console, strand: AbstractContextManager[Any], audiodev: Audiodev | None = None
    ) -> Updates:
        """What is drawn on ``console``, and played to ``audiodev``, is for the client from now on.

        Devices are only asked inside ``strand``.
        """
        self._strand = strand
        console.bring_up_to_date()
        self._updates = Updates(console, sound=audiodev is not None)
        self._sound = Sound(audiodev, self._updates.condition) if audiodev is not None else None
        self._updates.listen()
        return self._updates

    def serve(self, name: str) -> None:
        """Tell the client what it looks at, and do what it says until it leaves. Raises Gone."""
        updates = self._updates
        assert updates is not None
        text = name.encode()
        size = b"".join(number.to_bytes(2, "big") for number in updates.size)
        self.wire.send(size + NATIVE + len(text).to_bytes(4, "big") + text)
        threading.Thread(target=self._write, name="vnc updates", daemon=True).start()
        handlers: dict[int, Callable[[Updates], None]] = {
            _SET_FORMAT: self._set_format,
            _SET_ENCODINGS: self._set_encodings,
            _WANT: self._want,
            _KEY: self._key,
            _POINTER: self._pointer,
            _CUT_TEXT: self._cut_text,
            _QEMU: self._qemu,
        }
        while True:
            handler = handlers.get(self.wire.number(1))
            if handler is None:
                raise Gone
            handler(updates)

    def close(self) -> None:
        """Have both threads end."""
        self._closed = True
        self.wire.shutdown()
        if self._updates is not None:
            with self._updates.condition:
                self._updates.condition.notify()

    def leave(self) -> None:
        """See and hear no more, and hold no key down. Call it in the control strand."""
        self._release()
        if self._updates is not None:
            self._updates.leave()
        if self._sound is not None:
            self._sound.close()

    # -- what a client says

    def _set_format(self, updates: Updates) -> None:
        packed = self.wire.read(3 + len(NATIVE))[3:]
        try:
            form = ClientFormat(packed)
        except QobraError:
            raise Gone
        if form.mapped:
            self.wire.send(form.colour_map())
        with updates.condition:
            updates.format = form

    def _set_encodings(self, updates: Updates) -> None:
        self.wire.skip(1)
        count = self.wire.number(2)
        data = self.wire.read(4 * count)
        updates.accept([int.from_bytes(data[at : at + 4], "big", signed=True) for at in range(0, len(data), 4)])

    def _want(self, updates: Updates) -> None:
        incremental = self.wire.number(1) != 0
        x, y, width, height = _AREA.unpack(self.wire.read(_AREA.size))
        updates.want((x, y, x + width, y + height), incremental=incremental)

    def _key(self, updates: Updates) -> None:
        down = self.wire.number(1) != 0
        self.wire.skip(2)
        keysym = self.wire.number(4)
        name = QCODES.get(keysym)
        if not self._type(updates, keysym, down) and name is not None:
            self._press({"type": "qcode", "data": name}, down)

    def _qemu(self, updates: Updates) -> None:
        """Keys by their scan codes, and sound, in the extensions that QEMU's clients have for them."""
        kind = self.wire.number(1)
        if kind == _QEMU_SOUND and self._sound is not None:
            obey = self._sound.obey(self.wire)
            with self._strand:
                obey()
            return
        if kind != _QEMU_KEY:
            raise Gone
        down = self.wire.number(2) != 0
        keysym, code = self.wire.number(4), self.wire.number(4)
        if not self._type(updates, keysym, down) and 0 < code < 0x100:
            self._press({"type": "number", "data": code}, down)

    def _type(self, updates: Updates, keysym: int, down: bool) -> bool:
        """Whether the key is not for the guest: it chooses a console (Ctrl-Alt-1, ...), or a text is shown."""
        number = self._typing.press(keysym, down)
        typed = updates.console.typed
        if number is not None:
            if typed is None:  # the guest does not see the keys come up
                self._release()
            self._input.select(number)
            return True
        if typed is not None and down:
            typed(self._typing.text(keysym))
        return typed is not None

    def _release(self) -> None:
        for kind, data in tuple(self._held):
            self._press({"type": kind, "data": data}, False)

    def _press(self, key: dict[str, Any], down: bool) -> None:
        if down:
            self._held[key["type"], key["data"]] = None
        else:
            self._held.pop((key["type"], key["data"]), None)
        self._input.deliver([{"type": "key", "data": {"key": key, "down": down}}])

    def _pointer(self, updates: Updates) -> None:
        buttons, x, y = self.wire.number(1), self.wire.number(2), self.wire.number(2)
        events: list[dict[str, Any]] = []
        for number, name in enumerate(_BUTTONS):
            if (buttons ^ self._buttons) >> number & 1:
                events.append({"type": "btn", "data": {"button": name, "down": bool(buttons >> number & 1)}})
        self._buttons = buttons
        if updates.console.typed is not None:
            return
        for axis, place, before, size in zip("xy", (x, y), self._place or (x, y), updates.size, strict=True):
            if self._input.absolute():
                value = min(place * _ABSOLUTE_MOST // max(size - 1, 1), _ABSOLUTE_MOST)
                events.append({"type": "abs", "data": {"axis": axis, "value": value}})
                continue
            # A client that was told so sends motion, around a centre; any other places, which can only be compared.
            motion = place - (_MOTION_CENTRE if updates.absolute is False else before)
            if motion:
                events.append({"type": "rel", "data": {"axis": axis, "value": motion}})
        self._place = (x, y)
        self._input.deliver(events)

    def _cut_text(self, _updates: Updates) -> None:
        """The guest has no clipboard."""
        self.wire.skip(3)
        length = int.from_bytes(self.wire.read(4), "big", signed=True)
        self.wire.skip(abs(length))

    # -- what it is told

    def _has_something(self) -> bool:
        updates = self._updates
        assert updates is not None
        heard = self._sound is not None and self._sound.waits
        return self._closed or heard or updates.polls or updates.due(self._input.absolute())

    def _write(self) -> None:
        updates = self._updates
        assert updates is not None
        pause = threading.Event()
        while True:
            with updates.condition:
                updates.condition.wait_for(self._has_something)
            if self._closed:
                return
            if updates.polls:
                with self._strand:
                    updates.refresh()
            sound = self._sound.take() if self._sound is not None else b""
            try:
                self.wire.send(sound + updates.take(self._input.absolute()))
            except Gone:
                self.close()
                return
            pause.wait(_FRAME_SECONDS)
