"""``none``: no devices, no memory, and a CPU if one is named; for clients that only ask what there could be."""

from __future__ import annotations

from typing import Any

from qobra.machine.board import Board, boards


@boards.register("none")
class NoneBoard(Board):
    """An empty machine."""

    type_name = "none-machine"
    description = "empty machine"
    machine_name = "none"
    architectures = frozenset(("x86_64", "riscv64"))
    default_ram_id = "ram"
    default_ram_size = 0
    has_ports = False

    def cpu_suffix(self) -> str:
        return "x86_64-cpu" if "x86_64" in self.tree.machine.capabilities else "riscv-cpu"

    def build(self) -> None:
        if self.cpu_type:  # only if the user names one
            cls: Any = self.tree.find_type(self.cpu_type)
            cpu = cls(self.tree)
            cpu.index = 0
            self.place(cpu)
            if cpu not in self.cpus:
                self.cpus.append(cpu)
