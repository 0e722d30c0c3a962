"""What becomes of a guest's requests that fail, as each policy has it: events, run state, io-status and statistics."""

from __future__ import annotations

import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from qobra.testing.differential import Program, Run, differences
from qobra.testing.guest import Memory, ModernPci, PciFunction, QtestAccess
from qobra.testing.guest_drivers import BlockDriver, ScsiDriver
from qobra.testing.system import program_command

pytestmark = pytest.mark.peer("qemu-system-x86_64")

_READ, _WRITE, _FLUSH, _ZEROES = 0, 1, 4, 13
_RULES = (("read", 5, 8), ("read", 28, 16), ("write", 5, 24), ("write", 28, 32), ("write-zeroes", 28, 48))
_PIECE = 64 << 10
"""Bytes that are written at a time to a disk that fills up."""
_STANDING = b"\xfa\xf4\xeb\xfd"
"""Firmware that does nothing: cli, hlt, and again."""


def _options(directory: Path) -> list[str]:
    firmware = directory / "firmware"
    firmware.write_bytes(bytes(65536 - 16) + _STANDING.ljust(16, b"\0"))
    parts = ["if=none,id=drive,node-name=n,driver=blkdebug,image.driver=null-co,image.size=1M,image.read-zeroes=on"]
    for number, (kind, errno, sector) in enumerate(_RULES):
        rule = {"event": "none", "iotype": kind, "errno": errno, "sector": sector, "once": "on"}
        parts += [f"inject-error.{number}.{name}={value}" for name, value in rule.items()]
    return [
        *("-nodefaults", "-display", "none", "-S", "-M", "pc", "-bios", str(firmware), "-drive", ",".join(parts)),
        *("-qtest", f"unix:{directory}/qtest,server=on,wait=off", "-qtest-log", "none"),
    ]


@pytest.mark.parametrize("reads", ["report", "ignore", "stop", "auto"])
@pytest.mark.parametrize("writes", ["report", "ignore", "stop", "enospc", "auto"])
def test_failing_requests(tmp_path: Path, reads: str, writes: str) -> None:
    def script(run: Run) -> None:
        run("cont")
        device = {"driver": "virtio-blk-pci", "drive": "drive", "addr": "5", "werror": writes, "rerror": reads}
        run("device_add", device | {"write-zeroes": True, "account-invalid": "off"})
        with _transport(run) as transport:
            disk = BlockDriver(transport, Memory(), features=1 << 32 | 1 << 9 | 1 << 14)
            for kind, sector in ((_READ, 8), (_READ, 16), (_WRITE, 24), (_WRITE, 32), (_FLUSH, 0), (_ZEROES, 48)):
                _request(run, disk, kind, sector)
            _request(run, disk, _WRITE, 1 << 20)

    _compare(script, tmp_path)


def _compare(script: Callable[[Run], None], tmp_path: Path) -> None:
    machines = []
    for name in ("own", "peer"):
        directory = tmp_path / name
        directory.mkdir(exist_ok=True)
        command = [*program_command("x86_64", peer=name == "peer"), *_options(directory)]
        machines.append(Program(directory, command, ["-mon", "chardev=differential,mode=control"]))
    assert differences(script, machines) == []


@contextmanager
def _transport(run: Run) -> Iterator[ModernPci]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(run.path("qtest"))
        function = PciFunction(QtestAccess(connection), 5 << 3)
        function.enable()
        yield ModernPci(function)


@pytest.mark.parametrize("policy", ["report", "ignore"])
def test_each_error_of_a_scsi_disk(tmp_path: Path, policy: str) -> None:
    """What a guest is told of each of Linux's errors, and how much it reads where it is told of none."""

    def script(run: Run) -> None:
        run("cont")
        run("device_add", {"driver": "virtio-scsi-pci", "id": "bus", "addr": "5"})
        run.add("null-co", node_name="null", size=1 << 20, read_zeroes=True)
        rules = [{"event": "none", "errno": number, "sector": 8 * number} for number in range(1, 134)]
        run.add("blkdebug", node_name="failing", image="null", inject_error=rules)
        run("device_add", {"driver": "scsi-hd", "drive": "failing", "werror": policy, "rerror": policy})
        with _transport(run) as transport:
            disk = ScsiDriver(transport, Memory())
            disk.command(bytes(6))
            for number in range(1, 134):
                block = (8 * number).to_bytes(4, "big")
                read = disk.command(b"\x28\0" + block + bytes((0, 0, 1, 0)), read=512)
                written = disk.command(b"\x2a\0" + block + bytes((0, 0, 1, 0)), data=bytes(512))
                told = [(each[0], each[1], each[2].hex()) for each in (read, written)]
                answer = (number, told, len(read[3]) if policy == "ignore" else 0)
                run("query-name", pick=lambda _found, answer=answer: answer)
        _look(run)

    _compare(script, tmp_path)


@pytest.fixture
def small_disks(tmp_path: Path) -> Iterator[Path]:
    """Each machine's directory is a file system with room for 4 MiB."""
    mounted = []
    for name in ("own", "peer"):
        directory = tmp_path / name
        directory.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(directory)]
        if subprocess.run(command, capture_output=True, check=False).returncode == 0:
            mounted.append(directory)
    if len(mounted) == 2:
        yield tmp_path
    for directory in mounted:
        subprocess.run(["umount", "-l", str(directory)], check=True)
    if len(mounted) < 2:
        pytest.skip("file systems cannot be mounted here")


@pytest.mark.parametrize("policy", ["enospc", "stop"])
@pytest.mark.parametrize("driver", ["raw", "qcow2"])
def test_a_full_disk(small_disks: Path, driver: str, policy: str) -> None:
    """The machine stands still until there is room again, and then the guest's write is carried out."""

    def script(run: Run) -> None:
        ballast = Path(run.path("ballast"))
        ballast.write_bytes(bytes(2 << 20))
        run.tool("qemu-img", "create", "-q", "-f", driver, "disk", "64M")
        run.add(driver, node_name="disk", file=run.file("disk"))
        run("device_add", {"driver": "virtio-blk-pci", "drive": "disk", "addr": "5", "werror": policy, "id": "v"})
        run("cont")
        stops = 0
        with _transport(run) as transport:
            disk = BlockDriver(transport, Memory())
            written = 0
            while stops < 3:
                answers: list[int] = []
                data = bytes((written + 1,)) * _PIECE
                sector = written * _PIECE // 512
                thread = threading.Thread(target=lambda: answers.append(disk.request(_WRITE, sector, data)[0]))  # noqa: B023
                thread.start()
                while not answers:
                    if run.request("query-status", None)["return"]["status"] == "io-error":
                        stops += 1
                        run("query-block", pick=lambda found: [each.get("io-status") for each in found])
                        if stops == 3:
                            ballast.unlink()
                        run("cont")
                    thread.join(0.01)
                assert answers == [0]
                written += 1
            assert disk.request(_FLUSH, 0)[0] == 0
            for number in range(written):
                answer, found = disk.request(_READ, number * _PIECE // 512, read=_PIECE)
                assert (answer, found) == (0, bytes((number + 1,)) * _PIECE)
        if driver == "qcow2":
            run.tool("qemu-img", "check", "-U", "-q", "disk")

    _compare(script, small_disks)


def _request(run: Run, disk: BlockDriver, kind: int, sector: int) -> None:
    """One request; the machine goes on where it stops for it."""
    answers: list[int] = []
    data = sector.to_bytes(8, "little") + bytes((8, 0, 0, 0)) + bytes(4) if kind == _ZEROES else bytes(512)
    sent, read = (data, 0) if kind in (_WRITE, _ZEROES) else (b"", 512 if kind == _READ else 0)
    thread = threading.Thread(target=lambda: answers.append(disk.request(kind, sector, sent, read)[0]))
    thread.start()
    while not answers:
        if run.request("query-status", None)["return"]["status"] == "io-error":
            _look(run)
            run("cont")
        thread.join(0.01)
    run("query-name", pick=lambda _found: answers)
    _look(run)


def _look(run: Run) -> None:
    run("query-block", pick=lambda found: [each.get("io-status") for each in found])
    run("query-status")
    run("query-blockstats", pick=lambda found: [_without_times(each["stats"]) for each in found])


def _without_times(stats: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in stats.items() if not name.endswith("_ns")}


@pytest.mark.parametrize("units", [(0, 5), (5, 0)])
def test_units_that_a_target_has_not(tmp_path: Path, units: tuple[int, int]) -> None:
    """What a target answers for them."""
    commands = (
        bytes((0x1A, 0, 0x3F, 0, 36, 0)),
        bytes(6),
        bytes((0x12, 0, 0, 1, 0, 0)),
        bytes((0x12, 0, 0, 0, 5, 0)),
        bytes((0x12, 0, 5, 0, 36, 0)),
        bytes((0x12, 1, 5, 0, 36, 0)),
        bytes((0x12, 2, 0, 0, 36, 0)),
        bytes((0x03, 0, 0, 0, 18, 0)),
        bytes((0x03, 0, 0, 0, 18, 0)),
        bytes((0xA0, *bytes(5), 0, 0, 1, 0, 0, 0)),
        bytes((0xA0, *bytes(5), 0, 0, 0, 8, 0, 0)),
        bytes((0xA0, 0, 3, *bytes(3), 0, 0, 1, 0, 0, 0)),
        bytes((0x28, *bytes(9))),
        bytes((0x25, *bytes(9))),
        bytes((0x03, 0, 0, 0, 18, 0)),
    )

    def script(run: Run) -> None:
        run("cont")
        run("device_add", {"driver": "virtio-scsi-pci", "id": "bus", "addr": "5"})
        run.add("null-co", node_name="null", size=1 << 20)
        run("device_add", {"driver": "scsi-hd", "drive": "null", "scsi-id": 3, "lun": 260})
        with _transport(run) as transport:
            adapter = ScsiDriver(transport, Memory())
            for lun in (*units, *units):
                for command in commands:
                    room = 4096 if command[0] else 0
                    response, status, sense, data = adapter.command(command, target=3, lun=lun, read=room)
                    answer = (lun, command.hex(), response, status, sense.hex(), "" if status else data.hex())
                    run("query-name", pick=lambda _found, answer=answer: answer)

    _compare(script, tmp_path)
