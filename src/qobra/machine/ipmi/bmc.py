"""What a management controller and the interface to its host have to do with each other.

A request is the network function with the logical unit, the command, and data; a response has a completion code before
its data (IPMI 2.0, 5.1, 5.2).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from qobra.errors import QobraError
from qobra.machine.qdev import Device
from qobra.machine.vmstate import VmState
from qobra.object.property import Int, Link

if TYPE_CHECKING:
    from qobra.machine.machine import Machine

MAX_MESSAGE = 300
"""The longest request or response, in bytes."""
RESPONSE = 0x04
"""Set in the network function of a response."""

OK, BUSY = 0x00, 0xC0
INVALID_COMMAND, INVALID_LUN, TIMEOUT, OUT_OF_SPACE, RESERVATION_LOST = 0xC1, 0xC2, 0xC3, 0xC4, 0xC5
WRONG_LENGTH, TOO_LONG, OUT_OF_RANGE, CANNOT_RETURN, NOT_PRESENT, INVALID_DATA = 0xC7, 0xC8, 0xC9, 0xCA, 0xCB, 0xCC
STARTING, NOT_NOW = 0xD2, 0xD5


class Port:
    """What an interface shows its host. The controller drives it; it has power though the host is reset."""

    def set_attention(self, on: bool, interrupt: bool) -> None:
        """The controller wants to be asked, or no longer; ``interrupt``: with an interrupt."""

    def enable_interrupts(self, on: bool) -> None:
        """Whether the interface may interrupt at all."""

    def reset(self) -> None:
        """As after power-on."""


class RegisterPort(Port):
    """An interface of registers, for one request at a time. ``interrupt`` sets the level of its line."""

    def __init__(self, bmc: Bmc, interrupt: Callable[[int], None]) -> None:
        self._bmc = bmc
        self._interrupt = interrupt
        self._turn = 0
        """A response to an earlier request than this belongs to nobody."""
        self._interrupts = False
        self.reset()

    def enable_interrupts(self, on: bool) -> None:
        self._interrupts = on

    def read(self, register: int) -> int:
        """The byte in a register."""
        raise NotImplementedError

    def write(self, register: int, value: int) -> None:
        """Write a byte to a register."""
        raise NotImplementedError


class Bmc(Device):
    """A management controller: :meth:`handle` answers a host's requests, one at a time."""

    type_name = "ipmi-bmc"
    abstract = True
    category = "Misc"
    architectures = frozenset(("x86_64",))
    hotpluggable_class = False

    slave_addr = Int(0x20, type="uint8", name="slave_addr")

    port: Port | None = None

    vmstate = VmState(partial=True)

    def handle(self, request: bytes, respond: Callable[[bytes], None]) -> None:
        """Answer ``request``: ``respond`` is called once, now or later."""
        raise NotImplementedError

    def attach(self, port: Port) -> None:
        """Serve the host behind ``port``."""
        self.port = port

    def detach(self) -> None:
        """Serve nobody any more."""
        self.port = None

    def set_attention(self, on: bool, interrupt: bool) -> None:
        """See :meth:`Port.set_attention`."""
        if self.port is not None:
            self.port.set_attention(on, interrupt)

    def enable_interrupts(self, on: bool) -> None:
        """See :meth:`Port.enable_interrupts`."""
        if self.port is not None:
            self.port.enable_interrupts(on)


def failure(request: bytes, code: int) -> bytes:
    """The response to a request that is not carried out."""
    head = request[:2].ljust(2, b"\0")
    return bytes((head[0] | RESPONSE, head[1], code))


# -- what a controller does to its host


def power_off(machine: Machine) -> None:
    """Switch the host off."""
    machine.run_state.request_shutdown("guest-shutdown")


def reset_host(machine: Machine) -> None:
    """Reset the host."""
    machine.run_state.request_reset("guest-reset")


def shut_down_gracefully(machine: Machine) -> None:
    """Ask the host's operating system to end."""
    machine.run_state.request_powerdown()


def interrupt_host(machine: Machine) -> None:
    """Send a non-maskable interrupt."""
    if machine.board is not None:
        machine.board.inject_nmi()


# -- the host's end


class Interface(Device):
    """A device by which the host reaches a controller. Models call :meth:`take_controller` as they are realized."""

    abstract = True
    category = "Misc"
    hotpluggable_class = False

    bmc = Link("ipmi-bmc", name="bmc")

    controller: Bmc

    def take_controller(self, port: Port) -> None:
        """Have the controller that ``bmc`` names behind ``port``. Raises QobraError."""
        if self.bmc is None:
            raise QobraError("IPMI device requires a bmc attribute to be set")
        if self.bmc.port is not None:
            raise QobraError("BMC is already in use")
        self.controller = self.bmc
        self.controller.attach(port)

    def unrealize(self) -> None:
        self.controller.detach()
        super().unrealize()
