"""``i8257``: the ISA bus's DMA controller, four channels that devices ask to move a block (Intel 8237A data sheet)."""

from __future__ import annotations

from collections.abc import Callable

from qobra.machine.devices import registry
from qobra.machine.dma import GuestMemory
from qobra.machine.isa import IsaDevice
from qobra.machine.memory import Mapping, Registers
from qobra.machine.vmstate import VmState, flag, parts, u8, u16, u32
from qobra.object.property import Int

_PAGE_CHANNEL = {1: 2, 2: 3, 3: 1, 7: 0}
_CHANNELS = 4
_DISABLED = 0x04
_DECREMENT, _AUTOMATIC = 0x20, 0x10


class DmaChannel:
    """One channel: what is left of the block that the guest set up, and the device at the other end.

    ``wanted`` is called when the guest lets the channel go while the device asks for it.
    """

    vmstate = VmState(
        u16("base_address", "base_count"),
        u8("page", "mode"),
        u32("moved"),
        flag("masked", "requested", "ended"),
    )

    def __init__(self, memory: GuestMemory, shift: int) -> None:
        self._memory = memory
        self._shift = shift
        self.base_address = self.base_count = self.page = self.mode = 0
        self.moved = 0
        self.masked = True
        self.requested = False
        self.ended = False
        self.wanted: Callable[[], None] = lambda: None

    @property
    def direction(self) -> int:
        """0: only checked; 1: into memory; 2: out of memory."""
        return self.mode >> 2 & 3

    @property
    def left(self) -> int:
        """Bytes of the block that are still to be moved."""
        return (self.base_count + 1 << self._shift) - self.moved

    def put(self, data: bytes) -> None:
        """Move ``data``, which is no more than is left, into memory."""
        if self.direction == 1:
            if self.mode & _DECREMENT:
                self._memory.write(self._address - len(data) + 1, data[::-1])
            else:
                self._memory.write(self._address, data)
        self._advance(len(data))

    def take(self, length: int) -> bytes:
        """The next ``length`` bytes, no more than are left, from memory."""
        if self.mode & _DECREMENT:
            data = self._memory.read(self._address - length + 1, length)[::-1]
        else:
            data = self._memory.read(self._address, length)
        self._advance(length)
        return data

    @property
    def _address(self) -> int:
        offset = -self.moved if self.mode & _DECREMENT else self.moved
        return (self.page << 16 | self.base_address << self._shift) + offset & 0xFFFFFF

    def _advance(self, length: int) -> None:
        self.moved += length
        if self.left <= 0:
            self.ended = True
            if self.mode & _AUTOMATIC:
                self.moved = 0

    def current_address(self) -> int:
        """What the address register shows."""
        step = self.moved >> self._shift
        return self.base_address + (-step if self.mode & _DECREMENT else step) & 0xFFFF

    def current_count(self) -> int:
        """What the count register shows."""
        return self.base_count - (self.moved >> self._shift) & 0xFFFF


@registry.register("i8257")
class I8257(IsaDevice):
    """A controller; the second of a PC (``dshift`` 1) counts words."""

    type_name = "i8257"
    interfaces = ("isa-dma",)
    pluggable = False

    base = Int(0, type="int32")
    page_base = Int(0x80, type="int32")
    pageh_base = Int(0x480, type="int32")
    dshift = Int(0, type="int32")

    vmstate = VmState(flag("_second"), u8("_command"), parts("channels"))

    def realize(self) -> None:
        memory = GuestMemory(self.board.memory)
        self.channels = [DmaChannel(memory, self.dshift) for _ in range(_CHANNELS)]
        self._second = False
        self._command = 0
        size = 8 << self.dshift
        self.map_ports(self.base, size, self._read_channel, self._write_channel, name="dma-chan")
        self.map_ports(self.base + size, size, self._read_control, self._write_control, name="dma-cont")
        pages: list[Mapping] = []
        for offset, channel in _PAGE_CHANNEL.items():
            chosen = self.channels[channel]

            def read(_offset: int, _width: int, chosen: DmaChannel = chosen) -> int:
                return int(chosen.page)

            def write(_offset: int, _width: int, value: int, chosen: DmaChannel = chosen) -> None:
                chosen.page = value & 0xFF

            region = Registers("dma-page", 1, read, write, valid=(1, 4), impl=(1, 1))
            pages.append(self.board.ports.map(self.page_base + offset, region))
        self._mappings += pages

    def reset(self) -> None:
        self._second = False
        self._command = 0
        for channel in self.channels:
            channel.masked, channel.requested, channel.ended, channel.moved = True, False, False, 0

    def request(self, number: int, wanted: bool) -> None:
        """A device asks for its channel, or no longer."""
        channel = self.channels[number]
        channel.requested = wanted
        self._run(channel)

    def ready(self, number: int) -> bool:
        """Whether the guest lets the channel go."""
        return not self.channels[number].masked and not self._command & _DISABLED

    def _run(self, channel: DmaChannel) -> None:
        if channel.requested and not channel.masked and not self._command & _DISABLED:
            channel.wanted()

    def _read_channel(self, offset: int, _width: int) -> int:
        register = offset >> self.dshift
        channel = self.channels[register >> 1]
        value: int = channel.current_count() if register & 1 else channel.current_address()
        value = value >> 8 if self._second else value & 0xFF
        self._second = not self._second
        return value

    def _write_channel(self, offset: int, _width: int, value: int) -> None:
        register = offset >> self.dshift
        channel = self.channels[register >> 1]
        shift = 8 if self._second else 0
        self._second = not self._second
        name = "base_count" if register & 1 else "base_address"
        old: int = getattr(channel, name)
        setattr(channel, name, old & ~(0xFF << shift) | (value & 0xFF) << shift)
        channel.moved = 0

    def _read_control(self, offset: int, _width: int) -> int:
        register = offset >> self.dshift
        if register == 0:
            value = 0
            for number, channel in enumerate(self.channels):
                value |= int(channel.ended) << number | int(channel.requested) << number + 4
                channel.ended = False
            return value
        if register == 7:
            return sum(int(channel.masked) << number for number, channel in enumerate(self.channels))
        return 0

    def _write_control(self, offset: int, _width: int, value: int) -> None:
        register, chosen = offset >> self.dshift, self.channels[value & 3]
        if register == 0:
            self._command = value & 0xFF
        elif register == 1:
            chosen.requested = bool(value & 4)
        elif register == 2:
            chosen.masked = bool(value & 4)
        elif register == 3:
            chosen.mode = value & 0xFC
        elif register == 4:
            self._second = False
        elif register == 5:
            self.reset()
        elif register == 6:
            for channel in self.channels:
                channel.masked = False
        else:
            for number, channel in enumerate(self.channels):
                channel.masked = bool(value >> number & 1)
        for channel in self.channels:
            self._run(channel)
