"""Input: keys, buttons and motion on their way from users to the guest's devices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from qobra.errors import QobraError

if TYPE_CHECKING:
    from qobra.machine.machine import Machine

_MILLISECOND = 1_000_000
DEFAULT_HOLD_MS = 100


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


class InputHub:
    """The input devices of a machine. The first active one that can takes an event."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._devices: list[tuple[int, InputDevice]] = []
        self._next = 1

    def add(self, device: InputDevice, *, active: bool = True) -> None:
        """Let ``device`` take part; before the others if it is ``active`` already."""
        self._devices.append((self._next, device))
        self._next += 1
        if active:
            self.activate(device, True)

    def activate(self, device: InputDevice, active: bool) -> None:
        """The guest uses ``device`` from now on, or no longer."""
        entry = next((each for each in self._devices if each[1] is device), None)
        if entry is not None:
            self._devices.remove(entry)
            self._devices.insert(0 if active else len(self._devices), entry)

    def remove(self, device: InputDevice) -> None:
        """``device`` is gone."""
        self._devices = [entry for entry in self._devices if entry[1] is not device]

    def send(self, events: list[dict[str, Any]]) -> None:
        """Deliver events that belong together. Raises QobraError where nothing takes them."""
        if not self._awake:
            raise QobraError("VM not running")
        for event in events:
            if self._find(event["type"]) is None:
                raise QobraError(f"Input handler not found for event type {event['type']}")
        self.deliver(events)

    @property
    def _awake(self) -> bool:
        state = self._machine.run_state
        return state.running or state.state == "suspended"

    def deliver(self, events: list[dict[str, Any]]) -> None:
        """Deliver events; what nothing takes, or a guest that does not run, is lost."""
        if not self._awake:
            return
        touched: list[InputDevice] = []
        for event in events:
            device = self._find(event["type"])
            if device is None:
                continue
            device.input_event(event)
            if device not in touched:
                touched.append(device)
        for device in touched:
            device.input_sync()

    def send_keys(self, keys: list[dict[str, Any]], hold_ms: int | None) -> None:
        """Press ``keys`` (KeyValue) one after the other, hold them, and let them go in reverse."""
        if self._find("key") is None:
            return

        def events(order: list[dict[str, Any]], down: bool) -> list[dict[str, Any]]:
            return [{"type": "key", "data": {"key": key, "down": down}} for key in order]

        self.deliver(events(keys, True))
        delay = (DEFAULT_HOLD_MS if hold_ms is None else hold_ms) * _MILLISECOND
        self._machine.control.call_later(delay, lambda: self.deliver(events(keys[::-1], False)))

    def choose(self, number: int) -> str | None:
        """Have the pointing device ``number`` of :meth:`mice` receive what it can; what is wrong if it cannot."""
        entry = next((each for each in self._devices if each[0] == number), None)
        if entry is None:
            return f"Mouse at index '{number}' not found"
        if not entry[1].accepts & {"rel", "abs"}:
            return f"Input device '{entry[1].input_name}' is not a mouse"
        self.activate(entry[1], True)
        return None

    @property
    def absolute(self) -> bool:
        """Whether the device that pointers move takes places; otherwise it takes motion."""
        return next(("abs" in each.accepts for _number, each in self._devices if each.accepts & {"rel", "abs"}), False)

    def mice(self) -> list[dict[str, Any]]:
        """MouseInfo of the pointing devices."""
        pointers = [(number, device) for number, device in self._devices if device.accepts & {"rel", "abs"}]
        listed = [
            {"name": device.input_name, "index": number, "current": i == 0, "absolute": "abs" in device.accepts}
            for i, (number, device) in enumerate(pointers)
        ]
        return listed[::-1]

    def _find(self, kind: str) -> InputDevice | None:
        return next((device for _number, device in self._devices if kind in device.accepts), None)
