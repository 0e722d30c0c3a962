"""``tpm-tis-device``: a TPM that guests reach by a FIFO, on the platform bus of boards that are no PCs."""

from __future__ import annotations

from typing import Any

from qobra.machine.devices import registry
from qobra.machine.irq import Line
from qobra.machine.qdev import SysBusDevice
from qobra.machine.tpm import front_end
from qobra.machine.tpm.tis import Tis
from qobra.machine.vmstate import VmState, part
from qobra.object.property import Int


@registry.register("tpm-tis-device")
class TpmTisDevice(front_end.TpmFrontEnd, SysBusDevice):
    """The registers in memory, and a line of the bus. ``irq`` is no more than what the register says of interrupts."""

    type_name = "tpm-tis-device"
    interfaces = (front_end.INTERFACE,)
    architectures = frozenset(("riscv64",))
    pluggable = True
    hotpluggable_class = True
    tpm_model = "tpm-tis"
    node_name = "tpm"
    compatible = ("tcg,tpm-tis-mmio",)
    """By the kernel's binding for the TPM interfaces of TCG's that are in memory."""

    irq = Int(5, type="uint32")
    tpmdev = front_end.tpmdev_property()

    vmstate = VmState(part("_tis"))

    def realize(self) -> None:
        self.take_backend()
        line = Line()
        self._tis = Tis(self.backend, self.irq, line.set)
        self._bus: Any = self.board.platform_bus
        try:
            self._place = self._bus.attach(self, self._tis.registers, line)
        except BaseException:
            self.release_backend()
            raise

    def unrealize(self) -> None:
        self._bus.detach(self._place)
        self.release_backend()

    def reset(self) -> None:
        front_end.start_backend(self, self.backend)
        self._tis.reset()
