"""The human monitor as it is typed at."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from qobra.machine.machine import Machine
from qobra.qmp import hmp
from qobra.qmp.readline import MAX_HISTORY, MAX_LINE, PROMPT, ReadlineMonitor


class _Terminal:
    """A character device that keeps what is written to it."""

    def __init__(self) -> None:
        self.shown = b""

    def write_all(self, data: bytes) -> None:
        self.shown += data

    def take_fds(self) -> list[int]:
        return []


def _monitor(machine: Machine) -> tuple[ReadlineMonitor, _Terminal]:
    terminal: Any = _Terminal()
    monitor = ReadlineMonitor(machine, terminal)
    monitor.event("opened")
    assert terminal.shown.endswith(PROMPT.encode())
    terminal.shown = b""
    return monitor, terminal


def test_what_is_typed_early_shows_once_the_machine_is_there() -> None:
    machine = Machine()
    try:
        monitor, terminal = _monitor(machine)
        with machine.control:
            machine.setting_up = True
            typing = threading.Thread(target=monitor.receive, args=(b"inf",))
            typing.start()
            typing.join(0.05)
            assert terminal.shown == b""
            machine.setting_up = False
        typing.join(10)
        assert terminal.shown == b"inf"
    finally:
        machine.close()


def test_nothing_shows_where_the_machine_could_not_be_set_up() -> None:
    machine = Machine()
    try:
        monitor, terminal = _monitor(machine)
        machine.setting_up = True
        monitor.receive(b"quit\n")
        assert terminal.shown == b"" and not machine.is_ending
    finally:
        machine.close()


class _Screen(_Terminal):
    """A character device that shows the last row as a terminal would."""

    def __init__(self) -> None:
        super().__init__()
        self.row, self.at = bytearray(), 0

    def write_all(self, data: bytes) -> None:
        super().write_all(data)
        while data:
            if data.startswith(b"\x1b[D"):
                assert self.at, "the cursor is at the left already"
                self.at, data = self.at - 1, data[3:]
            elif data.startswith(b"\x1b[C"):
                assert self.at < len(self.row), "the cursor is at the right already"
                self.at, data = self.at + 1, data[3:]
            elif data.startswith(b"\x1b[K"):
                del self.row[self.at :]
                data = data[3:]
            elif data.startswith(b"\r\n"):
                self.row, self.at, data = bytearray(), 0, data[2:]
            else:
                assert data[0] >= 0x20, data
                self.row[self.at : self.at + 1] = data[:1]
                self.at, data = self.at + 1, data[1:]


class _Typed:
    """A monitor that is typed at, and the lines that it would carry out."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.machine = Machine()
        self.screen = _Screen()
        terminal: Any = self.screen
        self.lines: list[str] = []
        self.answer = ""
        monkeypatch.setattr(hmp, "execute", lambda _machine, line, _monitor: self.lines.append(line) or self.answer)
        self.monitor = ReadlineMonitor(self.machine, terminal)
        self.monitor.event("opened")

    def type(self, data: bytes) -> tuple[bytes, int]:
        """What the row shows after the prompt then, and where the cursor is in it."""
        self.monitor.receive(data)
        assert self.screen.row.startswith(PROMPT.encode())
        return bytes(self.screen.row[len(PROMPT) :]), self.screen.at - len(PROMPT)


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Typed]:
    made = _Typed(monkeypatch)
    yield made
    made.machine.close()


LEFT, RIGHT, UP, DOWN = b"\x1b[D", b"\x1b[C", b"\x1b[A", b"\x1b[B"


@pytest.mark.parametrize(
    ("keys", "row", "cursor"),
    [
        (b"abc", b"abc", 3),
        (b"ac" + LEFT + b"b", b"abc", 2),
        (b"abc" + LEFT * 9 + RIGHT, b"abc", 1),
        (b"abc" + RIGHT, b"abc", 3),
        (b"abc\x7f", b"ab", 2),
        (b"abc\b\b\b\b", b"", 0),
        (b"abc" + LEFT * 2 + b"\b", b"bc", 0),
        (b"abc\x01\x04", b"bc", 0),
        (b"abc\x01\x1b[3~\x1b[3~", b"c", 0),
        (b"abc\x04", b"abc", 3),
        (b"abc\x01\x05", b"abc", 3),
        (b"abc\x1b[H\x1b[F", b"abc", 3),
        (b"abc\x1bOH", b"abc", 0),
        (b"abc\x1b[1~x\x1b[4~y", b"xabcy", 5),
        (b"abc\x15d", b"d", 1),
        (b"ab cd ef\x17", b"ab cd ", 6),
        (b"ab cd  \x17\x17", b"", 0),
        (b"ab cd" + LEFT + b"\x17", b"ab d", 3),
        (b"a\x1bZb\x1b[5~c", b"abc", 3),
        (b"a\x1b[1234567890", b"a7890", 5),
        (b"a\x02\x03\x00b", b"ab", 2),
        (b"x" * 5000, b"x" * MAX_LINE, MAX_LINE),
    ],
)
def test_keys(typed: _Typed, keys: bytes, row: bytes, cursor: int) -> None:
    assert typed.type(keys) == (row, cursor)


def test_what_was_typed_before_comes_back(typed: _Typed) -> None:
    assert typed.type(b"one\rtwo\n  \rone\rthree\r") == (b"", 0)
    assert typed.lines == ["one", "two", "  ", "one", "three"]
    assert [typed.type(UP)[0] for _ in range(4)] == [b"three", b"one", b"two", b"two"]
    assert [typed.type(DOWN)[0] for _ in range(4)] == [b"one", b"three", b"", b""]
    assert typed.type(b"\x1bOA" + LEFT * 2 + b"x") == (b"thrxee", 4)
    typed.type(b"\r")
    assert typed.lines[-1] == "thrxee"
    for number in range(MAX_HISTORY):
        typed.type(b"%d\r" % number)
    for _ in range(MAX_HISTORY + 9):
        row, _cursor = typed.type(UP)
    assert row == b"0"


def test_what_an_answer_says_comes_before_the_next_prompt(typed: _Typed) -> None:
    typed.answer = "first\r\nsecond\r\n"
    typed.screen.shown = b""
    typed.type(b"go\r")
    assert typed.screen.shown == b"go\r\nfirst\r\nsecond\r\n(qemu) "


def test_names_of_commands_are_completed(typed: _Typed) -> None:
    assert typed.type(b"drive_m\t") == (b"drive_mirror ", 13)
    assert typed.type(b"\x15nosuch\t") == (b"nosuch", 6)
    # As far as they are the same; then they are listed.
    assert typed.type(b"\x15dr\t") == (b"drive_", 6)
    typed.screen.shown = b""
    assert typed.type(b"\t") == (b"drive_", 6)
    assert typed.screen.shown == b"\r\ndrive_backup drive_mirror\r\n(qemu) drive_"
    assert typed.type(b"\x15block_r x\x01" + RIGHT * 7 + b"\t") == (b"block_resize  x", 13)


@pytest.mark.parametrize("name", ["Plätze".encode(), b"\xff\xfe", "磁盘".encode()])
def test_octets_of_names_are_what_was_typed(typed: _Typed, name: bytes) -> None:
    assert typed.type(b"change cd " + name) == (b"change cd " + name, 10 + len(name))
    typed.answer = f"cannot open {os.fsdecode(name)}\r\n"
    typed.screen.shown = b""
    typed.type(b"\r")
    assert os.fsencode(typed.lines[-1]) == b"change cd " + name
    assert typed.screen.shown == b"\r\ncannot open " + name + b"\r\n(qemu) "
    assert typed.type(UP) == (b"change cd " + name, 10 + len(name))
    typed.answer = "\ud800\r\n"  # no octet of a name
    assert typed.type(b"\r") == (b"", 0)


def test_the_row_shows_the_line_whatever_is_typed(typed: _Typed) -> None:
    """Against a list of octets and a number."""
    rng = random.Random(7)
    line: list[bytes] = []
    at = 0
    for _ in range(600):
        key = rng.choice([b"a", b"b", b" ", b"\xe4", b"\b", b"\x04", LEFT, LEFT, RIGHT, b"\x01", b"\x05", b"\x17"])
        if key == b"\b":
            del line[max(0, at - 1) : at]
            at = max(0, at - 1)
        elif key == b"\x04":
            del line[at : at + 1]
        elif key in (LEFT, RIGHT):
            at = max(0, min(len(line), at + (1 if key == RIGHT else -1)))
        elif key in (b"\x01", b"\x05"):
            at = 0 if key == b"\x01" else len(line)
        elif key == b"\x17":
            start = at
            while start and line[start - 1] == b" ":
                start -= 1
            while start and line[start - 1] != b" ":
                start -= 1
            del line[start:at]
            at = start
        else:
            line.insert(at, key)
            at += 1
        assert typed.type(key) == (b"".join(line), at)


def test_a_descriptor_that_comes_with_a_line_is_the_first_of_those_sent() -> None:
    machine = Machine()
    try:
        monitor, terminal = _monitor(machine)
        ends = [os.open(os.devnull, os.O_RDONLY) for _ in range(3)]
        terminal.take_fds = lambda: ends
        assert monitor._monitor.take_fd() == ends[0]
        os.close(ends[0])
        for other in ends[1:]:
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(other)
    finally:
        machine.close()
