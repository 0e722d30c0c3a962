"""Input: keys, buttons and motion on their way from users to the guest's devices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from qobra.errors import QobraError
from qobra.machine.key_queue import KeyQueue

if TYPE_CHECKING:
    from qobra.display.console import Console
    from qobra.machine.board import Board
    from qobra.machine.machine import Machine

_MILLISECOND = 1_000_000
DEFAULT_HOLD_MS = 100
LONGEST_HOLD_MS = 0xFFFFFFFF


class InputDevice(Protocol):
    """What takes input. ``accepts`` are kinds of InputEvent: ``key``, ``btn``, ``rel``, ``abs``."""

    input_name: str
    accepts: frozenset[str]

    def input_event(self, event: dict[str, Any]) -> None:
        """One InputEvent of the reference."""
        ...

    def input_sync(self) -> None:
        """The events that belong together are there."""
        ...


def display_console(board: Board, display: str | None, head: int) -> Console | None:
    """The console that an input device's ``display`` and ``head`` mean; None where there is no such one so far."""
    device = board.peripheral.children.get(display) if display else None
    return next((each for each in board.consoles if device and (each.device, each.head) == (device, head)), None)


class _Entry:
    """A device that takes part, under a number; ``console`` is the only one whose users it listens to, if not None."""

    __slots__ = ("console", "device", "number")

    def __init__(self, number: int, device: InputDevice, console: Console | None) -> None:
        self.number = number
        self.device = device
        self.console = console

    @property
    def is_pointer(self) -> bool:
        return bool(self.device.accepts & {"rel", "abs"})


class InputHub:
    """The input devices of a machine. The first active one that can takes an event.

    What is done at a console goes to the devices that belong to it, and only what they do not take to those that
    belong to none; what is done elsewhere goes to the latter alone.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._entries: list[_Entry] = []
        self._next = 1
        self._keys: KeyQueue | None = None

    def add(self, device: InputDevice, *, active: bool = True, console: Console | None = None) -> None:
        """Let ``device`` take part; before the others if it is ``active`` already; for ``console`` alone if given."""
        self._entries.append(_Entry(self._next, device, console))
        self._next += 1
        if active:
            self.activate(device, True)

    def activate(self, device: InputDevice, active: bool) -> None:
        """The guest uses ``device`` from now on, or no longer."""
        entry = next((each for each in self._entries if each.device is device), None)
        if entry is not None:
            self._entries.remove(entry)
            self._entries.insert(0 if active else len(self._entries), entry)

    def remove(self, device: InputDevice) -> None:
        """``device`` is gone."""
        self._entries = [entry for entry in self._entries if entry.device is not device]

    def send(self, events: list[dict[str, Any]], console: Console | None = None) -> None:
        """Deliver events that belong together, of ``console``. Raises QobraError where nothing takes them."""
        if not self._awake:
            raise QobraError("VM not running")
        for event in events:
            if self._find(event["type"], console) is None:
                raise QobraError(f"Input handler not found for event type {event['type']}")
        self.deliver(events, console)

    @property
    def _awake(self) -> bool:
        state = self._machine.run_state
        return state.running or state.state == "suspended"

    def deliver(self, events: list[dict[str, Any]], console: Console | None = None) -> None:
        """Deliver events of ``console``; what nothing takes, or a guest that does not run, is lost."""
        if not self._awake:
            return
        touched: list[InputDevice] = []
        for event in events:
            device = self._find(event["type"], console)
            if device is None:
                continue
            device.input_event(event)
            if device not in touched:
                touched.append(device)
        for device in touched:
            device.input_sync()

    def send_keys(self, keys: list[dict[str, Any]], hold_ms: int | None) -> None:
        """Press ``keys`` (KeyValue) one after the other, hold them, and let them go in reverse, once others are up."""
        if self._find("key") is None or not self._awake:
            return
        if self._keys is None:
            board = self._machine.board
            assert board is not None
            self._keys = KeyQueue(board, self.deliver)
        hold_ms = DEFAULT_HOLD_MS if hold_ms is None else min(max(0, hold_ms), LONGEST_HOLD_MS)
        self._keys.press(keys, hold_ms * _MILLISECOND)

    def choose(self, number: int) -> str | None:
        """Have the pointing device ``number`` of :meth:`mice` receive what it can; what is wrong if it cannot."""
        entry = next((each for each in self._entries if each.number == number), None)
        if entry is None:
            return f"Mouse at index '{number}' not found"
        if not entry.is_pointer:
            return f"Input device '{entry.device.input_name}' is not a mouse"
        self.activate(entry.device, True)
        return None

    def is_absolute(self, console: Console | None = None) -> bool:
        """Whether the device that pointers at ``console`` move takes places; otherwise it takes motion."""
        pointer = next((each for each in self._for(console) if each.is_pointer), None)
        return pointer is not None and "abs" in pointer.device.accepts

    def mice(self) -> list[dict[str, Any]]:
        """MouseInfo of the pointing devices."""
        listed = [
            {
                "name": each.device.input_name,
                "index": each.number,
                "current": i == 0,
                "absolute": "abs" in each.device.accepts,
            }
            for i, each in enumerate(each for each in self._entries if each.is_pointer)
        ]
        return listed[::-1]

    def _for(self, console: Console | None) -> list[_Entry]:
        own = [] if console is None else [each for each in self._entries if each.console is console]
        return own + [each for each in self._entries if each.console is None]

    def _find(self, kind: str, console: Console | None = None) -> InputDevice | None:
        return next((each.device for each in self._for(console) if kind in each.device.accepts), None)
