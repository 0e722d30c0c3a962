"""Machines driven as QEMU's own block tests drive one: drives, qemu-io through the monitor, jobs, hot-plug.

The same scripts against QEMU's program and ours: the same replies, events, and the same on standard output.
"""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from qobra.testing.differential import Run, differences

pytestmark = pytest.mark.peer("qemu-system-x86_64", "qemu-img", "qemu-io")

OURS = [sys.executable, "-c", "import sys; from qobra.cli.system import main_x86_64; sys.exit(main_x86_64())"]
COMMON = ["-machine", "pc", "-nodefaults", "-display", "none"]


class Machine:
    """A program that connects to its client, as a test suite starts it."""

    def __init__(self, directory: Path, command: Sequence[str], options: Sequence[str]) -> None:
        self.directory = directory
        self.output_path = directory / "output"
        with socket.socket(socket.AF_UNIX) as listening, self.output_path.open("wb") as output:
            listening.bind(str(directory / "mon"))
            listening.listen()
            listening.settimeout(60)
            connection = ["-chardev", f"socket,id=mon,path={directory}/mon", "-mon", "chardev=mon,mode=control"]
            self.process = subprocess.Popen(
                [*command, *COMMON, *connection, *options],
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            self.socket, _ = listening.accept()

    def connect(self) -> socket.socket:
        return self.socket

    def output(self) -> str:
        """What it printed, without how long things took."""
        text = self.output_path.read_text().replace(str(self.directory), "DIR")
        return re.sub(r"\d+ ops; .*", "ops", text)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


Script = Callable[[Run], None]
Compare = Callable[[Script, Sequence[str]], None]


@pytest.fixture
def compare(peer: Callable[[str], str], tmp_path: Path) -> Compare:
    """Run a script against both, each with a chain base, mid, top of its own, of 2 MiB."""

    def run(script: Script, options: Sequence[str]) -> None:
        machines = []
        for name, command in (
            ("o", [*OURS, "-accel", "qtest", "-qtest-log", "none"]),
            ("q", [peer("qemu-system-x86_64")]),
        ):
            directory = tmp_path / name
            directory.mkdir()
            make_chain(directory)
            placed = [option.replace("DIR", str(directory)) for option in ("-S", *options)]
            if "-no-S" in placed:
                placed = [option for option in placed if option not in ("-S", "-no-S")]
            machines.append(Machine(directory, command, placed))
        assert differences(script, machines) == []
        assert machines[1].output() == machines[0].output()

    return run


def make_chain(directory: Path) -> None:
    def tool(*command: str) -> None:
        subprocess.run(command, cwd=directory, check=True, stdout=subprocess.DEVNULL)

    tool("qemu-img", "create", "-q", "-f", "raw", "base", "2M")
    tool("qemu-io", "-f", "raw", "-c", "write -P 1 0 1M", "base")
    tool("qemu-img", "create", "-q", "-f", "qcow2", "-b", f"{directory}/base", "-F", "raw", "mid")
    tool("qemu-io", "-c", "write -P 2 512k 512k", "mid")
    tool("qemu-img", "create", "-q", "-f", "qcow2", "-b", f"{directory}/mid", "-F", "qcow2", "top")
    tool("qemu-io", "-c", "write -P 3 1M 512k", "top")


def hmp(run: Run, line: str) -> None:
    run("human-monitor-command", {"command-line": line})


TOP = "if=virtio,id=drive0,file=DIR/top,format=qcow2"
NAMED = f"{TOP},node-name=top,backing.node-name=mid,backing.backing.node-name=base"


def test_qemu_io_through_the_monitor(compare: Compare) -> None:
    def script(run: Run) -> None:
        for line in (
            *(
                "write -P 9 0 64k",
                "read -P 9 0 64k",
                "read -P 8 0 512",
                "map",
                "length",
                "flush",
                "info",
                "foo",
                "read",
            ),
            *("write 0", "write -P 300 0 1", "discard 0 64k", "read -v 0 16", "open a", "break a b", "resume a"),
        ):
            hmp(run, f'qemu-io drive0 "{line}"')
        hmp(run, 'qemu-io nothing "read 0 512"')
        hmp(run, 'qemu-io ro "write 0 512"')
        hmp(run, "qemu-io drive0")

    compare(script, ["-drive", TOP, "-drive", "if=none,id=ro,file=DIR/base,format=raw,read-only=on"])


def test_nodes_of_a_chain_are_named_on_the_command_line(compare: Compare) -> None:
    def script(run: Run) -> None:
        run("query-block")
        run("block-stream", {"device": "mid", "job-id": "s"})
        run.wait("BLOCK_JOB_COMPLETED")
        run.wait("JOB_STATUS_CHANGE", status="null")
        run("query-named-block-nodes")  # the files have grown alike: zeroes are held as such
        run("blockdev-snapshot-sync", {"device": "drive0", "snapshot-file": run.path("sn"), "format": "qcow2"})
        run("block-commit", {"device": "drive0", "base-node": "mid", "job-id": "c"})
        run.wait("BLOCK_JOB_READY")
        hmp(run, 'qemu-io drive0 "write -P 9 0 64k"')
        run("block-job-complete", {"device": "c"})
        run.wait("JOB_STATUS_CHANGE", status="null")
        run("query-block")
        run.tool("qemu-io", "-r", "-U", "-c", "read -P 9 0 64k", "-c", "read -P 3 1M 512k", "mid")

    compare(script, ["-drive", NAMED])


@pytest.mark.parametrize("policy", ["report", "ignore", "stop", "enospc"])
@pytest.mark.parametrize("errno", [5, 28])
def test_errors_under_a_stream(compare: Compare, policy: str, errno: int) -> None:
    rules = f'[inject-error]\nevent = "read_aio"\nerrno = "{errno}"\nonce = "on"\nsector = "1024"\n'

    def script(run: Run) -> None:
        run("block-stream", {"device": "drive0", "on-error": policy})
        if policy == "stop" or (policy == "enospc" and errno == 28):
            run.wait("BLOCK_JOB_ERROR")
            run.wait("JOB_STATUS_CHANGE", status="paused")
            job = run("query-block-jobs")
            assert [each["offset"] for each in job] == [512 << 10]
            run("block-job-resume", {"device": "drive0"})
        run.wait("JOB_STATUS_CHANGE", status="null")

    def prepared(directory: Path) -> None:
        (directory / "rules").write_text(rules)
        subprocess.run(
            ["qemu-img", "rebase", "-u", "-b", f"blkdebug:{directory}/rules:{directory}/base", "-F", "raw", "top"],
            cwd=directory,
            check=True,
        )

    original = make_chain

    def make(directory: Path) -> None:
        original(directory)
        prepared(directory)

    globals()["make_chain"] = make
    try:
        compare(script, ["-drive", TOP])
    finally:
        globals()["make_chain"] = original


def test_a_machine_runs_when_it_is_first_asked(compare: Compare) -> None:
    def script(run: Run) -> None:
        run("query-status")
        run("stop")
        run("cont")
        run("system_reset")
        run("query-status")

    compare(script, ["-no-S", "-drive", TOP])


@pytest.mark.parametrize("options", [f"{TOP},snapshot=on", TOP], ids=["snapshot", "chain"])
def test_commit_through_the_monitor(compare: Compare, options: str) -> None:
    def script(run: Run) -> None:
        for line in ("write -P 9 0 64k", "read -P 3 1M 512k"):
            hmp(run, f'qemu-io drive0 "{line}"')
        for line in ("info snapshots", "commit drive0", 'qemu-io drive0 "map"', "commit all", "commit nothing"):
            hmp(run, line)
        run.tool("qemu-io", "-r", "-U", "-c", "read -P 9 0 64k", "top")

    compare(script, ["-drive", options])


@pytest.mark.parametrize("line", ["info blockstats", "eject drive0", "change drive0 x", "eject nothing", "commit"])
def test_answers_to_people(compare: Compare, line: str) -> None:
    compare(lambda run: hmp(run, line), ["-drive", TOP])


def test_numbers_of_devices_without_a_drive(compare: Compare) -> None:
    options = ["-device", "virtio-scsi-pci", "-device", "scsi-cd,id=cd", "-blockdev", "null-co,node-name=n"]
    compare(lambda run: hmp(run, "info blockstats"), [*options, "-device", "scsi-hd,drive=n"])


def test_copy_on_read_of_a_drive(compare: Compare) -> None:
    def script(run: Run) -> None:
        hmp(run, 'qemu-io drive0 "read -P 1 0 64k"')
        hmp(run, 'qemu-io drive0 "map"')
        run("block-stream", {"device": "drive0"})
        run.wait("JOB_STATUS_CHANGE", status="null")
        run("query-block")

    compare(script, ["-drive", f"{TOP},copy-on-read=on"])


def test_a_drive_goes_with_its_device(compare: Compare) -> None:
    def script(run: Run) -> None:
        run("device_add", {"driver": "scsi-hd", "id": "hd", "drive": "drive0", "bus": "s.0"})
        run("query-block")
        run("device_del", {"id": "hd"})
        run.wait("DEVICE_DELETED", device="hd")
        run.tool("sleep", "0.05")  # QEMU lets go of it a little later
        run("query-block")
        run("query-named-block-nodes")

    compare(
        script,
        ["-device", "virtio-scsi-pci,id=s", "-drive", "if=none,id=drive0,file=DIR/top,format=qcow2"],
    )


def test_persistent_bitmaps_keep_their_order(compare: Compare) -> None:
    def script(run: Run) -> None:
        for name in ("a", "b", "c"):
            run("block-dirty-bitmap-add", {"node": "n", "name": name, "persistent": True})
        run("blockdev-del", {"node-name": "n"})
        run.tool("qemu-img", "bitmap", "--add", "top", "d")
        run("blockdev-add", _node(run))
        (node,) = [each for each in run("query-named-block-nodes") if each["node-name"] == "n"]
        assert [each["name"] for each in node["dirty-bitmaps"]] == ["d", "a", "b", "c"]

    compare(script, ["-blockdev", "driver=qcow2,node-name=n,file.driver=file,file.filename=DIR/top"])


def _node(run: Run) -> dict[str, Any]:
    return {"driver": "qcow2", "node-name": "n", "file": {"driver": "file", "filename": run.path("top")}}


REFUSED = [
    *(
        "if=foo",
        "file=t,format=foo",
        "file=t,format=raw,driver=raw",
        "file=t,if=none,cache=foo",
        "file=t,if=none,aio=foo",
    ),
    *("file=t,format=raw,if=none,foo=bar", "file=t,format=raw,if=none,werror=foo", "file=t,format=raw,if=none,id=1a"),
    *("file=t,format=raw,if=none,rerror=enospc", "file=t,format=raw,if=none,readonly=foo", "if=ide,bus=0,unit=5"),
    *(
        "file=t,format=raw,if=none,readonly=on,read-only=on",
        "file=t,format=raw,if=none,media=foo",
        "format=raw,if=none",
    ),
    *("file=t,format=raw,if=none,detect-zeroes=foo", "file=t,format=raw,if=none,discard=foo", "file=nothing,if=none"),
    *(
        "file=t,format=raw,if=none,iops=10,iops_rd=5",
        "file=t,format=raw,if=none,iops=-1",
        "file=t,if=none,snapshot=foo",
    ),
    *("file=t,format=raw,if=none,iops=1,throttling.iops-total=1", "file=t,format=raw,if=none,bps_max=10", "file=json:"),
    *("file=t,format=raw,if=none,stats-intervals.0=0", "file=t,format=raw,if=floppy,werror=stop", "file=foo:bar"),
    *("if=virtio", "if=virtio,id=d", "if=scsi", "file=t,format=raw,if=none,stats-account-failed=maybe"),
]


@pytest.mark.parametrize("drive", REFUSED)
def test_drives_that_cannot_be(peer: Callable[[str], str], tmp_path: Path, drive: str) -> None:
    (tmp_path / "t").write_bytes(bytes(1 << 20))
    said = []
    for command in ([peer("qemu-system-x86_64")], OURS):
        done = subprocess.run(
            [*command, *COMMON, "-drive", drive], cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        text = re.sub(r"^.*?: ", "", done.stderr, count=1)
        said.append((done.returncode, text))
    assert said[1] == said[0] and said[0][0] == 1
