"""The human monitor on a character device: a prompt, a line to edit, what was typed before."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from qobra.qmp import hmp
from qobra.qmp.version import version_info

if TYPE_CHECKING:
    from qobra.chardev.chardev import Chardev
    from qobra.machine.machine import Machine

PROMPT = "(qemu) "
MAX_LINE = 4095
MAX_HISTORY = 64


class ReadlineMonitor:
    """A front end that runs each line that is typed as an HMP command."""

    hotswap = False

    def __init__(self, machine: Machine, chardev: Chardev) -> None:
        self._machine = machine
        self._chardev = chardev
        self._monitor = hmp.HmpMonitor(self._take_fd)
        self._history = self._monitor.history
        self._reset()

    def _reset(self) -> None:
        self._line: list[str] = []
        """The octets that were typed, each as the character of its number."""
        self._cursor = 0
        self._escape = ""
        self._recalled = len(self._history)

    # -- the chardev's front end

    def can_receive(self) -> int:
        return 1024

    def event(self, name: str) -> None:
        if name == "opened":
            self._reset()
            numbers = version_info()["qemu"]
            version = f"{numbers['major']}.{numbers['minor']}.{numbers['micro']}"
            self._print(f"QEMU {version} monitor - type 'help' for more information\r\n{PROMPT}")

    def receive(self, data: bytes) -> None:
        with self._machine.control:
            # What is typed early shows once the machine is all there, and never where it could not be set up.
            if self._machine.setting_up:
                return
        for character in data.decode("latin-1"):
            if self._escape:
                self._continue_escape(character)
            else:
                self._key(character)

    def _take_fd(self) -> int | None:
        fds = self._chardev.take_fds()
        for other in fds[1:]:
            os.close(other)
        return fds[0] if fds else None

    def _print(self, text: str) -> None:
        """Print what a command says; in its names, octets that are no text are what they were."""
        try:
            self._chardev.write_all(text.encode("utf-8", "surrogateescape"))
        except UnicodeEncodeError:
            self._chardev.write_all(text.encode("utf-8", "replace"))

    def _show(self, octets: str) -> None:
        """Print a part of the line as it was typed."""
        self._chardev.write_all(octets.encode("latin-1"))

    # -- keys

    def _key(self, key: str) -> None:
        if key in "\r\n":
            self._enter()
        elif key == "\x1b":
            self._escape = key
        elif key in "\x7f\b":
            self._delete(self._cursor - 1)
        elif key == "\x04":
            self._delete(self._cursor)
        elif key == "\x01":
            self._move(0)
        elif key == "\x05":
            self._move(len(self._line))
        elif key == "\x15":
            self._replace("")
        elif key == "\x17":
            self._delete_word()
        elif key == "\t":
            self._complete()
        elif key >= " " and len(self._line) < MAX_LINE:
            self._line.insert(self._cursor, key)
            self._cursor += 1
            tail = "".join(self._line[self._cursor - 1 :])
            self._show(tail + "\x1b[D" * (len(tail) - 1))

    def _continue_escape(self, key: str) -> None:
        # ESC [ digits letter, or ESC letter
        self._escape += key
        if self._escape in ("\x1b[", "\x1bO") or (key.isdigit() and len(self._escape) < 8):
            return
        sequence, self._escape = self._escape[1:], ""
        if sequence in ("[A", "OA"):
            self._recall(self._recalled - 1)
        elif sequence in ("[B", "OB"):
            self._recall(self._recalled + 1)
        elif sequence in ("[C", "OC"):
            self._move(self._cursor + 1)
        elif sequence in ("[D", "OD"):
            self._move(self._cursor - 1)
        elif sequence in ("[H", "OH", "[1~"):
            self._move(0)
        elif sequence in ("[F", "OF", "[4~"):
            self._move(len(self._line))
        elif sequence == "[3~":
            self._delete(self._cursor)

    def _move(self, to: int) -> None:
        to = max(0, min(to, len(self._line)))
        step = "\x1b[C" if to > self._cursor else "\x1b[D"
        self._show(step * abs(to - self._cursor))
        self._cursor = to

    def _delete(self, index: int) -> None:
        if 0 <= index < len(self._line):
            line = self._line[:index] + self._line[index + 1 :]
            self._redraw(line, index)

    def _delete_word(self) -> None:
        before = "".join(self._line[: self._cursor]).rstrip()
        start = before.rfind(" ") + 1
        self._redraw(self._line[:start] + self._line[self._cursor :], start)

    def _replace(self, text: str) -> None:
        self._redraw(list(text), len(text))

    def _redraw(self, line: list[str], cursor: int) -> None:
        """Show ``line`` instead of the present one."""
        self._show("\x1b[D" * self._cursor + "".join(line) + "\x1b[K" + "\x1b[D" * (len(line) - cursor))
        self._line, self._cursor = line, cursor

    def _recall(self, index: int) -> None:
        if 0 <= index <= len(self._history):
            self._recalled = index
            self._replace(_octets(self._history[index]) if index < len(self._history) else "")

    def _complete(self) -> None:
        typed = "".join(self._line[: self._cursor])
        names = [name for name in hmp.commands(self._machine) if name.startswith(typed)]
        if not names:
            return
        common = names[0]
        for name in names[1:]:
            while not name.startswith(common):
                common = common[:-1]
        if len(names) == 1:
            common += " "
        if len(common) > len(typed):
            rest = self._line[self._cursor :]
            self._redraw(list(common) + rest, len(common))
        else:
            self._show("\r\n" + " ".join(names) + f"\r\n{PROMPT}" + "".join(self._line))
            self._cursor = len(self._line)

    def _enter(self) -> None:
        line = "".join(self._line).encode("latin-1").decode("utf-8", "surrogateescape")
        self._show("\r\n")
        if line.strip():
            if line in self._history:
                self._history.remove(line)
            self._history.append(line)
            del self._history[:-MAX_HISTORY]
        self._reset()
        output = hmp.execute(self._machine, line, self._monitor)
        # The program that was told to end asks for nothing more.
        self._print(output + ("" if self._machine.wait_for_exit(0) else PROMPT))


def _octets(text: str) -> str:
    """The UTF-8 of ``text``, each octet as the character of its number."""
    return text.encode("utf-8", "surrogateescape").decode("latin-1")
