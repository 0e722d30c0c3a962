"""``user``: a network of the guest's own, with DHCP, DNS and TFTP, that reaches the outside by ordinary sockets."""

from __future__ import annotations

import os
import select
import threading
from typing import TYPE_CHECKING

from qobra.chardev.options import parse_short
from qobra.errors import QobraError
from qobra.net import slirp, user_options
from qobra.net.forwarding import GuestForward, HostEnd, guest_forward, host_forward
from qobra.net.netdev import Netdev, registry

if TYPE_CHECKING:
    from ipaddress import IPv4Address

    from qobra.chardev.chardev import Chardev

_POLLED = (
    (slirp.POLL_IN, select.POLLIN),
    (slirp.POLL_OUT, select.POLLOUT),
    (slirp.POLL_PRI, select.POLLPRI),
    (slirp.POLL_ERR, select.POLLERR),
    (slirp.POLL_HUP, select.POLLHUP),
)
_COMMAND = "cmd:"


@registry.register("user")
class UserNetdev(Netdev):
    """The guest's packets are served where they are sent; a thread waits for the outside and delivers what it says."""

    kind = "user"

    _opened: slirp.Stack | None = None

    def start(self) -> None:
        options = self.options
        self._chardevs: list[Chardev] = []
        self._config = user_options.read(options)
        if "smb" in options:
            raise QobraError("directories are not shared by SMB; use tftp=, or guestfwd= to a server of yours")
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            self._opened = slirp.Stack(self._config, self._woken)
            for each in reversed(options.get("hostfwd", ())):
                self.forward(each["str"])
            for each in reversed(options.get("guestfwd", ())):
                self._lead_out(guest_forward(each["str"]), each["str"])
        except BaseException:
            self.close()
            os.close(self._wake)
            raise
        threading.Thread(target=self._run, name=f"net {self.id}", daemon=True).start()

    def close(self) -> None:
        stack = self._opened
        if stack is None:
            return
        with stack.lock:
            if stack.closed:
                return
            stack.close()
            self._woken()
        for chardev in self._chardevs:
            chardev.detach()
            self.machine.chardevs.remove(chardev.id)

    @property
    def _stack(self) -> slirp.Stack:
        assert self._opened is not None
        return self._opened

    def describe(self) -> str:
        restricted = "on" if self._config.restricted else "off"
        return f"user,net={self._config.network},restrict={restricted}"

    # -- packets

    def send(self, packet: bytes) -> None:
        stack = self._stack
        with stack.lock:
            if stack.closed:
                return
            stack.input(packet)
            self._woken()

    def _woken(self) -> None:
        # With the lock held, as is whoever closes the stack: once it is closed the descriptor may be another's.
        os.eventfd_write(self._wake, 1)

    def _run(self) -> None:
        stack = self._stack
        try:
            while True:
                with stack.lock:
                    if stack.closed:
                        return
                    wanted, timeout_ms = stack.wanted()
                ready = self._wait(wanted, timeout_ms)
                with stack.lock:
                    if stack.closed:
                        return
                    stack.turn(ready)
                while stack.outgoing:
                    self.deliver(stack.outgoing.popleft())
                for chardev in self._chardevs:
                    chardev.accept_input()
        finally:
            os.close(self._wake)

    def _wait(self, wanted: list[tuple[int, int]], timeout_ms: int | None) -> list[int]:
        masks: dict[int, int] = {self._wake: select.POLLIN}
        for fd, events in wanted:
            masks[fd] = masks.get(fd, 0) | sum(bit for flag, bit in _POLLED if events & flag)
        poll = select.poll()
        for fd, mask in masks.items():
            poll.register(fd, mask)
        ready = dict(poll.poll(timeout_ms))
        if self._wake in ready:
            os.eventfd_read(self._wake)
        return [sum(flag for flag, bit in _POLLED if ready.get(fd, 0) & bit) for fd, _events in wanted]

    # -- forwarding

    def forward(self, rule: str) -> None:
        """Add a rule of ``hostfwd``. Raises QobraError."""
        (udp, host, host_port), guest, guest_port = host_forward(rule)
        stack = self._stack
        with stack.lock:
            added = stack.add_host_forward(udp, host, host_port, guest or self._config.dhcp_start, guest_port)
        if not added:
            raise QobraError(f"Could not set up host forwarding rule '{rule}'")

    def forward_no_more(self, end: HostEnd) -> bool:
        """Remove the rule for that port of the host's; False if there is none."""
        stack = self._stack
        with stack.lock:
            return stack.remove_host_forward(*end)

    def connections(self) -> str:
        """The table of connections, for people."""
        stack = self._stack
        with stack.lock:
            return stack.connections()

    def _lead_out(self, forward: GuestForward, rule: str) -> None:
        stack = self._stack
        address, port, target = forward
        if target.startswith(_COMMAND):
            with stack.lock:
                added = stack.add_command(target[len(_COMMAND) :], address, port)
        else:
            id = f"guestfwd.tcp.{port}"
            chardev = self.machine.chardevs.create(id, parse_short(target))
            self._chardevs.append(chardev)
            with stack.lock:
                added = stack.add_guest_forward(chardev.write, address, port)
            chardev.attach(_GuestEnd(stack, address, port))
        if not added:
            raise QobraError(f"Conflicting/invalid host:port in guest forwarding rule '{rule}'")


class _GuestEnd:
    """What a chardev says goes to the guest, as fast as its connection takes it."""

    hotswap = False

    def __init__(self, stack: slirp.Stack, address: IPv4Address, port: int) -> None:
        self._stack = stack
        self._address = address
        self._port = port

    def can_receive(self) -> int:
        with self._stack.lock:
            return self._stack.room(self._address, self._port)

    def receive(self, data: bytes) -> None:
        with self._stack.lock:
            self._stack.answer(self._address, self._port, data)

    def event(self, name: str) -> None:
        """Peers of the chardev come and go; the guest's connections are its own affair."""
