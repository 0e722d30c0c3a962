"""The guest's sound for a VNC client (the RFB protocol as the TigerVNC project keeps it, "QEMU Audio")."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Callable
from typing import TYPE_CHECKING

from qobra.audio.mixing import Mixing
from qobra.audio.sound import Form, from_stereo
from qobra.display.vnc.wire import Gone, Wire

if TYPE_CHECKING:
    from qobra.audio.audiodev import Audiodev

MESSAGE, SOUND = b"\xff\1", -259
"""How messages of sound begin; the encoding by which a client says that it knows them."""
_ENABLE, _DISABLE, _FORM = 0, 1, 2
_END, _BEGIN, _DATA = (MESSAGE + number.to_bytes(2, "big") for number in range(3))
_BITS = {0: 8, 1: 8, 2: 16, 3: 16, 4: 32, 5: 32}
_NATIVE = (0, 3, 5)
"""Of the formats (unsigned and signed ones of 8, 16 and 32 bits in turn) those that samples have here."""
_MOST_RATE = 48000
_MOST_WAITING = 1 << 18
"""How many bytes wait for a client; what is played meanwhile is lost to it."""


class Sound:
    """What one client hears of a backend. ``condition`` is notified when there is something to send."""

    def __init__(self, backend: Audiodev, condition: threading.Condition) -> None:
        self._backend = backend
        self._condition = condition
        self._format = 3
        self._form = Form(44100, 2, 16)
        self._mixing: Mixing | None = None
        self._waiting = bytearray()
        self._begun = False
        """Whether the client is told, or will be, that sound has begun."""

    def obey(self, wire: Wire) -> Callable[[], None]:
        """Read what the client asks for; what is returned does it, in the control strand. Raises Gone."""
        request = wire.number(2)
        if request == _FORM:
            kind, channels, rate = wire.number(1), wire.number(1), wire.number(4)
            if kind not in _BITS or channels not in (1, 2) or not 0 < rate <= _MOST_RATE:
                raise Gone
            return lambda: self._choose(kind, Form(rate, channels, _BITS[kind]))
        if request not in (_ENABLE, _DISABLE):
            raise Gone
        return self._listen if request == _ENABLE else self.close

    def _choose(self, kind: int, form: Form) -> None:
        listens = self._mixing is not None
        self.close()
        self._format, self._form = kind, form
        if listens:
            self._listen()

    def _listen(self) -> None:
        if self._mixing is None:
            self._mixing = Mixing(self._form.rate, self._put)
            self._backend.listeners.append(self)

    def close(self) -> None:
        """Hear no more. Call it in the control strand."""
        if self._mixing is not None:
            self._end()
            self._mixing = None
            self._backend.listeners.remove(self)

    # -- what is played

    def play(self, who: object, data: bytes, form: Form, volumes: tuple[float, float]) -> None:
        """A voice plays."""
        if self._mixing is not None:
            self._begin()
            self._mixing.play(who, data, form, volumes)

    def pause(self, who: object) -> None:
        """It does not."""
        if self._mixing is not None and not self._mixing.idle:
            self._mixing.pause(who)
            if self._mixing.idle:
                self._end()

    def _put(self, frames: array[int]) -> None:
        data = from_stereo(frames, self._form)
        if self._format not in _NATIVE:
            size = self._form.bits // 8
            turned = bytearray(data)
            for at in range(size - 1, len(turned), size):
                turned[at] ^= 0x80
            data = bytes(turned)
        if self._begun and len(self._waiting) + len(data) <= _MOST_WAITING:
            self._send(_DATA + len(data).to_bytes(4, "big") + data)

    def _begin(self) -> None:
        # Not while too much waits: a guest may begin and end as often as it likes.
        if not self._begun and len(self._waiting) <= _MOST_WAITING:
            self._begun = True
            self._send(_BEGIN)

    def _end(self) -> None:
        if self._begun:
            self._begun = False
            self._send(_END)

    def _send(self, message: bytes) -> None:
        with self._condition:
            self._waiting += message
            self._condition.notify()

    @property
    def waits(self) -> bool:
        """Whether there is something to send."""
        return bool(self._waiting)

    def take(self) -> bytes:
        """What there is to send, which is then sent."""
        with self._condition:
            data, self._waiting = bytes(self._waiting), bytearray()
            return data
