"""A driver of xHCI controllers for tests: rings, slots, contexts, transfers, over any :class:`Access`."""

from __future__ import annotations

import time
from struct import Struct
from typing import NamedTuple

from qobra.machine.usb.xhci import ring
from qobra.testing.guest import Access, Memory

ENABLE_SLOT, DISABLE_SLOT, ADDRESS_DEVICE, CONFIGURE, EVALUATE = range(9, 14)
RESET_ENDPOINT, STOP_ENDPOINT, SET_DEQUEUE, RESET_DEVICE = range(14, 18)
PORT_BANDWIDTH, COMMAND_NO_OP = 21, 23
_TRB = Struct("<QII")
_RING_LENGTH = 64
_CONTEXT = 32
_PACKET_SIZES = {1: 8, 2: 8, 3: 64, 4: 512}
"""Of endpoint 0, by the speed that a port tells."""


class Event(NamedTuple):
    """What the controller told."""

    kind: int
    code: int
    pointer: int
    length: int
    slot: int
    endpoint: int
    has_data: bool


class Ring:
    """A ring that the driver fills."""

    def __init__(self, guest: Access, memory: Memory) -> None:
        self.guest = guest
        self.base = memory.take(16 * _RING_LENGTH, 1024)
        guest.write(self.base, bytes(16 * _RING_LENGTH))
        self._at = 0
        self.cycle = 1

    @property
    def position(self) -> int:
        """The address of what is put in next, with its cycle bit."""
        return self.base + 16 * self._at | self.cycle

    def put(self, parameter: int, status: int, control: int) -> int:
        """Put a request in; returns its address."""
        address = self.base + 16 * self._at
        self.guest.write(address, _TRB.pack(parameter, status, control & ~1 | self.cycle))
        self._at += 1
        if self._at == _RING_LENGTH - 1:
            chained = control & ring.CHAIN
            link = ring.LINK << 10 | ring.TOGGLE_CYCLE | chained | self.cycle
            self.guest.write(self.base + 16 * self._at, _TRB.pack(self.base, 0, link))
            self._at = 0
            self.cycle ^= 1
        return address


class XhciDriver:
    """The controller at ``base``. ``memory`` is where its structures go."""

    def __init__(self, guest: Access, base: int, memory: Memory | None = None, *, events: int = 64) -> None:
        self.guest = guest
        self.base = base
        self.memory = memory or Memory()
        self._operational = base + (guest.load(base, 4) & 0xFF)
        self._runtime = base + guest.load(base + 0x18, 4)
        self._doorbells = base + guest.load(base + 0x14, 4)
        self.port_count = guest.load(base + 4, 4) >> 24
        self._event_count = events
        self.rings: dict[tuple[int, int], Ring] = {}
        self.streams: dict[tuple[int, int, int], Ring] = {}
        self.contexts: dict[int, int] = {}
        self._root_ports: dict[int, tuple[int, int, int]] = {}
        self.others: list[Event] = []
        """Events that came while another was waited for."""

    def start(self, *, slots: int = 64, interrupts: bool = False) -> None:
        """Reset the controller, give it its rings, and let it run."""
        guest, operational = self.guest, self._operational
        guest.store(operational, 4, 2)
        guest.store(operational + 0x38, 4, slots)
        self._array = self.memory.take(8 * (slots + 1), 4096)
        guest.write(self._array, bytes(8 * (slots + 1)))
        self._wide(operational + 0x30, self._array)
        self.commands = Ring(guest, self.memory)
        self._wide(operational + 0x18, self.commands.base | 1)
        self.events = self.memory.take(16 * self._event_count, 4096)
        guest.write(self.events, bytes(16 * self._event_count))
        table = self.memory.take(16, 64)
        guest.write(table, Struct("<QII").pack(self.events, self._event_count, 0))
        self._event_at, self._event_cycle = 0, 1
        guest.store(self._runtime + 0x28, 4, 1)
        self._wide(self._runtime + 0x38, self.events)
        self._wide(self._runtime + 0x30, table)
        if interrupts:
            guest.store(self._runtime + 0x20, 4, 2)
        guest.store(operational, 4, 5 if interrupts else 1)

    def move(self, guest: Access) -> None:
        """The machine is another from now on."""
        self.guest = self.commands.guest = guest
        for each in (*self.rings.values(), *self.streams.values()):
            each.guest = guest

    def _wide(self, address: int, value: int) -> None:
        self.guest.store(address, 4, value & 0xFFFFFFFF)
        self.guest.store(address + 4, 4, value >> 32)

    # -- registers

    def operational(self, offset: int, value: int | None = None) -> int:
        """An operational register; ``value`` is written to it first."""
        if value is not None:
            self.guest.store(self._operational + offset, 4, value)
        return self.guest.load(self._operational + offset, 4)

    def runtime(self, offset: int, value: int | None = None) -> int:
        """A runtime register; ``value`` is written to it first."""
        if value is not None:
            self.guest.store(self._runtime + offset, 4, value)
        return self.guest.load(self._runtime + offset, 4)

    def port(self, number: int, value: int | None = None) -> int:
        """The status of a port, counted from 1 on; ``value`` is written to it first."""
        return self.operational(0x400 + 16 * (number - 1), value)

    def ring(self, slot: int, target: int, stream: int = 0) -> None:
        """Ring a doorbell."""
        self.guest.store(self._doorbells + 4 * slot, 4, stream << 16 | target)

    # -- events

    def event(self, *, consume: bool = True) -> Event | None:
        """The next event, if there is one; ``consume`` tells the controller that it was seen."""
        address = self.events + 16 * self._event_at
        parameter, status, control = _TRB.unpack(self.guest.read(address, 16))
        if control & 1 != self._event_cycle:
            return None
        self._event_at += 1
        if self._event_at == self._event_count:
            self._event_at = 0
            self._event_cycle ^= 1
        if consume:
            self.acknowledge()
        return Event(
            control >> 10 & 0x3F,
            status >> 24,
            parameter,
            status & 0xFFFFFF,
            control >> 24,
            control >> 16 & 0x1F,
            bool(control & 4),
        )

    def acknowledge(self) -> None:
        """Tell the controller how far the events were read."""
        self._wide(self._runtime + 0x38, self.events + 16 * self._event_at | 8)

    def all_events(self) -> list[Event]:
        """Every event that is there."""
        found = []
        while (event := self.event(consume=False)) is not None:
            found.append(event)
        self.acknowledge()
        return found

    def wait(self, kind: int) -> Event:
        """The next event of a kind."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            event = self.event()
            if event is None:
                self.pause()
            elif event.kind == kind:
                return event
            else:
                self.others.append(event)
        raise AssertionError(f"no event of kind {kind}")

    def pause(self) -> None:
        """Let the device work."""
        time.sleep(0.0005)

    # -- commands

    def command(self, kind: int, *, parameter: int = 0, status: int = 0, control: int = 0) -> Event:
        """Give a command, and wait for what comes of it."""
        address = self.commands.put(parameter, status, kind << 10 | control)
        self.ring(0, 0)
        event = self.wait(ring.COMMAND_COMPLETION)
        assert event.pointer == address, (event, hex(address))
        return event

    def reset_port(self, number: int) -> int:
        """Reset a port; returns its speed."""
        self.port(number, self.port(number) & 0x0E000200 | 1 << 4)
        self.port(number, self.port(number) & 0x0E000200 | 0x7F << 17)
        return self.port(number) >> 10 & 0xF

    def enable_slot(self) -> int:
        """A new slot."""
        event = self.command(ENABLE_SLOT)
        assert event.code == ring.SUCCESS, event
        return event.slot

    def _input(self, drop: int, add: int, contexts: dict[int, list[int]]) -> int:
        # An input context; the slot's context is number 0.
        address = self.memory.take(_CONTEXT * 33, 64)
        data = bytearray(_CONTEXT * 33)
        data[0:8] = Struct("<II").pack(drop, add)
        for number, words in contexts.items():
            at = _CONTEXT * (number + 1)
            data[at : at + 4 * len(words)] = b"".join(word.to_bytes(4, "little") for word in words)
        self.guest.write(address, bytes(data))
        return address

    def address(self, slot: int, port: int, *, route: int = 0, speed: int = 0, blocked: bool = False) -> Event:
        """Give the device at ``port`` its address."""
        speed = speed or self.port(port) >> 10 & 0xF
        context = self.contexts[slot] = self.memory.take(_CONTEXT * 32, 64)
        self.guest.write(context, bytes(_CONTEXT * 32))
        self._wide(self._array + 8 * slot, context)
        transfers = self.rings[slot, 1] = Ring(self.guest, self.memory)
        self._root_ports[slot] = (port, route, speed)
        control = [0, 4 << 3 | 3 << 1 | _PACKET_SIZES[speed] << 16, transfers.base | 1, 0, 8]
        words = [1 << 27 | speed << 20 | route, port << 16]
        at = self._input(0, 3, {0: words, 1: control})
        return self.command(ADDRESS_DEVICE, parameter=at, control=slot << 24 | (0x200 if blocked else 0))

    def configure(
        self,
        slot: int,
        endpoints: dict[int, tuple[int, int]],
        *,
        drop: int = 0,
        streams: int = 0,
        with_streams: tuple[int, ...] = (),
    ) -> Event:
        """Set endpoints up: the type and the packet size of each, by its place in the device context.

        Those of ``with_streams`` have 2 ** (``streams`` + 1) of them.
        """
        port, route, speed = self._root_ports[slot]
        contexts = {0: [max((*endpoints, 1)) << 27 | speed << 20 | route, port << 16]}
        add = 1
        for dci, (kind, size) in endpoints.items():
            transfers = self.rings[slot, dci] = Ring(self.guest, self.memory)
            first, pointer = 3 << 16, transfers.base | 1
            if dci in with_streams:
                first, pointer = first | 1 << 15 | streams << 10, self._stream_array(slot, dci, 2 << streams)
            contexts[dci] = [first, kind << 3 | 3 << 1 | size << 16, pointer, 0, size]
            add |= 1 << dci
        return self.command(CONFIGURE, parameter=self._input(drop, add, contexts), control=slot << 24)

    def _stream_array(self, slot: int, dci: int, count: int) -> int:
        array = self.memory.take(16 * count, 64)
        self.guest.write(array, bytes(16 * count))
        for stream in range(1, count):
            transfers = self.streams[slot, dci, stream] = Ring(self.guest, self.memory)
            self.guest.write(array + 16 * stream, (transfers.base | 2 | 1).to_bytes(8, "little"))
        return array

    def endpoint_command(self, kind: int, slot: int, dci: int, *, parameter: int = 0) -> Event:
        """A command for one endpoint."""
        return self.command(kind, parameter=parameter, control=slot << 24 | dci << 16)

    def recover(self, slot: int, dci: int) -> None:
        """An endpoint has halted: let it go on after what failed."""
        assert self.endpoint_command(RESET_ENDPOINT, slot, dci).code == ring.SUCCESS
        position = self.rings[slot, dci].position
        assert self.endpoint_command(SET_DEQUEUE, slot, dci, parameter=position).code == ring.SUCCESS

    def endpoint_context(self, slot: int, dci: int) -> list[int]:
        """The five words that the controller keeps of an endpoint; those of the slot for number 0."""
        return list(Struct("<5I").unpack(self.guest.read(self.contexts[slot] + _CONTEXT * dci, 20)))

    # -- transfers

    def control(self, slot: int, request: bytes, data: bytes = b"", buffer: int = 0) -> tuple[int, bytes]:
        """A control request: its completion code, and the data that came."""
        transfers, length = self.rings[slot, 1], int.from_bytes(request[6:8], "little")
        to_host = bool(request[0] & 0x80)
        kind = 0 if not length else 3 if to_host else 2
        transfers.put(int.from_bytes(request, "little"), 8, ring.SETUP << 10 | ring.IMMEDIATE | kind << 16)
        buffer = buffer or self.memory.take(max(length, 1))
        at = 0
        if length:
            self.guest.write(buffer, data or bytes(length))
            direction = ring.TO_HOST if to_host else 0
            at = transfers.put(buffer, length, ring.DATA << 10 | ring.SHORT_EVENT | direction)
        direction = ring.TO_HOST if not (length and to_host) else 0
        transfers.put(0, 0, ring.STATUS << 10 | ring.ON_COMPLETION | direction)
        self.ring(slot, 1)
        event, moved = self.wait(ring.TRANSFER_EVENT), length
        if length and event.pointer == at:
            moved = length - event.length
            if event.code == ring.SHORT_PACKET:
                following = self.wait(ring.TRANSFER_EVENT)
                event = following if following.code != ring.SUCCESS else event
        code = ring.SUCCESS if event.code == ring.SHORT_PACKET else event.code
        if code != ring.SUCCESS:
            self.recover(slot, 1)
            return code, b""
        return code, self.guest.read(buffer, moved) if to_host and moved else b""

    def descriptor(self, slot: int, kind: int, index: int = 0, length: int = 255) -> bytes | None:
        """A descriptor; None if the device has none such."""
        language = 0x0409 if kind == 3 and index else 0
        request = bytes((0x80, 6, index, kind)) + language.to_bytes(2, "little") + length.to_bytes(2, "little")
        code, data = self.control(slot, request)
        return data if code == ring.SUCCESS else None

    def send(self, slot: int, dci: int, data: bytes) -> Event:
        """Send data to an endpoint."""
        buffer = self.memory.take(max(len(data), 1))
        self.guest.write(buffer, data or b"\0")
        self.rings[slot, dci].put(buffer, len(data), ring.NORMAL << 10 | ring.ON_COMPLETION)
        self.ring(slot, dci)
        return self.wait(ring.TRANSFER_EVENT)

    def receive(self, slot: int, dci: int, length: int) -> tuple[Event, bytes]:
        """Get data from an endpoint."""
        buffer = self.memory.take(max(length, 1))
        self.rings[slot, dci].put(buffer, length, ring.NORMAL << 10 | ring.ON_COMPLETION | ring.SHORT_EVENT)
        self.ring(slot, dci)
        event = self.wait(ring.TRANSFER_EVENT)
        moved = length - event.length
        ok = event.code in (ring.SUCCESS, ring.SHORT_PACKET) and moved > 0
        return event, self.guest.read(buffer, moved) if ok else b""
