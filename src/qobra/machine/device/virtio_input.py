"""virtio-input: keyboard, mouse and tablet (virtio 1.2, section 5.8)."""

from __future__ import annotations

from collections import deque
from struct import Struct
from typing import TYPE_CHECKING, Any, ClassVar

from qobra.machine import evdev, scancodes
from qobra.machine.devices import registry
from qobra.machine.input import display_console
from qobra.machine.virtio.device import VirtioDevice
from qobra.machine.virtio.pci import VirtioPci
from qobra.machine.virtio.queue import Queue
from qobra.machine.vmstate import Field, Number, Raw, Together, VmState, listed
from qobra.object.property import Int, String

if TYPE_CHECKING:
    from qobra.display.console import Console

_UNSET, _NAME, _SERIAL, _IDS, _PROPERTIES, _EVENTS, _ABSOLUTE = 0x00, 0x01, 0x02, 0x03, 0x10, 0x11, 0x12
_EVENT = Struct("<HHI")
_IDENTITY = Struct("<HHHH")
_RANGE = Struct("<5I")
_BUS_VIRTUAL, _VENDOR = 0x06, 0x0627
_ABS_MAX = 0x7FFF
_PAYLOAD = 128
_WAITING_LIMIT = 1024


class VirtioInput(VirtioDevice):
    """What the kinds have in common: the configuration that describes the device, and a queue of events."""

    type_name = "virtio-input-device"
    category = "Input"
    abstract = True
    device_number = 18
    config_size = 136

    serial = String(type="str")

    input_name: str = ""
    accepts: frozenset[str] = frozenset()
    product: ClassVar[int] = 0
    version: ClassVar[int] = 1
    capabilities: ClassVar[dict[int, tuple[int, ...]]] = {}
    """Codes by event type."""

    vmstate = VmState(
        Field("_selected", Together(Number(1), Number(1))),
        listed("_waiting", "_group", kind=Raw(_EVENT.size), maximum=_WAITING_LIMIT),
    )

    def realize(self) -> None:
        self.add_queue(64)
        self.add_queue(64)
        # As long as the longest of the answers.
        asked = [(_NAME, 0), (_SERIAL, 0), (_IDS, 0), *((_EVENTS, kind) for kind in self.capabilities)]
        asked += [(_ABSOLUTE, code) for code in self.capabilities.get(evdev.EV_ABS, ())]
        self.config_size = 8 + min(_PAYLOAD, max(len(self._describe(*each)) for each in asked))
        self._selected = (_UNSET, 0)
        self._waiting: deque[bytes] = deque()
        self._group: list[bytes] = []
        self.board.input.add(self, active=False, console=self.console())

    def console(self) -> Console | None:
        """The console whose users alone it listens to."""
        return None

    def unrealize(self) -> None:
        self.board.input.remove(self)
        self.queues.clear()

    def device_reset(self) -> None:
        self._selected = (_UNSET, 0)
        self._waiting.clear()
        self._group.clear()

    def running_changed(self) -> None:
        # A driver that is there makes the device the one that is used.
        self.board.input.activate(self, self.running)

    # -- configuration

    def read_config(self) -> bytes:
        kind, detail = self._selected
        body = self._describe(kind, detail)[:_PAYLOAD]
        return (bytes((kind, detail, len(body))) + bytes(5) + body).ljust(self.config_size, b"\0")

    def write_config(self, offset: int, data: bytes) -> None:
        chosen = bytearray(self._selected)
        for i, byte in enumerate(data, offset):
            if i < 2:
                chosen[i] = byte
        self._selected = (chosen[0], chosen[1])

    def _describe(self, kind: int, detail: int) -> bytes:
        if kind == _NAME:
            return self.input_name.encode() + b"\0"
        if kind == _SERIAL:
            return (self.serial or "").encode()
        if kind == _IDS:
            return _IDENTITY.pack(_BUS_VIRTUAL, _VENDOR, self.product, self.version)
        if kind == _EVENTS and detail in self.capabilities:
            codes = self.capabilities[detail]
            bits = bytearray(max(codes, default=0) // 8 + 1)
            for code in codes:
                bits[code // 8] |= 1 << code % 8
            return bytes(bits)
        if kind == _ABSOLUTE and detail in self.capabilities.get(evdev.EV_ABS, ()):
            return _RANGE.pack(0, _ABS_MAX, 0, 0, 0)
        return b""

    # -- events

    def emit(self, kind: int, code: int, value: int) -> None:
        """One event of the group that ends with the next sync."""
        self._group.append(_EVENT.pack(kind, code, value & 0xFFFFFFFF))

    def input_sync(self) -> None:
        """Send the group, or drop it as a whole where the driver has no room."""
        group, self._group = [*self._group, _EVENT.pack(evdev.EV_SYN, 0, 0)], []
        if not self.running or len(group) == 1 or len(self._waiting) + len(group) > _WAITING_LIMIT:
            return
        self._waiting.extend(group)
        self.deliver(self.queues[0], self._waiting)

    def kicked(self, queue: Queue) -> None:
        if queue.number == 0:
            self.deliver(queue, self._waiting)
            return
        # Lights: the driver's, nobody looks.
        for buffer in self.buffers(queue):
            self.push(queue, buffer, 0)
        self.notify(queue)

    def input_event(self, event: dict[str, Any]) -> None:
        """One InputEvent of the reference."""
        raise NotImplementedError

    def _button(self, data: dict[str, Any]) -> None:
        button = data["button"]
        if button in evdev.WHEEL_BUTTONS:
            step, code = evdev.WHEEL_BUTTONS[button]
            if data["down"]:
                self.emit(evdev.EV_REL, evdev.REL_WHEEL, step)
            else:
                self.emit(evdev.EV_KEY, code, 0)
        elif button in evdev.BUTTONS:
            self.emit(evdev.EV_KEY, evdev.BUTTONS[button], int(data["down"]))


class VirtioInputHid(VirtioInput):
    """A device that people use."""

    type_name = "virtio-input-hid-device"
    abstract = True

    display = String(type="str", description="The display device whose users it belongs to")
    head = Int(0, type="uint32", description="Which output of that device")

    def console(self) -> Console | None:
        return display_console(self.board, self.display, self.head)


@registry.register("virtio-keyboard-device")
class VirtioKeyboard(VirtioInputHid):
    """A keyboard."""

    type_name = "virtio-keyboard-device"
    input_name = "QEMU Virtio Keyboard"
    accepts = frozenset(("key",))
    product = 1
    capabilities = {evdev.EV_KEY: tuple(evdev.KEYS.values()), evdev.EV_REP: (), evdev.EV_LED: (0, 1, 2)}

    def input_event(self, event: dict[str, Any]) -> None:
        key, down = event["data"]["key"], event["data"]["down"]
        qcode = key["data"] if key["type"] == "qcode" else scancodes.qcode_of(key["data"])
        if qcode in evdev.KEYS:
            self.emit(evdev.EV_KEY, evdev.KEYS[qcode], int(down))


@registry.register("virtio-mouse-device")
class VirtioMouse(VirtioInputHid):
    """A mouse."""

    type_name = "virtio-mouse-device"
    input_name = "QEMU Virtio Mouse"
    accepts = frozenset(("btn", "rel"))
    product = 2
    version = 2
    capabilities = {
        evdev.EV_KEY: evdev.BUTTON_CODES,
        evdev.EV_REL: (evdev.REL_X, evdev.REL_Y, evdev.REL_WHEEL),
    }

    def input_event(self, event: dict[str, Any]) -> None:
        data = event["data"]
        if event["type"] == "btn":
            self._button(data)
        else:
            self.emit(evdev.EV_REL, evdev.REL_X if data["axis"] == "x" else evdev.REL_Y, data["value"])


@registry.register("virtio-tablet-device")
class VirtioTablet(VirtioInputHid):
    """A tablet: absolute positions from 0 to 0x7fff."""

    type_name = "virtio-tablet-device"
    input_name = "QEMU Virtio Tablet"
    accepts = frozenset(("btn", "abs"))
    product = 3
    version = 2
    capabilities = {
        evdev.EV_KEY: evdev.BUTTON_CODES,
        evdev.EV_REL: (evdev.REL_WHEEL,),
        evdev.EV_ABS: (evdev.ABS_X, evdev.ABS_Y),
    }

    def input_event(self, event: dict[str, Any]) -> None:
        data = event["data"]
        if event["type"] == "btn":
            self._button(data)
        else:
            value = max(0, min(_ABS_MAX, data["value"]))
            self.emit(evdev.EV_ABS, evdev.ABS_X if data["axis"] == "x" else evdev.ABS_Y, value)


class VirtioInputPci(VirtioPci):
    """virtio-input as a PCI function, which never had the interface of before 1.0."""

    type_name = "virtio-input-pci"
    abstract = True
    fixed_legacy = "on"
    backend_type = "virtio-keyboard-device"
    vectors = Int(2, type="uint32")
    ioeventfd: Any = None


class VirtioInputHidPci(VirtioInputPci):
    """A device that people use."""

    type_name = "virtio-input-hid-pci"
    abstract = True
    class_id = 0x0980


@registry.register("virtio-keyboard-pci")
class VirtioKeyboardPci(VirtioInputHidPci):
    """A keyboard."""

    type_name = "virtio-keyboard-pci"
    ancestors = {"virtio-keyboard-pci-base-type": ()}
    backend_type = "virtio-keyboard-device"
    class_id = 0x0900


@registry.register("virtio-mouse-pci")
class VirtioMousePci(VirtioInputHidPci):
    """A mouse."""

    type_name = "virtio-mouse-pci"
    ancestors = {"virtio-mouse-pci-base-type": ()}
    backend_type = "virtio-mouse-device"
    class_id = 0x0902


@registry.register("virtio-tablet-pci")
class VirtioTabletPci(VirtioInputHidPci):
    """A tablet."""

    type_name = "virtio-tablet-pci"
    ancestors = {"virtio-tablet-pci-base-type": ()}
    backend_type = "virtio-tablet-device"
