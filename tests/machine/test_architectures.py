"""A program has the types of its own architecture."""

from __future__ import annotations

import pytest

from qobra.errors import QobraError
from qobra.machine.launch import simple_machine
from qobra.machine.plug import add_device
from qobra.qmp import dispatch


@pytest.mark.parametrize(
    ("architecture", "board", "own", "foreign"),
    [
        ("x86_64", "pc", {"pc-dimm", "PIIX3", "isa-serial", "virtio-mem-pci"}, {"riscv.sifive.plic", "virt-machine"}),
        (
            "riscv64",
            "virt",
            {"riscv.sifive.plic", "virt-machine"},
            {"pc-dimm", "PIIX3", "isa-serial", "virtio-mem-pci"},
        ),
    ],
)
def test_types_of_other_architectures_are_unknown(
    architecture: str, board: str, own: set[str], foreign: set[str]
) -> None:
    machine = simple_machine(architecture, board, memory=4 << 20)
    with machine.control:
        names = {each["name"] for each in dispatch.call(machine, "qom-list-types", {})}
        assert own <= names
        assert not foreign & names
        for name in foreign:
            with pytest.raises(QobraError, match=f"Class '{name}' not found"):
                dispatch.call(machine, "qom-list-properties", {"typename": name})
            with pytest.raises(QobraError, match="is not a valid device model name"):
                add_device(machine, {"driver": name}, keyval=True)
        reason = "device not found" if architecture == "x86_64" else "not currently supported"
        with pytest.raises(QobraError, match=reason):
            dispatch.call(machine, "query-vm-generation-id", {})
    machine.close()
