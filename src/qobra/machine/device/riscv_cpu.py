"""CPUs (harts) of RISC-V."""

from __future__ import annotations

from qobra.machine.cpu import Cpu
from qobra.machine.devices import registry
from qobra.machine.vmstate import VmState, u32


class RiscvCpu(Cpu):
    """A hart. The interrupt controllers drive its inputs (bits of mip: 3 software, 7 timer, 9 and 11 external)."""

    type_name = "riscv-cpu"
    architectures = frozenset(("riscv64",))
    abstract = True
    architecture = "riscv64"
    base_architecture = "riscv"
    model = ""
    isa = ""
    """What it can execute, as the device tree names it."""

    vmstate = VmState(u32("pending"))

    def realize(self) -> None:
        super().realize()
        self.pending = 0
        self.add_inputs(self._set_pending, 16)

    def properties_of_place(self) -> dict[str, int]:
        node = self.board.numa.node_of_cpu(self.index)
        return {"core-id": self.index} | ({} if node is None else {"node-id": node})

    def _set_pending(self, number: int, level: int) -> None:
        if level:
            self.pending |= 1 << number
        else:
            self.pending &= ~(1 << number)


@registry.register("rv64-riscv-cpu")
class Rv64Cpu(RiscvCpu):
    """A 64-bit hart."""

    type_name = "rv64-riscv-cpu"
    model = "rv64"
    isa = "rv64imafdch_zicsr_zifencei_zihintpause_zba_zbb_zbc_zbs_sstc"
