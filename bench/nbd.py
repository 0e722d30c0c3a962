"""NBD: Qobra's server against qemu-nbd, with fio's nbd engine over a unix socket.

    python bench/nbd.py [--runs 5] [--seconds 2] [--size 256M] [--rows 4k-read-qd1,...] [--json FILE]

Both serve a fully allocated qcow2 image of their own, page-cached. Runs are interleaved, so that whatever else the
machine does hits both alike. For each row the medians, their ratio (above 1: Qobra is faster) and the spread
of the ratios of neighbouring runs are printed, and the goal where there is one. The exit code is 1 if a goal is missed.
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
import time

ROWS = {
    # name: (fio's rw, block size, queue depth, goal)
    "4k-read-qd1": ("randread", "4k", 1, 1.0),
    "4k-read-qd16": ("randread", "4k", 16, 2.5),
    "4k-read-qd32": ("randread", "4k", 32, 2.5),
    "4k-write-qd32": ("randwrite", "4k", 32, 1.5),
    "1m-read": ("read", "1m", 4, 1.4),
    "1m-write": ("write", "1m", 4, 1.4),
}

SERVER = """
import sys
from qobra.machine.machine import Machine
machine = Machine()
path, sock = sys.argv[1:]
with machine.control:
    machine.block.add_node({"driver": "qcow2", "node-name": "disk", "file": {"driver": "file", "filename": path}})
    machine.block.exports.start_nbd_server({"type": "unix", "path": sock})
    machine.block.exports.add({"type": "nbd", "id": "disk", "node-name": "disk", "writable": True})
machine.wait_for_exit()
"""


def main() -> int:
    """Run, print, and say whether every goal was reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--size", default="256M")
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    for program in ("qemu-nbd", "qemu-img", "qemu-io", "fio"):
        if shutil.which(program) is None:
            print(f"bench/nbd.py: {program} is not installed", file=sys.stderr)
            return 2
    with tempfile.TemporaryDirectory(prefix="qobra-bench-") as directory:
        return bench(directory, arguments)


def bench(directory: str, arguments: argparse.Namespace) -> int:
    """Measure the rows that were asked for, with images and sockets in ``directory``."""
    servers = {"qobra": start_qobra, "qemu": start_qemu}
    uris = {}
    processes = []
    try:
        for name, start in servers.items():
            image = os.path.join(directory, f"{name}.qcow2")
            sock = os.path.join(directory, f"{name}.sock")
            run("qemu-img", "create", "-q", "-f", "qcow2", image, arguments.size)
            run("qemu-io", "-c", f"write -q -P 7 0 {arguments.size}", image)
            processes.append(start(image, sock))
            wait_for(sock)
            uris[name] = f"nbd+unix:///disk?socket={sock}"
        return measure(uris, arguments)
    finally:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            process.wait()


def measure(uris: dict[str, str], arguments: argparse.Namespace) -> int:
    """Interleave the runs of each row and print the table."""
    print(f"{'row':<15} {'qobra':>10} {'qemu':>10}  {'ratio':>6} {'spread':>12}  goal")
    results = {}
    missed = 0
    for row in arguments.rows.split(","):
        kind, block, depth, goal = ROWS[row]
        figures: dict[str, list[float]] = {name: [] for name in uris}
        for _ in range(arguments.runs):
            for name, uri in uris.items():
                figures[name].append(fio(uri, kind, block, depth, arguments.seconds))
        ratios = [a / b for a, b in zip(figures["qobra"], figures["qemu"], strict=True)]
        medians = {name: statistics.median(values) for name, values in figures.items()}
        ratio = medians["qobra"] / medians["qemu"]
        missed += ratio < goal
        results[row] = {"ratio": ratio, "goal": goal, "qobra": figures["qobra"], "qemu": figures["qemu"]}
        spread = f"{min(ratios):.2f}-{max(ratios):.2f}"
        print(
            f"{row:<15} {medians['qobra']:>10.0f} {medians['qemu']:>10.0f}  {ratio:>6.2f} {spread:>12}  "
            f"{goal}{'' if ratio >= goal else '  MISSED'}",
            flush=True,
        )
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(results, file, indent=2)
    return 1 if missed else 0


def fio(uri: str, kind: str, block: str, depth: int, seconds: float) -> float:
    """Operations per second of one run."""
    output = run(
        "fio",
        "--name=bench",
        "--ioengine=nbd",
        f"--uri={uri}",
        f"--rw={kind}",
        f"--bs={block}",
        f"--iodepth={depth}",
        f"--runtime={seconds}",
        "--time_based",
        "--randrepeat=1",
        "--output-format=json",
    )
    job = json.loads(output[output.index("{") :])["jobs"][0]
    return float(job["read"]["iops"] + job["write"]["iops"])


def start_qobra(image: str, sock: str) -> subprocess.Popen[bytes]:
    """Qobra in a process of its own."""
    return subprocess.Popen([sys.executable, "-c", SERVER, image, sock])


def start_qemu(image: str, sock: str) -> subprocess.Popen[bytes]:
    """qemu-nbd with its defaults."""
    return subprocess.Popen(["qemu-nbd", "-t", "-e", "16", "-f", "qcow2", "-k", sock, "-x", "disk", image])


def wait_for(path: str) -> None:
    """Wait until somebody listens on the unix socket ``path``."""
    deadline = time.monotonic() + 20
    while True:
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(path) == 0:
                return
        if time.monotonic() > deadline:
            raise TimeoutError(f"nobody listens on {path}")
        time.sleep(0.05)


def run(*command: str) -> str:
    """The standard output of a command that must succeed."""
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    sys.exit(main())
