"""The guest's side of High Definition Audio, for tests: what a driver does to a controller and its codecs."""

from __future__ import annotations

from struct import pack, unpack

from qobra.testing.guest import Access, Memory, PciFunction

_GLOBAL, _COMMANDS, _COMMAND_WRITE, _COMMAND_READ, _COMMAND_CONTROL = 0x08, 0x40, 0x48, 0x4A, 0x4C
_ANSWERS, _ANSWER_WRITE, _ANSWER_COUNT, _ANSWER_CONTROL, _ANSWER_STATUS = 0x50, 0x58, 0x5A, 0x5C, 0x5D
_STREAM_SIZE = 0x20
SET_FORMAT, SET_STREAM, SET_GAIN = 0x20000, 0x70600, 0x30000
OUTPUT = 4
"""The controller's first stream that goes out."""
STEREO_48000 = 0x0011


class HdaGuest:
    """A driver of the controller at ``bdf``, which is switched on and out of its reset."""

    def __init__(self, guest: Access, bdf: int = 5 << 3) -> None:
        self.guest = guest
        self.function = PciFunction(guest, bdf)
        self.function.enable()
        self.base = self.function.bars[0]
        self.memory = Memory()
        self.write(_GLOBAL, 4, 1)

    def read(self, offset: int, width: int) -> int:
        """A register."""
        return self.guest.load(self.base + offset, width)

    def write(self, offset: int, width: int, value: int) -> None:
        """Write a register."""
        self.guest.store(self.base + offset, width, value)

    # -- commands

    def immediate(self, codec: int, node: int, verb: int) -> int | None:
        """What a codec answers to a single command; None for nothing."""
        self.write(0x68, 2, 2)
        self.write(0x60, 4, codec << 28 | node << 20 | verb)
        self.write(0x68, 2, 1)
        status = self.read(0x68, 2)
        self.write(0x68, 2, 0)
        return self.read(0x64, 4) if status & 2 else None

    def start_rings(self, count: int = 1) -> None:
        """Have rings for commands and answers; ``count`` answers are told of."""
        self.commands, self.answers = self.memory.take(1024, 128), self.memory.take(2048, 128)
        for place, address in ((_COMMANDS, self.commands), (_ANSWERS, self.answers)):
            self.write(place, 4, address & 0xFFFFFFFF)
            self.write(place + 4, 4, address >> 32)
        self.write(_COMMAND_READ, 2, 0x8000)
        self.write(_COMMAND_READ, 2, 0)
        self.write(_ANSWER_WRITE, 2, 0x8000)
        self.write(_ANSWER_COUNT, 2, count)
        self.write(_ANSWER_CONTROL, 1, 3)
        self.write(_COMMAND_CONTROL, 1, 2)

    def command(self, *commands: int) -> None:
        """Put commands into the ring."""
        at = self.read(_COMMAND_WRITE, 2)
        for each in commands:
            at = (at + 1) % 256
            self.guest.write(self.commands + 4 * at, pack("<I", each))
        self.write(_COMMAND_WRITE, 2, at)

    def answered(self) -> list[tuple[int, int]]:
        """All answers in the ring so far: the value, and by whom."""
        count = self.read(_ANSWER_WRITE, 2)
        return [unpack("<II", self.guest.read(self.answers + 8 * (at + 1), 8)) for at in range(count)]

    def acknowledge(self) -> int:
        """What the controller tells of answers, which is taken back."""
        status = self.read(_ANSWER_STATUS, 1)
        self.write(_ANSWER_STATUS, 1, status)
        return status

    # -- streams

    def stream(self, index: int, offset: int, width: int) -> int:
        """A register of a stream."""
        return self.read(0x80 + _STREAM_SIZE * index + offset, width)

    def set_stream(self, index: int, offset: int, width: int, value: int) -> None:
        """Write it."""
        self.write(0x80 + _STREAM_SIZE * index + offset, width, value)

    def list_buffers(self, index: int, buffers: list[tuple[int, int, bool]], form: int, number: int) -> None:
        """Have a stream of that form and number go through buffers: address, length, whether their end is told."""
        table = self.memory.take(16 * len(buffers), 128)
        for at, (address, length, told) in enumerate(buffers):
            self.guest.write(table + 16 * at, pack("<QII", address, length, told))
        self.set_stream(index, 0x00, 1, 0)
        self.set_stream(index, 0x02, 1, number << 4)
        self.set_stream(index, 0x08, 4, sum(length for _address, length, _told in buffers))
        self.set_stream(index, 0x0C, 2, len(buffers) - 1)
        self.set_stream(index, 0x12, 2, form)
        self.set_stream(index, 0x18, 4, table & 0xFFFFFFFF)
        self.set_stream(index, 0x1C, 4, table >> 32)

    def listen(self, codec: int, number: int, form: int = STEREO_48000) -> None:
        """Have a codec play the stream of that number."""
        self.immediate(codec, 2, SET_FORMAT | form)
        self.immediate(codec, 2, SET_STREAM | number << 4)

    def run(self, index: int, running: bool = True) -> None:
        """Start a stream, or stop it."""
        self.set_stream(index, 0x00, 1, 0x06 if running else 0)
