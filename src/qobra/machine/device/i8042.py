"""The keyboard controller of PCs (i8042), with a keyboard and a mouse behind it."""

from __future__ import annotations

from collections import deque
from typing import Any

from qobra.errors import QobraError
from qobra.machine import scancodes
from qobra.machine.devices import registry
from qobra.machine.isa import IsaDevice
from qobra.machine.vmstate import Field, Flag, Maybe, Number, Together, VmState, flag, i64, listed, part, u8
from qobra.object.property import Bool, Int

_QUEUE_LIMIT = 256
_STATUS_FULL, _STATUS_SYSTEM, _STATUS_COMMAND, _STATUS_UNLOCKED, _STATUS_MOUSE = 0x01, 0x04, 0x08, 0x10, 0x20
_MODE_KEYBOARD_IRQ, _MODE_MOUSE_IRQ, _MODE_SYSTEM, _MODE_NO_KEYBOARD, _MODE_NO_MOUSE = 0x01, 0x02, 0x04, 0x10, 0x20
_OUT_RESET, _OUT_A20, _OUT_KEYBOARD_FULL, _OUT_MOUSE_FULL = 0x01, 0x02, 0x10, 0x20
_MODE_TRANSLATE = 0x40
_BUTTONS = {"left": 1, "right": 2, "middle": 4}
_WHEEL = {"wheel-up": -1, "wheel-down": 1}
_ACK, _RESEND, _SELF_TEST_PASSED = 0xFA, 0xFE, 0xAA
_LONGEST_REPLY = 5


class Ps2Device:
    """What keyboard and mouse have in common: a queue of bytes to the controller, commands with a parameter."""

    vmstate = VmState(
        listed("queue", kind=Number(1), maximum=_QUEUE_LIMIT + _LONGEST_REPLY),
        u8("_unread", maximum=_LONGEST_REPLY),
        Field("awaiting", Maybe(Number(1))),
    )

    def __init__(self) -> None:
        self.queue: deque[int] = deque()
        self._unread = 0
        """How many bytes of a reply are at the head of the queue."""
        self.awaiting: int | None = None

    def put(self, *values: int) -> None:
        """Queue bytes for the controller; what does not fit is lost."""
        if len(self.queue) + len(values) <= _QUEUE_LIMIT:
            self.queue.extend(values)

    def reply(self, *values: int) -> None:
        """Answer a command, ahead of what else is queued; nobody reads the answer to the one before any more."""
        for _ in range(min(self._unread, len(self.queue))):
            self.queue.popleft()
        self.queue.extendleft(reversed(values))
        self._unread = len(values)

    def take(self) -> int:
        """The next byte."""
        self._unread = max(0, self._unread - 1)
        return self.queue.popleft()

    def command(self, value: int) -> None:
        """A byte from the controller."""
        raise NotImplementedError

    def reset(self) -> None:
        """As after power-on."""
        self.queue.clear()
        self._unread = 0
        self.awaiting = None


class Keyboard(Ps2Device):
    """An MF2 keyboard. ``leds`` are scroll, num and caps lock from bit 0; ``code_set`` is what it sends."""

    input_name = "QEMU PS/2 Keyboard"
    accepts = frozenset(("key",))

    vmstate = VmState(flag("scanning"), u8("code_set", maximum=3), u8("leds"))

    def __init__(self, controller: I8042) -> None:
        super().__init__()
        self._controller = controller
        self.reset()

    def input_event(self, event: dict[str, Any]) -> None:
        """A key goes down or up."""
        key, down = event["data"]["key"], event["data"]["down"]
        qcode = key["data"] if key["type"] == "qcode" else scancodes.qcode_of(key["data"])
        if qcode is not None and self.scanning:
            # The controller translates set 2 to set 1 while the host wants it.
            plain = self.code_set == 1 or self._controller.translates
            self.put(*(scancodes.set1 if plain else scancodes.set2)(qcode, down))

    def input_sync(self) -> None:
        """Show what came."""
        self._controller.update()

    def reset(self) -> None:
        super().reset()
        self.scanning = True
        self.code_set = 2
        self.leds = 0

    def command(self, value: int) -> None:
        awaiting, self.awaiting = self.awaiting, None
        if awaiting == 0xED:
            self.leds = value & 7
            self.reply(_ACK)
        elif awaiting == 0xF0:
            if value == 0:
                self.reply(_ACK, self.code_set)
            elif value <= 3:
                self.code_set = value
                self.reply(_ACK)
            else:
                self.reply(_RESEND)
        elif awaiting == 0xF3:
            self.reply(_ACK)
        elif value == 0xEE:
            self.reply(0xEE)
        elif value == 0xF2:
            self.reply(_ACK, 0xAB, 0x83)
        elif value in (0xED, 0xF0, 0xF3):
            self.awaiting = value
            self.reply(_ACK)
        elif value == 0xF4:
            self.scanning = True
            self.reply(_ACK)
        elif value in (0xF5, 0xF6):
            self.reset()
            self.scanning = value == 0xF6
            self.reply(_ACK)
        elif value == 0xFF:
            self.reset()
            self.reply(_ACK, _SELF_TEST_PASSED)
        elif value == 0x00:
            self.reply(_ACK)
        else:
            self.reply(_RESEND)


class Mouse(Ps2Device):
    """A PS/2 mouse with a wheel (the IntelliMouse protocols)."""

    input_name = "QEMU PS/2 Mouse"
    accepts = frozenset(("btn", "rel"))

    vmstate = VmState(
        u8("_buttons", "kind", "rate", "resolution"),
        i64("_wheel"),
        flag("reporting", "remote", "wrap", "scaled"),
        listed("_rates", kind=Number(1), maximum=3),
    )

    def __init__(self, controller: I8042) -> None:
        super().__init__()
        self._controller = controller
        self._buttons = self._wheel = self.kind = 0
        self.reporting = self.remote = False
        self.reset()

    def input_event(self, event: dict[str, Any]) -> None:
        """Motion, or a button."""
        data = event["data"]
        if event["type"] == "rel":
            self._motion[data["axis"]] = self._motion.get(data["axis"], 0) + data["value"]
        elif data["button"] in _WHEEL:
            self._wheel += _WHEEL[data["button"]] if data["down"] else 0
        elif data["button"] in _BUTTONS:
            bit = _BUTTONS[data["button"]]
            self._buttons = self._buttons | bit if data["down"] else self._buttons & ~bit

    def input_sync(self) -> None:
        """Send what came as a packet, or several where it is more than one can tell."""
        if self.reporting and not self.remote:
            x, y = self._motion.get("x", 0), -self._motion.get("y", 0)
            while True:
                step_x, step_y = max(-127, min(127, x)), max(-127, min(127, y))
                x, y = x - step_x, y - step_y
                head = 0x08 | self._buttons & 7 | (0x10 if step_x < 0 else 0) | (0x20 if step_y < 0 else 0)
                packet = [head, step_x & 0xFF, step_y & 0xFF]
                if self.kind:
                    packet.append(max(-8, min(7, self._wheel)) & 0xFF)
                self.put(*packet)
                if not x and not y:
                    break
            self._controller.update()
        self._motion.clear()
        self._wheel = 0

    def reset(self) -> None:
        super().reset()
        self._motion: dict[str, int] = {}
        self._buttons = self._wheel = 0
        self.rate, self.resolution = 100, 2
        self.reporting = self.remote = self.wrap = self.scaled = False
        self.kind = 0
        self._rates: list[int] = []

    def command(self, value: int) -> None:
        awaiting, self.awaiting = self.awaiting, None
        if awaiting == 0xF3:
            self._set_rate(value)
            self.reply(_ACK)
        elif awaiting == 0xE8:
            self.resolution = value
            self.reply(_ACK)
        elif self.wrap and value not in (0xEC, 0xFF):
            self.reply(value)
        elif value in (0xF3, 0xE8):
            self.awaiting = value
            self.reply(_ACK)
        elif value == 0xF2:
            self.reply(_ACK, self.kind)
        elif value == 0xE9:
            status = int(self.scaled) << 4 | int(self.reporting) << 5 | int(self.remote) << 6
            self.reply(_ACK, status, self.resolution, self.rate)
        elif value == 0xEB:
            self.reply(_ACK, 0x08, 0, 0, *([0] if self.kind else []))
        elif value == 0xFF:
            self.reset()
            self.reply(_ACK, _SELF_TEST_PASSED, self.kind)
        elif value in (0xE6, 0xE7, 0xEA, 0xEC, 0xEE, 0xF0, 0xF4, 0xF5, 0xF6):
            self._set_mode(value)
            self.reply(_ACK)
        else:
            self.reply(_RESEND)

    def _set_mode(self, value: int) -> None:
        if value in (0xE6, 0xE7):
            self.scaled = value == 0xE7
        elif value in (0xEA, 0xF0):
            self.remote = value == 0xF0
        elif value in (0xEC, 0xEE):
            self.wrap = value == 0xEE
        elif value in (0xF4, 0xF5):
            self.reporting = value == 0xF4
        else:
            self.rate, self.resolution, self.reporting, self.remote = 100, 2, False, False

    def _set_rate(self, value: int) -> None:
        # Three rates in a row are the knock that asks for the wheel protocols.
        self.rate = value
        self._rates = [*self._rates[-2:], value]
        if self._rates == [200, 100, 80]:
            self.kind = 3
        elif self._rates == [200, 200, 80]:
            self.kind = 4


@registry.register("i8042")
class I8042(IsaDevice):
    """Data at port 0x60, commands and status at 0x64."""

    type_name = "i8042"
    interfaces = ("acpi-dev-aml-interface",)
    category = "Input"
    pluggable = False

    extended_state = Bool(True)
    kbd_irq = Int(1, type="uint8")
    mouse_irq = Int(12, type="uint8")

    vmstate = VmState(
        u8("_mode", "_status", "_output_port", "_last"),
        Field("_pending", Maybe(Number(1))),
        listed("_own", kind=Together(Number(1), Flag()), maximum=_QUEUE_LIMIT),
        part("keyboard", "mouse"),
    )

    def realize(self) -> None:
        self.map_ports(0x60, 1, self._read_data, self._write_data, name="i8042-data")
        self.map_ports(0x64, 1, self._read_status, self._write_command, name="i8042-cmd")
        self._lines = (self.line(self.kbd_irq), self.line(self.mouse_irq))
        (self.a20,) = self.add_outputs(1, "a20")
        self.keyboard, self.mouse = Keyboard(self), Mouse(self)
        self.board.input.add(self.keyboard)
        self.board.input.add(self.mouse)
        self.reset()

    def unrealize(self) -> None:
        self.board.input.remove(self.keyboard)
        self.board.input.remove(self.mouse)
        super().unrealize()

    @property
    def translates(self) -> bool:
        """Whether the host wants codes of set 1."""
        return bool(self._mode & _MODE_TRANSLATE)

    def reset(self) -> None:
        self._mode = _MODE_KEYBOARD_IRQ | _MODE_MOUSE_IRQ
        self._status = _STATUS_COMMAND | _STATUS_UNLOCKED
        self._output_port = _OUT_RESET | _OUT_A20
        self._pending: int | None = None
        self._own: deque[tuple[int, bool]] = deque()
        self._last = 0
        self.keyboard.reset()
        self.mouse.reset()
        self.update()

    def update(self) -> None:
        """Show what is queued: the output register's flags and the interrupt lines."""
        keyboard = mouse = False
        if self._own:
            mouse = self._own[0][1]
            keyboard = not mouse
        elif self.keyboard.queue and not self._mode & _MODE_NO_KEYBOARD:
            keyboard = True
        elif self.mouse.queue and not self._mode & _MODE_NO_MOUSE:
            mouse = True
        self._status &= ~(_STATUS_FULL | _STATUS_MOUSE)
        self._output_port &= ~(_OUT_KEYBOARD_FULL | _OUT_MOUSE_FULL)
        if keyboard or mouse:
            self._status |= _STATUS_FULL | (_STATUS_MOUSE if mouse else 0)
            self._output_port |= _OUT_MOUSE_FULL if mouse else _OUT_KEYBOARD_FULL
        self._lines[0].set(int(keyboard and bool(self._mode & _MODE_KEYBOARD_IRQ)))
        self._lines[1].set(int(mouse and bool(self._mode & _MODE_MOUSE_IRQ)))

    def _read_status(self, _offset: int, _width: int) -> int:
        return self._status

    def _read_data(self, _offset: int, _width: int) -> int:
        if self._status & _STATUS_FULL:
            if self._own:
                self._last = self._own.popleft()[0]
            elif self._status & _STATUS_MOUSE:
                self._last = self.mouse.take()
            else:
                self._last = self.keyboard.take()
            self.update()
        return self._last

    def _answer(self, value: int, *, mouse: bool = False) -> None:
        if len(self._own) < _QUEUE_LIMIT:
            self._own.append((value, mouse))
        self.update()

    def _write_command(self, _offset: int, _width: int, value: int) -> None:
        value &= 0xFF
        if value & 0xF0 == 0xF0:
            # Pulse output bits: low active, and the first one resets.
            if not value & 1:
                self.machine.run_state.request_reset("guest-reset")
            return
        if value in (0x60, 0xD1, 0xD2, 0xD3, 0xD4):
            self._pending = value
        elif value == 0x20:
            self._answer(self._mode)
        elif value == 0xA7:
            self._mode |= _MODE_NO_MOUSE
        elif value == 0xA8:
            self._mode &= ~_MODE_NO_MOUSE
        elif value == 0xA9:
            self._answer(0x00)
        elif value == 0xAA:
            self._status |= _STATUS_SYSTEM
            self._answer(0x55)
        elif value == 0xAB:
            self._answer(0x00)
        elif value == 0xAD:
            self._mode |= _MODE_NO_KEYBOARD
            self.update()
        elif value == 0xAE:
            self._mode &= ~_MODE_NO_KEYBOARD
            self.update()
        elif value == 0xC0:
            self._answer(0x80)
        elif value == 0xD0:
            self._answer(self._output_port)
        elif value in (0xDD, 0xDF):
            self._write_output_port(self._output_port & ~_OUT_A20 | (_OUT_A20 if value == 0xDF else 0))

    def _write_data(self, _offset: int, _width: int, value: int) -> None:
        value &= 0xFF
        pending, self._pending = self._pending, None
        if pending is None:
            self.keyboard.command(value)
            self._mode &= ~_MODE_NO_KEYBOARD
            self.update()
        elif pending == 0x60:
            self._mode = value
            self.update()
        elif pending == 0xD1:
            self._write_output_port(value)
        elif pending in (0xD2, 0xD3):
            self._answer(value, mouse=pending == 0xD3)
        else:
            self.mouse.command(value)
            self._mode &= ~_MODE_NO_MOUSE
            self.update()

    def _write_output_port(self, value: int) -> None:
        self._output_port = value
        self.a20.set(value >> 1 & 1)
        if not value & _OUT_RESET:
            self.machine.run_state.request_reset("guest-reset")

    def state_loaded(self) -> None:
        super().state_loaded()
        queue = self._own or (self.mouse if self._status & _STATUS_MOUSE else self.keyboard).queue
        if self._status & _STATUS_FULL and not queue:
            raise QobraError("the controller says that it has a byte, and there is none")
