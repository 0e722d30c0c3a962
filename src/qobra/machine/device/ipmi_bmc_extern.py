"""``ipmi-bmc-extern``: a management controller in another process, OpenIPMI's ``ipmi_sim``, at a character device."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from qobra.errors import QobraError
from qobra.machine.devices import registry
from qobra.machine.ipmi import bmc as ipmi
from qobra.machine.ipmi import framing
from qobra.machine.serial16550 import find_chardev
from qobra.machine.vmstate import VmState
from qobra.object.property import String

if TYPE_CHECKING:
    from qobra.chardev.chardev import Chardev

_TIMEOUT_NS = 4 * 10**9
_ROOM = 4096
"""Bytes that are taken in one piece."""


@registry.register("ipmi-bmc-extern")
class IpmiBmcExtern(ipmi.Bmc):
    """Requests go there, responses and orders come back."""

    type_name = "ipmi-bmc-extern"
    hotswap = True

    chardev = String(type="str", description="ID of a chardev to use as a backend")

    vmstate = VmState()

    def realize(self) -> None:
        if not self.chardev:
            raise QobraError("IPMI external bmc requires chardev attribute")
        chardev = find_chardev(self.board, self.chardev, self.type_name)
        assert chardev is not None
        self._line: Chardev = chardev
        self._receiver = framing.Receiver()
        self._connected = False
        self._sequence = 0
        self._respond: Callable[[bytes], None] | None = None
        self._request = b""
        self._deadline_ns = 0
        self._is_watched = False
        self._reset_handler = self.machine.run_state.on_reset(self._host_reset)
        chardev.attach(self)

    def unrealize(self) -> None:
        self._reset_handler()
        self._respond = None
        self._line.detach()

    @property
    def working(self) -> bool:
        return self._respond is not None

    # -- requests

    def handle(self, request: bytes, respond: Callable[[bytes], None]) -> None:
        if not self._connected:
            respond(ipmi.failure(request, ipmi.STARTING))
            return
        self._sequence = self._sequence + 1 & 0xFF
        self._respond, self._request = respond, request
        self._deadline_ns = self.machine.control.clock.monotonic_ns() + _TIMEOUT_NS
        if not self._is_watched:
            self._watch()
        self._send(framing.message(self._sequence, request))

    def _watch(self) -> None:
        # One timer serves all requests, however fast they follow one another.
        control = self.machine.control
        left_ns = self._deadline_ns - control.clock.monotonic_ns()
        self._is_watched = self._respond is not None and left_ns > 0
        if self._is_watched:
            control.call_later(left_ns, self._watch)
        elif self._respond is not None:
            self._answer(ipmi.failure(self._request, ipmi.TIMEOUT))

    def _answer(self, response: bytes) -> None:
        respond, self._respond = self._respond, None
        if respond is not None:
            respond(response)

    def _send(self, data: bytes) -> None:
        if self._line.write(data) < len(data) and self._respond is not None:
            self._answer(ipmi.failure(self._request, ipmi.TIMEOUT))  # it takes nothing any more

    def _order(self, *content: int) -> None:
        self._send(framing.frame(bytes(content), framing.ORDER_END))

    def _host_reset(self) -> None:
        if self._connected:
            self._order(framing.RESET)

    # -- as the front end of the character device, in its thread

    def can_receive(self) -> int:
        """There is always room."""
        return _ROOM

    def receive(self, data: bytes) -> None:
        """Something came: whoever sends waits until it is taken, so that nothing piles up."""
        control = self.machine.control
        with control:
            control.serve()  # that the other process came is told first
            self._take(data)

    def event(self, name: str) -> None:
        """The other process came or left."""
        if name in ("opened", "closed"):
            self.machine.control.post(self._changed, name == "opened")

    # -- in the strand

    def _changed(self, connected: bool) -> None:
        self._connected = connected
        self._receiver.clear()
        if connected:
            self._order(framing.VERSION, framing.PROTOCOL_VERSION)
            self._order(framing.CAPABILITIES, framing.ALL_CAPABILITIES)
        elif self._respond is not None:
            self._answer(ipmi.failure(self._request, ipmi.STARTING))

    def _take(self, data: bytes) -> None:
        for end, content in self._receiver.take(data):
            if end == framing.ORDER_END:
                self._obey(content[0])
            elif len(content) >= 4 and content[0] == self._sequence and self._fits(content[1:]):
                self._answer(content[1 : 1 + ipmi.MAX_MESSAGE])

    def _fits(self, response: bytes) -> bool:
        request = self._request
        return len(request) >= 2 and response[:2] == ipmi.failure(request, ipmi.OK)[:2]

    def _obey(self, order: int) -> None:
        machine = self.machine
        if order == framing.NO_ATTENTION:
            self.set_attention(False, False)
        elif order in (framing.ATTENTION, framing.ATTENTION_INTERRUPT):
            self.set_attention(True, order == framing.ATTENTION_INTERRUPT)
        elif order in (framing.ENABLE_IRQ, framing.DISABLE_IRQ):
            self.enable_interrupts(order == framing.ENABLE_IRQ)
        elif order == framing.POWER_OFF:
            ipmi.power_off(machine)
        elif order == framing.RESET:
            ipmi.reset_host(machine)
        elif order == framing.SEND_NMI:
            ipmi.interrupt_host(machine)
        elif order == framing.GRACEFUL_SHUTDOWN:
            ipmi.shut_down_gracefully(machine)
