"""The test finisher of RISC-V boards, by which a guest powers off or resets."""

from __future__ import annotations

from qobra.machine.devices import registry
from qobra.machine.memory import Registers
from qobra.machine.qdev import SysBusDevice
from qobra.machine.vmstate import VmState

_FAIL, _PASS, _RESET = 0x3333, 0x5555, 0x7777


@registry.register("riscv.sifive.test")
class SifiveTest(SysBusDevice):
    """A write of a code ends the machine: passed, failed (with a status above it), or reset."""

    type_name = "riscv.sifive.test"
    architectures = frozenset(("riscv64",))
    base = 0

    vmstate = VmState()

    def realize(self) -> None:
        region = Registers("riscv.sifive.test", 0x1000, lambda _o, _w: 0, self._write, valid=(2, 4))
        self._mapping = self.board.memory.map(self.base, region)

    def unrealize(self) -> None:
        self._mapping.remove()

    def _write(self, offset: int, _width: int, value: int) -> None:
        if offset:
            return
        state = self.machine.run_state
        code, status = value & 0xFFFF, value >> 16 & 0xFFFF
        if code == _RESET:
            state.request_reset("guest-reset")
        elif code in (_PASS, _FAIL):
            # A failure is the program's exit status, as test benches want it.
            state.exit_status = 0 if code == _PASS else (status & 0xFF or 1)
            state.request_shutdown("guest-shutdown" if code == _PASS else "guest-panic")
