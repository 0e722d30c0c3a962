"""What QEMU's programs and ours tell of their types, properties, buses and options: the same where both have them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qobra.testing.system import SystemProgram, peer_available

_BOARDS = [("x86_64", "pc"), ("x86_64", "q35"), ("riscv64", "virt")]
_FAMILIES = ("link<irq>", "link<memory-region>", "child<", "link<hotplug-handler>")
# What a user can set here and not there, with the reason.
_ONLY_HERE = {"mc146818rtc.date": "QEMU adds it when the device is realized"}
_NEVER_ON = ("csum", "guest_csum", "guest_ecn", "guest_tso4", "guest_tso6", "guest_ufo", "host_ecn", "host_tso4")
_NEVER_ON += ("host_tso6", "host_ufo")
"""Offloads that network cards of ours have not, which are off therefore."""
_TYPES_ONLY_HERE = {
    "qtest-accel": "Debian's programs are built without it",
    "authz-pam": "Debian's programs are built without it",
}


def _both(
    tmp_path_factory: pytest.TempPathFactory, architecture: str, *arguments: str
) -> Iterator[tuple[SystemProgram, SystemProgram]]:
    if not peer_available(architecture):
        pytest.skip(f"qemu-system-{architecture} is not installed")
    directory = tmp_path_factory.mktemp("both")
    with (
        SystemProgram(directory, architecture, *arguments) as own,
        SystemProgram(directory, architecture, *arguments, peer=True) as peer,
    ):
        yield own, peer


@pytest.fixture(scope="module", params=_BOARDS, ids=lambda each: each[1])
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[SystemProgram, SystemProgram]]:
    architecture, board = request.param
    yield from _both(tmp_path_factory, architecture, "-machine", board)


Both = tuple[SystemProgram, SystemProgram]


def _types(program: SystemProgram) -> set[str]:
    return {each["name"] for each in program.qmp("qom-list-types")}


def test_every_type_is_one_of_qemu(both: Both) -> None:
    own, peer = both
    missing = _types(own) - _types(peer) - _TYPES_ONLY_HERE.keys()
    # The x86 program of ours knows its boards' versions alone.
    assert not missing


def _properties(program: SystemProgram, command: str, type_name: str) -> dict[str, tuple[Any, ...]]:
    answer = program.qmp(command, {"typename": type_name})
    assert isinstance(answer, list), (type_name, answer)
    return {each["name"]: (each["type"], each.get("default-value")) for each in answer}


def test_properties_of_every_device(both: Both) -> None:
    """Nothing can be set here that cannot be set there; types and defaults are the same."""
    own, peer = both
    common = _types(own) & _types(peer)
    devices = {each["name"] for each in own.qmp("qom-list-types", {"implements": "device"})}
    differing = []
    for type_name in sorted(common & devices):
        if type_name.endswith("-cpu"):
            continue
        here, there = (_properties(program, "device-list-properties", type_name) for program in both)
        for name, found in here.items():
            if name in _NEVER_ON and type_name.startswith("virtio-net"):
                found = ("bool", True)
            if found != there.get(name) and f"{type_name}.{name}" not in _ONLY_HERE:
                differing.append((type_name, name, found, there.get(name)))
    assert not differing


def test_other_names_of_devices(both: Both) -> None:
    ours, theirs = (program.qmp("human-monitor-command", {"command-line": "device_add help"}) for program in both)
    found = [dict(re.findall(r'name "([^"]+)".*, alias "([^"]+)"', text)) for text in (ours, theirs)]
    known = _types(both[0])
    assert found[0] == {name: alias for name, alias in found[1].items() if name in known}


def test_types_descend_alike(both: Both) -> None:
    """Parents, which types are abstract, and who implements what: all types of ours, bases and interfaces too."""
    own, peer = ({e.pop("name"): e for e in p.qmp("qom-list-types", {"abstract": True})} for p in both)
    assert own.keys() - _TYPES_ONLY_HERE.keys() <= peer.keys()
    assert {name: each for name, each in own.items() if peer.get(name, each) != each} == {}
    differing = []
    for kind in own.keys() & peer.keys():
        here, there = (
            {e["name"] for e in p.qmp("qom-list-types", {"implements": kind, "abstract": True})} for p in both
        )
        if here - _TYPES_ONLY_HERE.keys() != there & own.keys():
            differing.append((kind, here ^ (there & own.keys())))
    assert not differing


def test_who_sees_to_hot_plug(tmp_path_factory: pytest.TempPathFactory) -> None:
    devices = ("virtio-scsi-pci,id=s", "virtio-serial-pci,id=v", "pcie-root-port,id=p,chassis=3", "qemu-xhci,id=u")
    devices += ("pcie-pci-bridge,id=b,bus=p", "ich9-ahci,id=a", "sdhci-pci,id=d")
    arguments = [each for device in devices for each in ("-device", device)]
    paths = ("/machine/q35/pcie.0", "/machine/unattached/sysbus", "s/virtio-backend/s.0", "v/virtio-backend/v.0")
    paths += ("p/p", "b/b", "u/u.0", "a/a.0", "d/sd-bus", "s/virtio-bus")
    for own, peer in _both(tmp_path_factory, "x86_64", "-machine", "q35", *arguments):
        for path in paths:
            question = {"path": path, "property": "hotplug-handler"}
            here, there = (program.qmp("qom-get", question) for program in (own, peer))
            assert here == there, path
        power = [program.qmp("qom-get", {"path": "/machine", "property": "acpi-device"}) for program in (own, peer)]
        assert power[0] == power[1]


_OPTIONS_ONLY_HERE = {"machine": {"graphics", "memory-backend", "nvdimm", "nvdimm-persistence"}}
"""Parameters that QEMU takes as well, but does not tell of: they are properties of its boards."""


def test_options_of_the_command_line(both: Both) -> None:
    own, peer = (
        {
            each["option"]: {parameter["name"]: parameter["type"] for parameter in each["parameters"]}
            for each in program.qmp("query-command-line-options")
        }
        for program in both
    )
    assert own.keys() <= peer.keys()
    for option, parameters in own.items():
        known = {name: kind for name, kind in parameters.items() if name not in _OPTIONS_ONLY_HERE.get(option, ())}
        assert known.items() <= peer[option].items(), option


_TOP = ("/", "/machine/peripheral", "/machine/peripheral-anon", "/objects", "/chardevs", "/backend")


@pytest.mark.parametrize("path", _TOP)
def test_the_upper_tree(both: Both, path: str) -> None:
    def listed(program: SystemProgram) -> Any:
        answer = program.qmp("qom-list", {"path": path})
        if isinstance(answer, dict):
            return answer
        return sorted((e["name"], e["type"]) for e in answer if not e["type"].startswith("child<chardev-"))

    own, peer = map(listed, both)
    if isinstance(own, dict) or path != "/":
        assert own == peer
    else:
        assert set(own) <= set(peer)


@pytest.mark.skipif(not peer_available("x86_64"), reason="qemu-system-x86_64 is not installed")
def test_buses_and_what_is_on_them(tmp_path_factory: pytest.TempPathFactory) -> None:
    arguments: list[str] = []
    for id in (",id={}", ""):
        for number, device in enumerate(
            ("ich9-ahci", "virtio-scsi-pci", "virtio-serial-pci", "piix3-usb-uhci", "sdhci-pci", "isa-fdc")
            + ("pci-bridge,chassis_nr=7", "pcie-root-port", "pcie-pci-bridge", "virtio-rng-pci")
        ):
            if id or not device.startswith("isa"):
                chassis = f",chassis={8 + len(id)}" if device == "pcie-root-port" else ""
                arguments += ["-device", device + chassis + id.format(f"d{number}")]
    for own, peer in _both(tmp_path_factory, "x86_64", "-machine", "q35", *arguments):
        here, there = (
            [
                line.strip()
                for line in program.qmp("human-monitor-command", {"command-line": "info qtree"}).splitlines()
                if "bus:" in line and line.strip() != "bus: i2c"
            ]
            for program in (own, peer)
        )
        assert here == there
        for number in range(10):
            found = []
            for program in (own, peer):
                answer = program.qmp("qom-list", {"path": f"/machine/peripheral/d{number}"})
                found.append({e["name"]: e["type"] for e in answer if not e["type"].startswith(_FAMILIES[:2])})
            mine = {name: kind for name, kind in found[0].items() if not kind.startswith("child<")}
            assert mine.items() <= found[1].items()


def test_kinds_of_pci(tmp_path: Path) -> None:
    with (
        SystemProgram(tmp_path, "x86_64", "-machine", "pc") as own,
        SystemProgram(tmp_path, "x86_64", "-machine", "pc", peer=True) as peer,
    ):
        mine = {each["name"] for each in own.qmp("qom-list-types", {"implements": "pci-device"})}
        for kind in ("conventional-pci-device", "pci-express-device"):
            found, theirs = (
                {each["name"] for each in program.qmp("qom-list-types", {"implements": kind})}
                for program in (own, peer)
            )
            assert found == theirs & mine
