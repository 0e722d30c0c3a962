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
_LINEAR = 0x8000
_STREAM_SIZE, _STREAM_TYPE, _PRIMARY_RING = 16, 0xE, 0x2
_MAX_STREAMS = 1 << 16


class Pipe:
    """One ring of an endpoint: its only one, or that of one of its streams."""

    __slots__ = ("ring", "stream", "tried")

    def __init__(self, memory: GuestMemory, stream: int, dequeue: int, cycle: int) -> None:
        self.stream = stream
        self.ring = Ring(memory, dequeue, cycle)
        self.tried = False
        """Whether the device had no answer yet to what is next in the ring."""


class Endpoint:
    """One endpoint that the guest has set up. ``context`` is where its context lies.

    With streams (4.12), ``stream_count`` of them, their contexts lie at ``array``; ``pipes`` are those in use.
    """

    __slots__ = ("array", "context", "dci", "pipes", "state", "stream_count", "type")

    def __init__(self, dci: int, context: int, type_: int, array: int = 0, stream_count: int = 0) -> None:
        self.dci = dci
        self.context = context
        self.type = type_
        self.array = array
        self.stream_count = stream_count
        self.pipes: dict[int, Pipe] = {}
        self.state = RUNNING

    @property
    def number(self) -> int:
        """As the device counts."""
        return self.dci >> 1

    @property
    def is_in(self) -> bool:
        """Whether data goes to the host."""
        return bool(self.dci & 1)

    @property
    def tried(self) -> bool:
        """Whether something waits for the device."""
        return any(pipe.tried for pipe in self.pipes.values())


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

    def endpoint(self, source: int, dci: int, target: int, *, streams: int = 0) -> Endpoint | None:
        """Set an endpoint up as the input context at ``source`` says, with its context at ``target``.

        It may have arrays of up to 2 ** (``streams`` + 1) streams, if ``streams`` is not 0.
        """
        words = self.words(source)
        type_ = words[1] >> 3 & 7
        is_control, is_in = type_ == CONTROL_TYPE, type_ > CONTROL_TYPE
        if not type_ or (dci == CONTROL) != is_control or (not is_control and is_in != bool(dci & 1)):
            return None
        pointer, size = words[2] | words[3] << 32, words[0] >> 10 & 0x1F
        if size and (size > streams or type_ not in (BULK_OUT, BULK_IN) or not words[0] & _LINEAR):
            return None
        words[0] = words[0] & ~7 | RUNNING
        self.put_words(target, words)
        if size:
            return Endpoint(dci, target, type_, pointer & ~0xF, 2 << size)
        endpoint = Endpoint(dci, target, type_)
        endpoint.pipes[0] = Pipe(self._memory, 0, pointer & ~0xF, pointer & 1)
        return endpoint

    def pipe(self, endpoint: Endpoint, stream: int) -> Pipe | None:
        """A pipe of an endpoint, in use from now on; None where there is no such stream."""
        if stream not in endpoint.pipes and 0 < stream < endpoint.stream_count:
            pointer = self._memory.number(endpoint.array + _STREAM_SIZE * stream, 8)
            if pointer & _STREAM_TYPE == _PRIMARY_RING:
                endpoint.pipes[stream] = Pipe(self._memory, stream, pointer & ~0xF, pointer & 1)
        return endpoint.pipes.get(stream)

    def set_state(self, endpoint: Endpoint, state: int) -> None:
        """An endpoint's state changes: tell the guest, and how far its rings were read."""
        endpoint.state = state
        words = self.words(endpoint.context)
        words[0] = words[0] & ~7 | state
        for pipe in endpoint.pipes.values():
            pipe.tried = False
            pointer = pipe.ring.dequeue | pipe.ring.cycle
            if pipe.stream:
                at = endpoint.array + _STREAM_SIZE * pipe.stream
                self._memory.write(at, (pointer | _PRIMARY_RING).to_bytes(8, "little"))
            else:
                words[2], words[3] = pointer & 0xFFFFFFFF, pointer >> 32
        self.put_words(endpoint.context, words)


def place_of(port: RootPort, route: int) -> str:
    """The path of the port that a route string leads to from ``port`` on (USB 3.0, 8.9)."""
    path = port.place.path
    while route:
        path += f".{route & 0xF}"
        route >>= 4
    return path


_PIPE_STATE = Together(Number(4, maximum=_MAX_STREAMS - 1), Number(8), Number(1, maximum=1), Flag())
_ENDPOINT_STATE = Together(
    Number(1, minimum=1, maximum=LAST_ENDPOINT),
    Number(8),
    Number(1, minimum=1, maximum=INTERRUPT_IN),
    Number(1, maximum=ERROR),
    Number(8),
    Number(4, maximum=_MAX_STREAMS),
    Listed(_PIPE_STATE, _MAX_STREAMS),
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
            [_endpoint_saved(each) for each in slot.endpoints.values()],
        )
        for slot in slots.values()
    ]


def _endpoint_saved(endpoint: Endpoint) -> Any:
    pipes = [(pipe.stream, pipe.ring.dequeue, pipe.ring.cycle, pipe.tried) for pipe in endpoint.pipes.values()]
    place = (endpoint.dci, endpoint.context, endpoint.type, endpoint.state)
    return (*place, endpoint.array, endpoint.stream_count, pipes)


def slots_restored(memory: GuestMemory, count: int, saved: list[Any]) -> dict[int, Slot]:
    """The slots of a saved state. Raises QobraError where there are more than ``count``."""
    slots: dict[int, Slot] = {}
    for number, state, context, root_port, path, present, endpoints in saved:
        if number > count or number in slots:
            raise QobraError(f"slot {number} is out of range")
        slot = slots[number] = Slot(number)
        slot.state, slot.context, slot.root_port = state, context, root_port
        slot.path, slot.is_present = path.decode("ascii", "replace"), present
        for dci, at, type_, endpoint_state, array, stream_count, pipes in endpoints:
            endpoint = slot.endpoints[dci] = Endpoint(dci, at, type_, array, stream_count)
            endpoint.state = endpoint_state
            for stream, dequeue, cycle, tried in pipes:
                if stream >= max(1, stream_count):
                    raise QobraError(f"stream {stream} is out of range")
                pipe = endpoint.pipes[stream] = Pipe(memory, stream, dequeue, cycle)
                pipe.tried = tried
    return slots
