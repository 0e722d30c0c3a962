"""``isa-debugcon``: a port whose bytes go to a character device, as the emulator Bochs has it for firmware."""

from __future__ import annotations

from qobra.errors import QobraError
from qobra.machine.devices import registry
from qobra.machine.isa import IsaDevice
from qobra.machine.serial16550 import find_chardev
from qobra.machine.vmstate import VmState
from qobra.object.property import Int, String


@registry.register("isa-debugcon")
class IsaDebugConsole(IsaDevice):
    """What is written goes out; what is read is ``readback``, by which firmware knows that the port is there."""

    type_name = "isa-debugcon"
    category = "Misc"

    iobase = Int(0xE9, type="uint32")
    chardev = String(type="str", description="ID of a chardev to use as a backend")
    readback = Int(0xE9, type="uint32")

    hotswap = False
    vmstate = VmState()

    def realize(self) -> None:
        backend = find_chardev(self.board, self.chardev, self.type_name)
        if backend is None:
            raise QobraError("Can't create debugcon device, empty char device")
        self._backend = backend
        backend.attach(self)
        self.map_ports(self.iobase, 1, lambda _o, _w: self.readback & 0xFF, self._write)

    def unrealize(self) -> None:
        self._backend.detach()
        super().unrealize()

    def _write(self, _offset: int, _width: int, value: int) -> None:
        self._backend.write_all(bytes((value & 0xFF,)))

    # -- front end of the character device

    def can_receive(self) -> int:
        """Nothing: the port is for output."""
        return 0

    def receive(self, data: bytes) -> None:
        """Never called, as there is no room."""

    def event(self, name: str) -> None:
        """Who listens makes no difference."""
