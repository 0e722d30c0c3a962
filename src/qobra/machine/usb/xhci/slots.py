"""Device slots and their endpoints, and how their contexts lie in memory (xHCI 1.1, sections 4.5, 4.8 and 6.2)."""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Any

from qobra.errors import QobraError
from qobra.machine.usb.xhci.ring import Ring
from qobra.machine.vmstate import Flag, Listed, Number, Raw, Together

if TYPE_CHECKING:
    from qobra.machine.dma import GuestMemory
    from qobra.machine.usb.xhci.ports import RootPort

CONTEXT_SIZE = 32
LAST_ENDPOINT = 31
CONTROL = 1
"""Endpoint 0, in both directions."""

DISABLED, RUNNING, HALTED, STOPPED, ERROR = range(5)
"""States of endpoints."""
ENABLED, DEFAULT, ADDRESSED, CONFIGURED = range(4)
"""States of slots, as the context has them; one that is disabled says the same as one that is enabled."""

ISOCH_OUT, BULK_OUT, INTERRUPT_OUT, CONTROL_TYPE, ISOCH_IN, BULK_IN, INTERRUPT_IN = range(1, 8)
_WORDS = Struct("<8I")
_MAX_PATH = 32


class Endpoint:
    """One endpoint that the guest has set up. ``context`` is where its context lies."""

    __slots__ = ("context", "dci", "ring", "state", "tried", "type")

    def __init__(self, memory: GuestMemory, dci: int, context: int, type_: int, dequeue: int, cycle: int) -> None:
        self.dci = dci
        self.context = context
        self.type = type_
        self.ring = Ring(memory, dequeue, cycle)
        self.state = RUNNING
        self.tried = False
        """Whether the device had no answer yet to what is next in the ring."""

    @property
    def number(self) -> int:
        """As the device counts."""
        return self.dci >> 1

    @property
    def is_in(self) -> bool:
        """Whether data goes to the host."""
        return bool(self.dci & 1)

    @property
    def key(self) -> int:
        """As descriptors name it."""
        return self.number | (0x80 if self.is_in else 0)


class Slot:
    """A slot that the guest has enabled. ``context`` is the device context once there is a device."""

    __slots__ = ("context", "endpoints", "is_present", "number", "path", "root_port", "state")

    def __init__(self, number: int) -> None:
        self.number = number
        self.state = ENABLED
        self.context = 0
        self.root_port = 0
        self.path = ""
        """Where the device is on the bus."""
        self.is_present = False
        """Whether it was not pulled out since."""
        self.endpoints: dict[int, Endpoint] = {}


class Contexts:
    """Reads and writes contexts."""

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory

    def words(self, address: int) -> list[int]:
        """A context's eight words."""
        return list(_WORDS.unpack(self._memory.read(address, CONTEXT_SIZE)))

    def put_words(self, address: int, words: list[int]) -> None:
        """Write them."""
        self._memory.write(address, _WORDS.pack(*words))

    def endpoint(self, source: int, dci: int, target: int) -> Endpoint | None:
        """Set an endpoint up as the input context at ``source`` says, with its context at ``target``."""
        words = self.words(source)
        type_ = words[1] >> 3 & 7
        is_control, is_in = type_ == CONTROL_TYPE, type_ > CONTROL_TYPE
        if not type_ or (dci == CONTROL) != is_control or (not is_control and is_in != bool(dci & 1)):
            return None
        words[0] = words[0] & ~7 | RUNNING
        self.put_words(target, words)
        pointer = words[2] | words[3] << 32
        return Endpoint(self._memory, dci, target, type_, pointer & ~0xF, pointer & 1)

    def set_state(self, endpoint: Endpoint, state: int) -> None:
        """An endpoint's state changes: tell the guest, and how far its ring was read."""
        endpoint.state = state
        endpoint.tried = False
        words = self.words(endpoint.context)
        pointer = endpoint.ring.dequeue | endpoint.ring.cycle
        words[0] = words[0] & ~7 | state
        words[2], words[3] = pointer & 0xFFFFFFFF, pointer >> 32
        self.put_words(endpoint.context, words)


def place_of(port: RootPort, route: int) -> str:
    """The path of the port that a route string leads to from ``port`` on (USB 3.0, 8.9)."""
    path = port.place.path
    while route:
        path += f".{route & 0xF}"
        route >>= 4
    return path


_ENDPOINT_STATE = Together(
    Number(1, minimum=1, maximum=LAST_ENDPOINT),
    Number(8),
    Number(1, minimum=1, maximum=INTERRUPT_IN),
    Number(1, maximum=ERROR),
    Number(8),
    Number(1, maximum=1),
    Flag(),
)
SLOTS_STATE = Listed(
    Together(
        Number(1, minimum=1),
        Number(1, maximum=CONFIGURED),
        Number(8),
        Number(1),
        Raw(_MAX_PATH),
        Flag(),
        Listed(_ENDPOINT_STATE, LAST_ENDPOINT),
    ),
    255,
)
"""How the slots are saved."""


def slots_saved(slots: dict[int, Slot]) -> list[Any]:
    """The slots as :data:`SLOTS_STATE` writes them."""
    return [
        (
            slot.number,
            slot.state,
            slot.context,
            slot.root_port,
            slot.path.encode(),
            slot.is_present,
            [
                (each.dci, each.context, each.type, each.state, each.ring.dequeue, each.ring.cycle, each.tried)
                for each in slot.endpoints.values()
            ],
        )
        for slot in slots.values()
    ]


def slots_restored(memory: GuestMemory, count: int, saved: list[Any]) -> dict[int, Slot]:
    """The slots of a saved state. Raises QobraError where there are more than ``count``."""
    slots: dict[int, Slot] = {}
    for number, state, context, root_port, path, present, endpoints in saved:
        if number > count or number in slots:
            raise QobraError(f"slot {number} is out of range")
        slot = slots[number] = Slot(number)
        slot.state, slot.context, slot.root_port = state, context, root_port
        slot.path, slot.is_present = path.decode("ascii", "replace"), present
        for dci, at, type_, endpoint_state, dequeue, cycle, tried in endpoints:
            endpoint = slot.endpoints[dci] = Endpoint(memory, dci, at, type_, dequeue, cycle)
            endpoint.state, endpoint.tried = endpoint_state, tried
    return slots
