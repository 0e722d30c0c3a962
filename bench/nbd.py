"""NBD: Qobra's server against qemu-nbd, with fio's nbd engine over a unix socket.

    python bench/nbd.py [--runs 5] [--seconds 2] [--size 256M] [--rows 4k-read-qd1,...] [--json FILE]

Each row is a workload on an image and a server; ``--rows all`` runs all of them, the default is the plain ones, and
``connections`` and ``chains`` are the curves of how costs grow with the number of connections and backing files. Both
servers have an image of their own. Runs are interleaved, so that whatever else the machine does hits both alike. For
each row the medians, their ratio (above 1: Qobra is faster), the spread of the ratios of neighbouring runs, the
processor time of the servers for each operation, and the goal are printed. The exit code is 1 if a goal is missed.
TLS rows read the whole image with nbdcopy, as fio's engine takes no certificates.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from io import BufferedRWPair
from pathlib import Path
from typing import Any, NamedTuple


class Row(NamedTuple):
    """A workload: fio's ``rw``, block size and queue depth; and where it differs from a plain, cached, full image."""

    kind: str
    block: str
    depth: int
    goal: float
    image: str = "full"
    """``full``, ``half`` (every other cluster is there), or ``empty``."""
    layers: int = 1
    """Images in the backing chain that the data of a full image are spread over."""
    connections: int = 1
    tls: bool = False
    cold: bool = False
    direct: bool = False
    busy: str = ""
    """Beside it: ``qmp``, a client that asks for the block nodes all the time; ``job``, the same and a backup of the
    disk; ``computing``, a thread in the server that only computes. Compared with Qobra itself when idle."""


ROWS = {
    "4k-read-qd1": Row("randread", "4k", 1, 1.0),
    "4k-read-qd16": Row("randread", "4k", 16, 2.5),
    "4k-read-qd32": Row("randread", "4k", 32, 2.5),
    "4k-write-qd32": Row("randwrite", "4k", 32, 1.5),
    "1m-read": Row("read", "1m", 4, 1.4),
    "1m-write": Row("write", "1m", 4, 1.4),
    "chain-of-8": Row("randread", "4k", 32, 2.0, layers=8),
    "half-allocated": Row("randwrite", "4k", 32, 1.0, image="half"),
    "allocating-64k": Row("write", "64k", 16, 1.0, image="empty"),
    "16-connections": Row("randread", "4k", 8, 2.0, connections=16),
    "tls-read": Row("randread", "4k", 32, 1.0, tls=True),
    "tls-1m-read": Row("read", "1m", 4, 1.0, tls=True),
    "cold-read": Row("randread", "4k", 32, 1.0, cold=True),
    "direct-read": Row("randread", "4k", 32, 1.0, direct=True),
    "busy-qmp": Row("randread", "4k", 16, 0.8, busy="qmp"),
    "busy-job": Row("randread", "4k", 16, 0.8, busy="job"),
    "busy-computing": Row("randread", "4k", 16, 0.8, busy="computing"),
}
PLAIN = list(ROWS)[:6]
CURVES = {
    "connections": {f"{n}-connections": Row("randread", "4k", 8, 1.0, connections=n) for n in (1, 2, 4, 8, 16, 32)},
    "chains": {f"chain-of-{n}": Row("randread", "4k", 32, 1.0, layers=n) for n in (1, 2, 4, 8, 16, 32)},
}
CLUSTER = 65536

SERVER = """
import json, socket, sys, threading
from qobra.machine.machine import Machine
from qobra.qmp.monitor import Monitors
image, sock, monitor, direct, tls, computing = json.loads(sys.argv[1])
sys.setswitchinterval(0.0005)  # as the storage daemon does
machine = Machine()
file = {"driver": "file", "filename": image}
node = {"driver": "qcow2", "node-name": "disk", "file": file, "cache": {"direct": direct}}
with machine.control:
    machine.block.add_node({"driver": "null-co", "node-name": "target", "size": 1 << 40})
    if tls:
        machine.objects.create("tls-creds-x509", "tls", {"dir": tls, "endpoint": "server", "verify-peer": False})
    machine.block.add_node(node)
    server = {"type": "unix", "path": sock}
    machine.block.exports.start_nbd_server(server, tls_creds="tls" if tls else None)
    machine.block.exports.add({"type": "nbd", "id": "disk", "node-name": "disk", "name": "disk", "writable": True})
if computing:
    def compute():
        while True:
            pass
    threading.Thread(target=compute, daemon=True).start()
if monitor:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(monitor)
    listener.listen()
    monitors = Monitors(machine)
    while True:
        monitors.serve_socket(listener.accept()[0])
machine.wait_for_exit()
"""


def main() -> int:
    """Run, print, and say whether every goal was reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2)
    parser.add_argument("--size", default="256M")
    parser.add_argument("--rows", default=",".join(PLAIN))
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    if unknown := set(arguments.rows.split(",")) - {"all", *ROWS, *CURVES}:
        parser.error(f"no row '{min(unknown)}'; there are {', '.join([*ROWS, *CURVES])}")
    for program in ("qemu-nbd", "qemu-img", "qemu-io", "fio"):
        if shutil.which(program) is None:
            print(f"bench/nbd.py: {program} is not installed", file=sys.stderr)
            return 2
    rows: dict[str, Row] = {}
    for name in arguments.rows.split(","):
        rows.update(ROWS if name == "all" else CURVES[name] if name in CURVES else {name: ROWS[name]})
    print(f"{'row':<15} {'qobra':>9} {'other':>9}  {'ratio':>5} {'spread':>11} {'us/op':>13}  goal")
    results = {}
    for name, row in rows.items():
        with tempfile.TemporaryDirectory(prefix="qobra-bench-") as directory:
            results[name] = measure(name, row, Path(directory), arguments)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(results, indent=2))
    return 1 if any(result["ratio"] < rows[name].goal for name, result in results.items()) else 0


class Side:
    """One of the two that are compared, and its figures."""

    def __init__(self, name: str, row: Row, directory: Path, size: str) -> None:
        self.row = row
        self.image = str(directory / f"{name}.qcow2")
        self.socket = str(directory / f"{name}.sock")
        self.iops: list[float] = []
        self.microseconds: list[float] = []
        self.size = make_image(self.image, row, size)
        tls = make_certificates(directory) if row.tls else ""
        start = start_qemu if name == "qemu" else start_qobra
        self.monitor = str(directory / f"{name}.qmp") if row.busy in ("qmp", "job") else ""
        computing = row.busy == "computing" and name == "qobra"
        self.process = start(self.image, self.socket, self.monitor, row.direct, tls, computing)
        try:
            wait_for(self.socket)
        except TimeoutError:
            self.close()
            raise
        scheme = "nbds+unix" if row.tls else "nbd+unix"
        self.uri = f"{scheme}:///disk?socket={self.socket}" + (f"&tls-certificates={tls}" if tls else "")
        self.storm = bool(self.monitor) and name == "qobra"

    def run(self, seconds: int) -> None:
        """One run of fio."""
        if self.row.cold:
            evict(self.image)
        storm = Storm(self.monitor, job=self.row.busy == "job") if self.storm else None
        before = cpu_seconds(self.process.pid)
        if self.row.tls:
            iops, operations = nbdcopy(self.uri, self.row, self.size)
        else:
            iops = fio(self.uri, self.row, seconds)
            operations = iops * seconds
        self.iops.append(iops)
        self.microseconds.append((cpu_seconds(self.process.pid) - before) * 1e6 / operations)
        if storm is not None:
            storm.stop()

    def close(self) -> None:
        """End the server."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()


def measure(name: str, row: Row, directory: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Interleave the runs of one row and print its line."""
    sides: list[Side] = []
    try:
        for each in ("qobra", "idle" if row.busy else "qemu"):
            sides.append(Side(each, row, directory, arguments.size))
        for _ in range(arguments.runs):
            for side in sides:
                side.run(arguments.seconds)
    finally:
        for side in sides:
            side.close()
    ours, others = (statistics.median(side.iops) for side in sides)
    ratios = [a / b for a, b in zip(sides[0].iops, sides[1].iops, strict=True)]
    cost = "/".join(f"{statistics.median(side.microseconds):.1f}" for side in sides)
    ratio = ours / others
    print(
        f"{name:<15} {ours:>9.0f} {others:>9.0f}  {ratio:>5.2f} {f'{min(ratios):.2f}-{max(ratios):.2f}':>11} {cost:>13}"
        f"  {row.goal}{'' if ratio >= row.goal else '  MISSED'}",
        flush=True,
    )
    return {"ratio": ratio, "goal": row.goal, "qobra": sides[0].iops, "other": sides[1].iops}


def fio(uri: str, row: Row, seconds: int) -> float:
    """Operations per second of one run."""
    output = run(
        *("fio", "--name=bench", "--ioengine=nbd", f"--uri={uri}", f"--rw={row.kind}", f"--bs={row.block}"),
        *(f"--iodepth={row.depth}", f"--runtime={seconds}", "--time_based", "--randrepeat=1"),
        *(f"--numjobs={row.connections}", "--group_reporting", "--thread", "--output-format=json"),
    )
    job = json.loads(output[output.index("{") :])["jobs"][0]
    return float(job["read"]["iops"] + job["write"]["iops"])


def nbdcopy(uri: str, row: Row, size: int) -> tuple[float, float]:
    """(operations per second, operations) of reading ``size`` bytes once."""
    block = {"4k": 4 << 10, "1m": 1 << 20}[row.block]
    begin = time.monotonic()
    run(
        *("nbdcopy", "--connections=1", f"--requests={row.depth}", f"--request-size={block}", "--no-extents"),
        *(uri, "null:"),
    )
    return size / block / (time.monotonic() - begin), size / block


def make_image(path: str, row: Row, size: str) -> int:
    """The qcow2 image of that row, its backing files beside it; its length in bytes."""
    run("qemu-img", "create", "-q", "-f", "raw", path, size)
    length = os.path.getsize(path)
    clusters = length // CLUSTER
    if row.layers == 1:
        run("qemu-img", "create", "-q", "-f", "qcow2", path, size)
        if row.image == "full":
            run("qemu-io", "-c", f"write -q -P 7 0 {size}", path)
        elif row.image == "half":
            fill(path, range(0, clusters, 2))
        return length
    below = ""
    for layer in range(row.layers):
        name = path if layer == row.layers - 1 else f"{path}.{layer}"
        run("qemu-img", "create", "-q", "-f", "qcow2", *(("-b", below, "-F", "qcow2") if below else ()), name, size)
        fill(name, range(layer, clusters, row.layers))
        below = name
    return length


def fill(path: str, clusters: range) -> None:
    """Write whole clusters."""
    commands = "".join(f"write -q -P 7 {index * CLUSTER} {CLUSTER}\n" for index in clusters)
    subprocess.run(["qemu-io", "-f", "qcow2", path], input=commands, text=True, stdout=subprocess.DEVNULL, check=True)


def make_certificates(directory: Path) -> str:
    """A directory with what the servers and fio need."""
    import trustme

    if not (directory / "ca-cert.pem").exists():
        authority = trustme.CA()
        issued = authority.issue_cert("localhost", common_name="localhost")
        authority.cert_pem.write_to_path(str(directory / "ca-cert.pem"))
        issued.private_key_pem.write_to_path(str(directory / "server-key.pem"))
        issued.cert_chain_pems[0].write_to_path(str(directory / "server-cert.pem"))
    return str(directory)


def start_qobra(
    image: str, sock: str, monitor: str, direct: bool, tls: str, computing: bool
) -> subprocess.Popen[bytes]:
    """Qobra in a process of its own."""
    return subprocess.Popen([sys.executable, "-c", SERVER, json.dumps([image, sock, monitor, direct, tls, computing])])


def start_qemu(
    image: str, sock: str, _monitor: str, direct: bool, tls: str, _computing: bool
) -> subprocess.Popen[bytes]:
    """qemu-nbd with its defaults."""
    command = ["qemu-nbd", "-t", "-e", "32", "-f", "qcow2", "-k", sock, "-x", "disk"]
    if direct:
        command.append("--cache=none")
    if tls:
        creds = f"tls-creds-x509,id=tls,dir={tls},endpoint=server,verify-peer=off"
        command += ["--object", creds, "--tls-creds", "tls"]
    return subprocess.Popen([*command, image], stderr=subprocess.DEVNULL)


class Storm:
    """A QMP client that never rests; with ``job``, it backs the disk up all the while."""

    def __init__(self, path: str, *, job: bool) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._job = job
        self._stopped = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        stream = self._socket.makefile("rwb")
        stream.readline()
        execute(stream, {"execute": "qmp_capabilities"})
        arguments = {"device": "disk", "target": "target", "sync": "full", "job-id": "job"}
        number = 0
        while not self._stopped:
            # Refused while the last one runs.
            if self._job and number % 16 == 0:
                execute(stream, {"execute": "blockdev-backup", "arguments": arguments})
            execute(stream, {"execute": "query-named-block-nodes"})
            number += 1

    def stop(self) -> None:
        """Let it rest."""
        self._stopped = True
        self._thread.join()
        self._socket.close()


def execute(stream: BufferedRWPair[Any, Any], command: dict[str, object]) -> None:
    """Send a command and wait for its reply, whatever events come before."""
    stream.write(json.dumps(command).encode() + b"\n")
    stream.flush()
    while not stream.readline().startswith((b'{"return"', b'{"error"')):
        pass


def evict(image: str) -> None:
    """Take the image out of the page cache."""
    fd = os.open(image, os.O_RDONLY)
    os.fdatasync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has taken so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wait_for(path: str) -> None:
    """Wait until somebody listens on the unix socket ``path``, without being a client that leaves."""
    deadline = time.monotonic() + 20
    while not any(
        line.split()[3] == "00010000" and line.endswith(f" {path}\n")
        for line in open("/proc/net/unix", encoding="utf-8")
    ):
        if time.monotonic() > deadline:
            raise TimeoutError(f"nobody listens on {path}")
        time.sleep(0.05)


def run(*command: str) -> str:
    """The standard output of a command that must succeed."""
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    sys.exit(main())
