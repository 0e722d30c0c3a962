"""``rng-egd``: random numbers from an entropy gathering daemon, behind a character device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qobra.errors import DEVICE_NOT_FOUND, QobraError
from qobra.lean import Condition
from qobra.machine.rng import RngBackend
from qobra.object.property import String
from qobra.object.types import registry

if TYPE_CHECKING:
    from collections.abc import Callable

    from qobra.chardev.chardev import Chardev

_GET_BLOCKING = 0x02  # EGD's command: so many bytes, when there are so many
_MAX_REQUEST = 255


@registry.register("rng-egd")
class RngEgd(RngBackend):
    """Asks for as much as is wanted, and waits until something is there."""

    type_name = "rng-egd"
    user_creatable = True
    required = ("chardev",)
    hotswap = False

    chardev = String()

    _device: Chardev | None = None

    def open(self) -> None:
        device: Chardev | None = self.machine.chardevs.find(self.chardev)
        if device is None:
            raise QobraError(f"Device '{self.chardev}' not found", DEVICE_NOT_FOUND)
        self._received = bytearray()
        self._asked = 0
        self._changed = Condition()
        device.attach(self)
        self._device = device

    def random(self, length: int, waits: Callable[[], bool]) -> bytes:
        with self._changed:
            self._ask(length)
            while self._device is not None and not self._received and waits():
                self._changed.wait()
                self._ask(length)
            data = bytes(self._received[:length])
            del self._received[:length]
        return data

    def _ask(self, length: int) -> None:
        device, before = self._device, self._asked
        while device is not None and (wanted := length - len(self._received) - self._asked) > 0:
            part = min(wanted, _MAX_REQUEST)
            if device.write(bytes((_GET_BLOCKING, part))) < 2:
                break
            self._asked += part
        if device is not None and self._asked > before:
            device.accept_input()

    def wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def finalize(self) -> None:
        device, self._device = self._device, None
        if device is not None:
            self.wake()
            device.detach()

    # -- as the device's front end

    def receive(self, data: bytes) -> None:
        """Entropy came in."""
        with self._changed:
            self._received += data
            self._asked -= len(data)
            self._changed.notify_all()

    def event(self, name: str) -> None:
        """A daemon answers only what it was asked itself."""
        if name in ("opened", "closed"):
            with self._changed:
                self._asked = 0
                self._changed.notify_all()

    def can_receive(self) -> int:
        """As much as was asked for."""
        return self._asked
