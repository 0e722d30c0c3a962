"""xHCI and the devices behind it, driven alike on both programs: registers, descriptors, SCSI by both protocols."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qobra.machine.usb.xhci import ring
from qobra.testing.guest import PciFunction
from qobra.testing.system import SystemProgram, peer_available
from qobra.testing.xhci import XhciDriver

pytestmark = pytest.mark.skipif(not peer_available("x86_64"), reason="qemu-system-x86_64 is not installed")

_SLOT = 5
_DEVICES = ("usb-tablet,port=1", "usb-mouse,port=2", "usb-kbd,port=3,usb_version=1", "usb-kbd,port=4")
_STORAGE = ("usb-storage,port=5,drive=n0", "usb-uas,port=6,id=u", "usb-bot,port=7,id=b")
_UNITS = ("scsi-hd,drive=n1,bus=u.0", "scsi-hd,drive=n2,bus=b.0,lun=0", "scsi-hd,drive=n3,bus=b.0,scsi-id=0,lun=3")
_CHANGED = 1 << 17


def _driver(program: SystemProgram) -> XhciDriver:
    function = PciFunction(program.guest, _SLOT << 3)
    function.enable()
    return XhciDriver(program.guest, function.bars[0])


def _both(directory: Path, look: Any, *arguments: str) -> tuple[Any, Any]:
    seen = []
    for peer in (False, True):
        with SystemProgram(directory, "x86_64", *arguments, peer=peer) as program:
            seen.append(look(program))
    return seen[0], seen[1]


def _everything(ports: str) -> list[str]:
    arguments = ["-device", f"qemu-xhci,id=x,addr={_SLOT:x},p2=8,p3={ports}"]
    for number in range(4):
        arguments += ["-blockdev", f"null-co,node-name=n{number},size=1048576,read-zeroes=on"]
    for device in _DEVICES + _STORAGE:
        arguments += ["-device", f"{device},bus=x.0"]
    for unit in _UNITS:
        arguments += ["-device", unit]
    return arguments


@pytest.mark.parametrize("options", ["qemu-xhci", "qemu-xhci,p2=3,p3=2,streams=off", "nec-usb-xhci,p2=20,p3=1"])
def test_registers(tmp_path: Path, options: str) -> None:
    def look(program: SystemProgram) -> list[int]:
        driver = _driver(program)
        return [program.guest.load(driver.base + at, 4) for at in (*range(0, 0x80, 4), *range(0x1000, 0x1060, 4))]

    own, peer = _both(tmp_path, look, "-device", f"{options},addr={_SLOT:x}")
    assert own == peer


@pytest.mark.parametrize("fast", ["8", "0"])
def test_ports_and_descriptors(tmp_path: Path, fast: str) -> None:
    def look(program: SystemProgram) -> list[Any]:
        driver = _driver(program)
        driver.start()
        ports = [driver.port(n + 1) for n in range(driver.port_count)]
        seen: list[Any] = [value if value & 1 else value & ~_CHANGED for value in ports]
        for number in range(1, driver.port_count + 1):
            if not driver.port(number) & 1:
                continue
            seen.append((driver.reset_port(number), driver.port(number)))
            slot = driver.enable_slot()
            seen.append(driver.address(slot, number).code)
            seen.append(driver.endpoint_context(slot, 0))
            seen += [driver.descriptor(slot, kind) for kind in (1, 2)]
            if driver.port(number) >> 10 & 0xF > 1:
                seen.append(driver.descriptor(slot, 15))
            texts = (seen[-1] or b"") and [driver.descriptor(slot, 3, n) for n in range(12)]
            seen.append([text for text in texts if text])
        seen.append(program.qmp("human-monitor-command", {"command-line": "info usb"}))
        return seen

    own, peer = _both(tmp_path, look, *_everything(fast))
    assert own == peer


def test_disks(tmp_path: Path) -> None:
    def look(program: SystemProgram) -> list[Any]:
        driver = _driver(program)
        driver.start()
        seen: list[Any] = []

        def begin(port: int, endpoints: dict[int, tuple[int, int]], **streams: Any) -> int:
            driver.reset_port(port)
            slot = driver.enable_slot()
            seen.append(driver.address(slot, port).code)
            seen.append(driver.configure(slot, endpoints, **streams).code)
            seen.append(driver.control(slot, bytes((0, 9, 1, 0, 0, 0, 0, 0))))
            driver.others.clear()
            return slot

        contents = b"\x43\0\0\0\0\0\0\0\x40\0"
        commands = (bytes(6), bytes(6), b"\x25" + bytes(9), b"\x12\0\0\0\x24\0", b"\x28\0\0\0\0\3\0\0\2\0", contents)
        rooms = (0, 0, 8, 36, 1024, 64)
        slot = 0
        for port, lun in ((5, 0), (7, 0), (7, 3)):
            if not lun:
                slot = begin(port, {3: (6, 1024), 4: (2, 1024)})
            for cdb, room in zip(commands, rooms, strict=True):
                head = b"USBCabcd" + room.to_bytes(4, "little") + bytes((0x80 if room else 0, lun, len(cdb)))
                seen.append(driver.send(slot, 4, head + cdb.ljust(16, b"\0")).code)
                if room:
                    seen.append(driver.receive(slot, 3, room)[1])
                seen.append(driver.receive(slot, 3, 13)[1])
            bad = driver.send(slot, 4, b"nonsense")
            seen.append((bad.code, bad.length, driver.endpoint_context(slot, 4)[0]))
            driver.recover(slot, 4)
            seen.append(driver.control(slot, bytes((0x21, 0xFF, 0, 0, 0, 0, 0, 0))))
            seen.append(driver.control(slot, bytes((0x02, 1, 0, 0, 2, 0, 0, 0))))
            driver.others.clear()
        kinds = {2: (2, 1024), 5: (6, 1024), 7: (6, 1024), 8: (2, 1024)}
        slot = begin(6, kinds, streams=4, with_streams=(5, 7, 8))
        for tag, (cdb, room) in enumerate(zip(commands, rooms, strict=True), 1):
            places = {}
            for pipe, length in ((5, 96), (7, room)):
                if length:
                    buffer = driver.memory.take(length)
                    at = driver.streams[slot, pipe, tag].put(
                        buffer, length, ring.NORMAL << 10 | ring.ON_COMPLETION | ring.SHORT_EVENT
                    )
                    places[at] = (pipe, buffer, length)
                    driver.ring(slot, pipe, tag)
            unit = bytes((1, 0, 0, tag)) + bytes(12) + cdb.ljust(16, b"\0")
            buffer = driver.memory.take(32)
            driver.guest.write(buffer, unit)
            driver.rings[slot, 2].put(buffer, 32, ring.NORMAL << 10 | ring.ON_COMPLETION)
            driver.ring(slot, 2)
            told = {}
            for _ in range(1 + len(places)):
                event = driver.wait(ring.TRANSFER_EVENT)
                if event.pointer in places:
                    pipe, buffer, length = places[event.pointer]
                    told[pipe] = (event.code, driver.guest.read(buffer, length - event.length))
            seen.append(sorted(told.items()))
        return seen

    own, peer = _both(tmp_path, look, *_everything("8"))
    assert own == peer
