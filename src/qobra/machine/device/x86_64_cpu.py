"""CPUs of x86-64: the models that can be named, and where each CPU sits."""

from __future__ import annotations

from typing import Any

from qobra.machine.cpu import Cpu
from qobra.machine.devices import registry
from qobra.machine.irq import Line
from qobra.machine.vmstate import VmState
from qobra.object.property import Int


class X86Cpu(Cpu):
    """A CPU of a PC. Its interrupt input is there for the controllers to drive."""

    type_name = "x86_64-cpu"
    abstract = True
    architecture = "x86_64"
    legacy_architecture = "x86"
    pluggable = True
    model = ""

    apic_id = Int(0xFFFFFFFF, type="uint32", name="apic-id")
    thread_number = Int(-1, type="int32", name="thread-id")
    core_number = Int(-1, type="int32", name="core-id")
    die_number = Int(-1, type="int32", name="die-id")
    socket_number = Int(-1, type="int32", name="socket-id")

    vmstate = VmState()

    def realize(self) -> None:
        if self.index < 0:
            board: Any = self.board
            board.place_cpu(self)
        super().realize()
        self.interrupt = Line()
        self.board.cpus.append(self)

    def unrealize(self) -> None:
        if self in self.board.cpus:
            self.board.cpus.remove(self)

    def properties_of_place(self) -> dict[str, int]:
        return self.board.place_of_cpu(self.index)


@registry.register("qemu64-x86_64-cpu")
class Qemu64Cpu(X86Cpu):
    """What every x86-64 guest can count on."""

    type_name = "qemu64-x86_64-cpu"
    model = "qemu64"


@registry.register("max-x86_64-cpu")
class MaxCpu(X86Cpu):
    """All that the accelerator can do."""

    type_name = "max-x86_64-cpu"
    model = "max"
