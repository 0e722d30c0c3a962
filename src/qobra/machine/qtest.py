"""QEMU's qtest protocol: a test drives memory, ports, interrupts and the clock, line by line.

One command a line, words apart by a space, numbers as in C. The answer begins with ``OK`` or ``FAIL``; an intercepted
line reports its changes with ``IRQ raise N`` and ``IRQ lower N`` whenever they happen.
"""

from __future__ import annotations

import binascii
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from qobra.errors import QobraError
from qobra.machine.qdev import Device

if TYPE_CHECKING:
    from qobra.machine.board import Board
    from qobra.machine.irq import Line

_MAX_LINE = 64 << 20
_MAX_TRANSFER = 1 << 30
_WIDTHS = {"b": 1, "w": 2, "l": 4, "q": 8}
_HEXADECIMAL = frozenset("0123456789abcdefABCDEF")
_NS_MAX = (1 << 63) - 1


class Refusal(Exception):
    """A command that cannot be carried out; the text follows ``FAIL`` in the answer."""


class QtestSession:
    """The protocol's server on one machine. ``send`` sends text to the client; ``log`` records both directions."""

    def __init__(
        self, board: Board, send: Callable[[str], None], log: Callable[[str, str], None] | None = None
    ) -> None:
        self.board = board
        self._send = send
        self._log = log
        self._buffer = bytearray()
        self._intercepted: Device | None = None
        self._levels: dict[int, int] = {}
        self._commands: dict[str, Callable[[list[str]], str]] = {
            "read": self._read,
            "write": self._write,
            "b64read": self._b64read,
            "b64write": self._b64write,
            "memset": self._memset,
            "irq_intercept_in": self._intercept_in,
            "irq_intercept_out": self._intercept_out,
            "set_irq_in": self._set_irq_in,
            "endianness": lambda _words: "OK big" if board.big_endian else "OK little",
            "module_load": self._module_load,
        }
        for letter, width in _WIDTHS.items():
            self._commands[f"read{letter}"] = self._reader(width)
            self._commands[f"write{letter}"] = self._writer(width)
            if width < 8:
                self._commands[f"in{letter}"] = self._port_reader(width)
                self._commands[f"out{letter}"] = self._port_writer(width)
        if board.clock_driven:
            self._commands["clock_step"] = self._clock_step
            self._commands["clock_set"] = self._clock_set

    def receive(self, data: bytes) -> None:
        """Bytes from the client, in any pieces."""
        self._buffer += data
        while (end := self._buffer.find(b"\n")) >= 0:
            line = self._buffer[:end].decode("latin-1").rstrip("\r")
            del self._buffer[: end + 1]
            self.command(line)
        if len(self._buffer) > _MAX_LINE:
            self._buffer.clear()
            self._answer("FAIL line too long")

    def command(self, line: str) -> None:
        """Carry out one command and answer it."""
        if self._log is not None:
            self._log("R", line)
        words = line.split(" ")
        with self.board.machine.control:
            call = self._commands.get(words[0])
            if words[0].startswith("clock_") and not self.board.started:
                call = None  # --preconfig holds the machine back
            if call is None:
                answer = f"FAIL Unknown command '{words[0]}'"
            else:
                try:
                    answer = call(words[1:])
                except (Refusal, QobraError) as refusal:
                    answer = f"FAIL {refusal}"
            # Before what the command has set off, which may be the end of the program.
            self._answer(answer)

    # -- memory and ports

    def _reader(self, width: int) -> Callable[[list[str]], str]:
        def read(words: list[str]) -> str:
            (address,) = _numbers(words, 1)
            return f"OK 0x{self.board.memory.load(address, width):016x}"

        return read

    def _writer(self, width: int) -> Callable[[list[str]], str]:
        def write(words: list[str]) -> str:
            address, value = _numbers(words, 2)
            self.board.memory.store(address, width, value & ((1 << 8 * width) - 1))
            return "OK"

        return write

    def _port_reader(self, width: int) -> Callable[[list[str]], str]:
        def read(words: list[str]) -> str:
            (port,) = _numbers(words, 1)
            return f"OK 0x{self.board.ports.load(port & 0xFFFF, width):04x}"

        return read

    def _port_writer(self, width: int) -> Callable[[list[str]], str]:
        def write(words: list[str]) -> str:
            port, value = _numbers(words, 2)
            self.board.ports.store(port & 0xFFFF, width, value & ((1 << 8 * width) - 1))
            return "OK"

        return write

    def _read(self, words: list[str]) -> str:
        address, length = _range(words)
        return "OK 0x" + self.board.memory.read(address, length).hex()

    def _write(self, words: list[str]) -> str:
        address, length = _range(words)
        text = _word(words, 2)[2:]
        if not text:
            raise Refusal("invalid argument size")
        # What is missing is zeroes, what is too much is dropped; a digit that is none sets all bits from it on.
        digits = text[: 2 * length]
        if not _HEXADECIMAL.issuperset(digits):
            digits = "".join(
                "ff" if low not in _HEXADECIMAL else f"{high if high in _HEXADECIMAL else 'f'}{low}"
                for high, low in zip(digits[::2], digits[1::2], strict=False)
            )
        data = bytes.fromhex(digits[: len(digits) & ~1])
        self.board.memory.write(address, data.ljust(length, b"\0"))
        return "OK"

    def _b64read(self, words: list[str]) -> str:
        address, length = _range(words)
        return "OK " + binascii.b2a_base64(self.board.memory.read(address, length), newline=False).decode()

    def _b64write(self, words: list[str]) -> str:
        address, length = _range(words)
        try:
            data = binascii.a2b_base64(_word(words, 2) + "==")  # padding may be missing
        except binascii.Error as error:
            raise Refusal(f"invalid base64: {error}")
        self.board.memory.write(address, data[:length])
        return "OK"

    def _memset(self, words: list[str]) -> str:
        (pattern,) = _numbers(words[2:], 1)
        if not _numbers(words[1:], 1)[0]:
            return "OK"  # of all blocks, only this may be empty
        address, length = _range(words)
        self.board.memory.write(address, bytes([pattern & 0xFF]) * length)
        return "OK"

    # -- interrupts

    def _intercept_in(self, words: list[str]) -> str:
        device = self._device(words)
        if self._intercepted is None:
            self._intercept(device, device.gpio_in.get(None, []))
        return self._same_device(device)

    def _intercept_out(self, words: list[str]) -> str:
        device = self._device(words)
        if self._intercepted is None:
            self._intercept(device, device.gpio_out.get(None, []))
        return self._same_device(device)

    def _intercept(self, device: Device, lines: list[Line]) -> None:
        self._intercepted = device
        for number, line in enumerate(lines):
            line.intercept(partial(self._irq, number))

    def _same_device(self, device: Device) -> str:
        if device is not self._intercepted:
            raise Refusal("IRQ intercept already enabled")
        return "OK"

    def _irq(self, number: int, level: int) -> None:
        level = 1 if level else 0
        if self._levels.get(number, 0) != level:
            self._levels[number] = level
            self._answer(f"IRQ {'raise' if level else 'lower'} {number}")

    def _set_irq_in(self, words: list[str]) -> str:
        device = self._device(words)
        name = _word(words, 1)
        number, level = _numbers(words[2:], 2)
        lines = device.gpio_in.get(None if name in ("unnamed-gpio-in", "unnamed") else name, [])
        if not 0 <= number < len(lines):
            raise Refusal("Unknown IRQ")
        lines[number].set(level)
        return "OK"

    def _device(self, words: list[str]) -> Device:
        try:
            found = self.board.tree.resolve(_word(words, 0))
        except QobraError:
            found = None
        if not isinstance(found, Device):
            raise Refusal("Unknown device")
        return found

    # -- time and the rest

    def _clock_step(self, words: list[str]) -> str:
        if words:
            (ns,) = _numbers(words, 1)
            if not 0 <= ns <= _NS_MAX:
                raise Refusal("invalid time")
            return f"OK {self.board.clock.step(ns)}"
        return f"OK {self.board.clock.step()}"

    def _clock_set(self, words: list[str]) -> str:
        (ns,) = _numbers(words, 1)
        if not 0 <= ns <= _NS_MAX:
            raise Refusal("invalid time")
        return f"OK {self.board.clock.set(ns)}"

    def _module_load(self, words: list[str]) -> str:
        # There are no binary modules to load.
        return "FAIL"

    def _answer(self, text: str) -> None:
        if self._log is not None:
            self._log("S", text)
        self._send(text + "\n")


def _word(words: list[str], index: int) -> str:
    if index >= len(words):
        raise Refusal("missing argument")
    return words[index]


def _numbers(words: list[str], count: int) -> list[int]:
    numbers = []
    for i in range(count):
        word = _word(words, i)
        try:
            # As strtoull() with base 0: a leading zero means octal.
            if "_" in word:
                raise ValueError(word)
            octal = len(word) > 1 and word[0] == "0" and word.isdigit()
            number = int(word, 8 if octal else 0)
        except ValueError:
            raise Refusal(f"invalid number '{word[:40]}'")
        if not -(1 << 63) <= number < 1 << 64:
            raise Refusal(f"invalid number '{word[:40]}'")
        numbers.append(number if number >= 0 else number + (1 << 64))
    return numbers


def _range(words: list[str]) -> tuple[int, int]:
    address, length = _numbers(words, 2)
    if not 0 < length <= _MAX_TRANSFER:
        raise Refusal("invalid size")
    if address + length > 1 << 64:
        raise Refusal("invalid address")
    return address, length
