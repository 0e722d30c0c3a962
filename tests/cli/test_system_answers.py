"""What options that only ask are answered."""

from __future__ import annotations

import pytest

from qobra.cli import system


def _asked(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    assert system.main("x86_64", list(arguments)) == 0
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(("arguments", "title", "line"), [
    (("-machine", "none,help"), "none-machine options:", "  append=<string>        - Linux kernel command line"),
    (("-machine", "type=pc,help"), "pc-i440fx-7.2-machine options:", "  smm=<OnOffAuto>        - Enable SMM"),
    (("-object", "iothread,help"), "iothread options:", "  poll-max-ns=<int>"),
    (("-object", "memory-backend-ram,help"), "memory-backend-ram options:",
     "  prealloc=<bool>        - Preallocate memory"),
    (("-device", "pcie-root-port,help"), "pcie-root-port options:", "  chassis=<uint8>        -  (default: 0)"),
    (("-device", "virtio-rng-pci,?"), "virtio-rng-pci options:", "  period=<uint32>        -  (default: 65536)"),
    (("-smp", "help"), "smp-opts options:", "  maxcpus=<num>"),
    (("-boot", "?"), "boot-opts options:", "  menu=<bool (on/off)>"),
    (("-display", "help"), "Available display backend types:", "none"),
    (("-audiodev", "help"), "Available audio drivers:", "none"),
    (("-audio", "model=help"), "Valid sound card names (comma separated):", "hda         Intel HD Audio"),
])  # fmt: skip
def test_lists(capsys: pytest.CaptureFixture[str], arguments: tuple[str, str], title: str, line: str) -> None:
    lines = _asked(capsys, *arguments)
    assert lines[0] == title and line in lines
    if " options:" in title:
        assert lines[1:] == sorted(lines[1:])


def test_a_device_that_there_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert system.main("x86_64", ["-device", "nope,help"]) == 0
    assert capsys.readouterr().err.endswith("-device nope,help: Device 'nope' not found\n")
