"""``isa-parallel``: a parallel port of a PC, with a printer behind it that takes everything at once.

The registers are those of the IBM PC's printer adapter (Technical Reference, 1981) with the direction bit of the PS/2.
"""

from __future__ import annotations

from qobra.chardev.backend.parallel import ParallelChardev
from qobra.errors import QobraError
from qobra.machine.devices import registry
from qobra.machine.isa import IsaDevice
from qobra.machine.serial16550 import find_chardev
from qobra.machine.vmstate import VmState, flag, u8
from qobra.object.property import Int, String

_MAX_PORTS = 3
_BASES = (0x378, 0x278, 0x3BC)
_UNSET = 0xFFFFFFFF

_STATUS_READY, _STATUS_NO_ACK, _STATUS_ONLINE, _STATUS_NO_ERROR, _STATUS_TIMEOUT = 0x80, 0x40, 0x10, 0x08, 0x01
_IDLE = _STATUS_READY | _STATUS_NO_ACK | _STATUS_ONLINE | _STATUS_NO_ERROR
_STROBE, _INIT, _SELECT, _INTERRUPT, _REVERSE = 0x01, 0x04, 0x08, 0x10, 0x20
_ALWAYS_SET = 0xC0


@registry.register("isa-parallel")
class IsaParallel(IsaDevice):
    """Data, status and control at three ports; what is strobed goes to a character device.

    With a chardev ``parallel`` behind it, the registers are those of the host's port.
    """

    type_name = "isa-parallel"
    interfaces = ("acpi-dev-aml-interface",)
    category = "Input"

    index = Int(_UNSET, type="uint32")
    iobase = Int(_UNSET, type="uint32")
    irq = Int(7, type="uint32")
    chardev = String(type="str", description="ID of a chardev to use as a backend")

    hotswap = False
    vmstate = VmState(u8("_data", "_status", "_control"), flag("_pending"))

    def realize(self) -> None:
        backend = find_chardev(self.board, self.chardev, self.type_name)
        if backend is None:
            raise QobraError("Can't create parallel device, empty char device")
        if self.index == _UNSET:
            on_bus = self.bus.devices if self.bus is not None else []
            used = {each.index for each in on_bus if isinstance(each, IsaParallel) and each.realized}
            self.values["index"] = next((n for n in range(_MAX_PORTS) if n not in used), _MAX_PORTS)
        if self.index >= _MAX_PORTS:
            raise QobraError(f"Max. supported number of parallel ports is {_MAX_PORTS}.")
        if self.iobase == _UNSET:
            self.values["iobase"] = _BASES[self.index]
        self._line = self.line(self.irq)
        self._backend = backend
        self._host = backend if isinstance(backend, ParallelChardev) else None
        self.reset()
        backend.attach(self)
        self.map_ports(self.iobase, 8, self._read, self._write, name="parallel")

    def unrealize(self) -> None:
        self._backend.detach()
        super().unrealize()

    def reset(self) -> None:
        self._data = 0xFF
        self._status = _IDLE | _STATUS_TIMEOUT
        self._control = _SELECT | _INIT | _ALWAYS_SET
        self._pending = False
        self._line.set(0)

    def _read(self, offset: int, _width: int) -> int:
        if self._host is not None:
            return (
                (self._host.data, self._host.status, self._host.control | _ALWAYS_SET)[offset] if offset < 3 else 0xFF
            )
        if offset == 0:
            return 0xFF if self._control & _REVERSE else self._data
        if offset == 1:
            return self._read_status()
        return self._control if offset == 2 else 0xFF

    def _read_status(self) -> int:
        status = self._status
        self._signal(False)
        if not status & _STATUS_READY and not self._control & _STROBE:
            # The printer acknowledges in two steps, each of which is seen once.
            if status & _STATUS_NO_ACK:
                self._status &= ~_STATUS_NO_ACK
            else:
                self._status |= _STATUS_NO_ACK | _STATUS_READY
        return status

    def _write(self, offset: int, _width: int, value: int) -> None:
        if offset == 0:
            self._data = value
            if self._host is not None:
                self._host.data = value
        elif offset == 2:
            before, self._control = self._control, value | _ALWAYS_SET
            if self._host is not None:
                self._host.set_reverse(bool(value & _REVERSE))
                self._host.control = value
            else:
                self._control_written(before, value)

    def _control_written(self, before: int, value: int) -> None:
        if not value & _INIT:
            self._status = _IDLE
        elif value & _SELECT:
            if value & _STROBE:
                self._status &= ~_STATUS_READY
                if not before & _STROBE:
                    self._backend.write_all(bytes((self._data,)))
            elif before & _INTERRUPT:
                self._signal(True)

    def _signal(self, pending: bool) -> None:
        if pending != self._pending:
            self._pending = pending
            self._line.set(int(pending))

    # -- front end of the character device

    def can_receive(self) -> int:
        """Nothing: printers do not answer."""
        return 0

    def receive(self, data: bytes) -> None:
        """Never called, as there is no room."""

    def event(self, name: str) -> None:
        """Who listens does not matter to a printer's cable."""
