"""VMware's port 0x5658, by which a guest asks what runs it."""

from __future__ import annotations

from qobra.machine.devices import registry
from qobra.machine.isa import IsaDevice
from qobra.machine.vmstate import VmState
from qobra.object.property import Bool, Int

_PORT = 0x5658


@registry.register("vmport")
class VmPort(IsaDevice):
    """Questions and answers are in the registers of the CPU that reads the port; to others it answers ones."""

    type_name = "vmport"
    pluggable = False

    read_set_eax = Bool(True, name="x-read-set-eax", description="on/off")
    signal_unsupported = Bool(True, name="x-signal-unsupported-cmd", description="on/off")
    report_vmx_type = Bool(True, name="x-report-vmx-type", description="on/off")
    commands_v2 = Bool(True, name="x-cmds-v2", description="on/off")
    version = Int(6, type="uint32", name="vmware-vmx-version")
    product = Int(2, type="uint8", name="vmware-vmx-type")

    vmstate = VmState()

    def realize(self) -> None:
        self.map_ports(_PORT, 1, lambda _offset, width: (1 << 8 * width) - 1, lambda _offset, _width, _value: None)
