"""``isa-debug-exit``: a port whose writing ends the program; how test programs that run as guests tell their result."""

from __future__ import annotations

from qobra.machine.devices import registry
from qobra.machine.isa import IsaDevice
from qobra.machine.vmstate import VmState
from qobra.object.property import Int


@registry.register("isa-debug-exit")
class IsaDebugExit(IsaDevice):
    """The exit status is twice what was written, plus one: a guest cannot feign success."""

    type_name = "isa-debug-exit"
    category = "Misc"

    iobase = Int(0x501, type="uint32")
    iosize = Int(0x02, type="uint32")

    vmstate = VmState()

    def realize(self) -> None:
        self.map_ports(self.iobase, min(max(self.iosize, 1), 0x100), lambda _o, _w: 0, self._write, width=4)

    def _write(self, _offset: int, _width: int, value: int) -> None:
        self.machine.run_state.exit_status = (value << 1 | 1) & 0xFF
        self.machine.request_exit()
