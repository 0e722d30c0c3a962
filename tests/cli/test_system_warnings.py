"""What the system programs tell of a machine that is made all the same."""

from __future__ import annotations

import pytest

from qobra.cli._system import table
from qobra.cli._system.build import Builder


@pytest.mark.parametrize(
    ("arguments", "warnings"),
    [
        ("-device e1000", ["nic e1000.0 has no peer"]),
        ("-device virtio-net-pci,id=n", ["nic n has no peer"]),
        ("-nic hubport,hubid=0", ["hub 0 is not connected to host network"]),
        ("-netdev hubport,id=h,hubid=3", ["hub port h has no peer", "netdev h has no peer"]),
        (
            "-netdev socket,id=s,listen=127.0.0.1:0 -netdev hubport,id=h,hubid=2,netdev=s",
            ["hub 2 with no nics"],
        ),
        ("-netdev socket,id=s,listen=127.0.0.1:0 -device e1000,netdev=s", []),
        ("-global foo.bar=1 -global iothread.x=1", ["global foo.bar has invalid class name",
                                                    "global iothread.x has invalid class name"]),
        ("-global kvm-pit.lost_tick_policy=delay -global kvm-pits.x=1", ["global kvm-pits.x has invalid class name"]),
        ("-global PIIX4_PM.disable_s3=1 -global PIIX4_PM.disable_s4=1", []),
    ],
)  # fmt: skip
def test_warnings(capsys: pytest.CaptureFixture[str], arguments: str, warnings: list[str]) -> None:
    builder = Builder("x86_64", table.scan(["-nodefaults", "-display", "none", "-S", *arguments.split()]))
    try:
        with builder.machine.control:
            builder.build_early()
            builder.build_board()
    finally:
        builder.machine.close()
        builder.close()
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(": warning: ")[2] for line in lines] == warnings
