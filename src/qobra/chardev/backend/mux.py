"""``mux``: several front ends on one character device, switched by the user with Ctrl-A c."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from qobra.chardev.chardev import UNLIMITED, Chardev, FrontEnd, registry
from qobra.errors import QobraError

if TYPE_CHECKING:
    from qobra.machine.machine import Machine

MAX_FRONT_ENDS = 4
_HELP = """
{0} h    print this help
{0} x    exit
{0} s    not here: the disks are always written back
{0} t    toggle console timestamps
{0} b    send break
{0} c    switch between console and monitor
{0} {0}  send {0}
"""


@registry.register("mux")
class MuxChardev(Chardev):
    """Shares the device ``chardev`` among up to four front ends: all write to it, one has the input."""

    kind = "mux"
    hotswap = False

    def __init__(self, machine: Machine, id: str, options: dict[str, Any]) -> None:
        super().__init__(machine, id, options)
        self._front_ends: list[FrontEnd] = []
        self._focus = -1
        self._escaped = False
        self._timestamps_from: float | None = None
        self._at_line_start = True

    def start(self) -> None:
        name = self.options["chardev"]
        base = self.machine.chardevs.find(name)
        if base is None:
            raise QobraError(f"mux: base chardev {name} not found")
        self._base = base
        self._frontend = _BaseFrontEnd(self)
        base.attach(self._frontend)
        base.set_frontend_open(False)  # until somebody is there behind the mux

    def stop(self) -> None:
        if "_base" in self.__dict__ and self._base.frontend is self._frontend:
            self._base.detach()

    # -- front ends

    def attach(self, frontend: FrontEnd) -> None:
        with self._state:
            if len(self._front_ends) >= MAX_FRONT_ENDS:
                raise QobraError(f"too many uses of multiplexed chardev '{self.id}' (maximum is {MAX_FRONT_ENDS})")
            if self.is_open:
                frontend.event("opened")
            self._front_ends.append(frontend)
            self.set_frontend_open(True)
            self._set_focus(len(self._front_ends) - 1)
        self.accept_input()

    def detach(self) -> None:
        if self._front_ends:
            self._front_ends.pop()
        self._set_focus(len(self._front_ends) - 1)
        self.set_frontend_open(bool(self._front_ends))

    def set_frontend_open(self, is_open: bool) -> None:
        super().set_frontend_open(is_open)
        self._base.set_frontend_open(is_open)

    @property
    def available(self) -> bool:
        return True  # too many are refused in its own words

    @property
    def busy(self) -> bool:
        return True  # a mux cannot be removed, as in QEMU

    def _set_focus(self, index: int) -> None:
        self._focus = index
        self.frontend = self._front_ends[index] if index >= 0 else None

    def set_open(self, is_open: bool) -> None:
        with self._state:
            if self.is_open != is_open:
                self.is_open = is_open
                for frontend in tuple(self._front_ends):
                    frontend.event("opened" if is_open else "closed")

    # -- input

    def take(self, data: bytes) -> None:
        """Input from the base: for the front end that has the focus, but for escapes."""
        escape = self.machine.chardevs.escape
        if not self._escaped and escape not in data:
            self.deliver(data)
            return
        plain = bytearray()
        for code in data:
            if self._escaped:
                self._escaped = False
                if code == escape:
                    plain.append(code)
                    continue
                if plain:
                    self.deliver(bytes(plain))
                    plain.clear()
                self._command(chr(code).lower())
            elif code == escape:
                self._escaped = True
            else:
                plain.append(code)
        if plain:
            self.deliver(bytes(plain))

    def _command(self, key: str) -> None:
        if key in ("h", "?"):
            self._base.write_all(self._help())
        elif key == "x":
            self._base.write_all(b"QEMU: Terminated\n\r")
            self.machine.control.post(self.machine.run_state.request_quit)
        elif key == "b":
            self.deliver_event("break")
        elif key == "c" and self._front_ends:
            self._set_focus((self._focus + 1) % len(self._front_ends))
        elif key == "t":
            self._timestamps_from = None if self._timestamps_from is not None else time.monotonic()
            self._at_line_start = True

    def _help(self) -> bytes:
        escape = self.machine.chardevs.escape
        shown = f"C-{chr(0x60 + escape)}" if 1 <= escape <= 26 else f"{escape:#04x}"
        return _HELP.format(shown).replace("\n", "\n\r").encode()

    # -- output

    def transmit(self, data: bytes) -> int:
        if self._timestamps_from is None:
            return self._base.write(data)
        self._base.write_all(self._stamped(data))
        return len(data)

    def _stamped(self, data: bytes) -> bytes:
        stamped = bytearray()
        for line in data.splitlines(keepends=True):
            if self._at_line_start:
                elapsed = time.monotonic() - (self._timestamps_from or 0)
                minutes, seconds = divmod(elapsed, 60)
                hours, minutes = divmod(int(minutes), 60)
                stamped += b"[%02d:%02d:%06.3f] " % (hours, minutes, seconds)
            stamped += line
            self._at_line_start = line.endswith(b"\n")
        return bytes(stamped)

    def wait_writable(self, timeout: float | None = None) -> bool:
        return self._base.wait_writable(timeout)

    def send_break(self) -> None:
        self._base.send_break()


class _BaseFrontEnd:
    """The mux as the base device's front end."""

    hotswap = False

    def __init__(self, mux: MuxChardev) -> None:
        self._mux = mux

    def receive(self, data: bytes) -> None:
        self._mux.take(data)

    def event(self, name: str) -> None:
        if name in ("break", "ended", "ending"):
            self._mux.deliver_event(name)
        else:
            self._mux.set_open(name == "opened")

    def can_receive(self) -> int:
        # Escapes must get through to a front end that takes nothing: whatever waits, waits in `deliver`.
        return UNLIMITED
