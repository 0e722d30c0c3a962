"""Jobs: backup, mirror, stream and commit of a half-full qcow2 image against qemu-storage-daemon's.

    python bench/jobs.py [--runs 3] [--size 4G] [--guest-size 4G] [--guest-depth 16] [--window 8]
        [--rows backup,mirror,...] [--json FILE]
    python bench/jobs.py --quick    # all rows, smaller

Each run has fresh images, page-cached, and the runs are interleaved. For each row the medians in seconds and their
ratio (above 1: Qobra is faster) are printed with the goal; ``merge`` is the time for merging two bitmaps of a 1 TiB
disk, in milliseconds. The exit code is 1 if a goal is missed.

The ``guest-`` rows are about a guest (random 4K reads and writes, 16 at a time unless ``--guest-depth`` says
otherwise, over NBD) that was at work for a while when a job begins at its default speed: which part it keeps, for as
long as the job runs or ``--window`` seconds, of the IOPS that it has right before the job and right after it (in one
run of the guest, as one run differs from the next by more than a job takes); the median, with the least and the most.
The first second of the job is told apart, and so is how long the job takes in all (15 seconds at most).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

from warm import warm_memory

GOAL = 1.3
MERGE_GOAL_MS = 50.0
GUEST_GOAL = 0.9
GUEST_LEAD = 14.0
"""Seconds that the guest is at work before the job begins: by then it has written all over its disk, and is not getting
faster any more."""
IDLE = 2.0
"""Seconds of that, and after the job, that the job is compared with."""
SETTLING = 0.5
"""Seconds after the job that are not looked at."""
INTERVAL_MS = 100
"""Of each count of what the guest got done."""
JOB_LIMIT = 120.0
"""Seconds after which a job is left alone."""
GUEST_JOB_LIMIT = 15.0
"""The same beside a guest, which may write faster than a mirror or commit can copy: then that never gets ready."""
ROWS = ("backup", "mirror", "stream", "commit", "merge", "guest-backup", "guest-mirror", "guest-stream", "guest-commit")

DAEMONS = {
    "qobra": [sys.executable, "-c", "import sys; from qobra.cli.storage_daemon import main; sys.exit(main())"],
    "qemu": ["qemu-storage-daemon"],
}


class Daemon:
    """A storage daemon and a connection to it."""

    def __init__(self, command: list[str], directory: str) -> None:
        path = os.path.join(directory, "qmp")
        if os.path.exists(path):
            os.unlink(path)
        listening = f"socket,id=c,path={path},server=on,wait=off"
        self.process = subprocess.Popen(
            [*command, "--chardev", listening, "--monitor", "chardev=c"], stderr=subprocess.DEVNULL
        )
        self.sock = socket.socket(socket.AF_UNIX)
        while True:
            try:
                self.sock.connect(path)
                break
            except OSError:
                time.sleep(0.001)
        self.lines = self.sock.makefile("rb")
        self.lines.readline()
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: Any) -> Any:
        """Run a command; events on the way are dropped."""
        names = {name.replace("_", "-"): value for name, value in arguments.items()}
        self.sock.sendall(json.dumps({"execute": command, "arguments": names}).encode())
        while True:
            answer = json.loads(self.lines.readline())
            if "error" in answer:
                raise RuntimeError(f"{command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]

    def job_seconds(self, command: str, interval: float, limit: float, **arguments: Any) -> float:
        """How long a job takes to its end, or until it is ready; asked every ``interval`` seconds."""
        begin = time.perf_counter()
        self.execute(command, job_id="j", auto_dismiss=False, **arguments)
        while (took := time.perf_counter() - begin) < limit:
            job = self.execute("query-jobs")[0]
            if job["status"] in ("concluded", "ready"):
                assert "error" not in job, job
                break
            time.sleep(interval)
        return took

    def add(self, name: str, path: str, backing: str | None = None) -> None:
        """Open a qcow2 image as a node."""
        file = {"driver": "file", "filename": path}
        self.execute("blockdev-add", driver="qcow2", node_name=name, file=file, backing=backing)

    def close(self) -> None:
        """End the daemon, whatever it still does."""
        self.sock.close()
        self.process.kill()
        self.process.wait()


def main() -> int:
    """Run, print, and say whether every goal was reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--size", default="4G")
    parser.add_argument("--guest-size", help="the size of the disk for the guest- rows (default: --size)")
    parser.add_argument("--guest-depth", type=int, default=16, help="requests that a guest has under way")
    parser.add_argument("--quick", action="store_true", help="one run, 2G, 1G for the guest- rows, --window 4")
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--window", type=float, default=8, help="seconds of a guest beside a job")
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.runs, arguments.size, arguments.guest_size, arguments.window = 1, "2G", "1G", 4.0
    if unknown := set(arguments.rows.split(",")) - set(ROWS):
        parser.error(f"no row '{min(unknown)}'; there are {', '.join(ROWS)}")
    for program in ("qemu-storage-daemon", "qemu-img", "qemu-io", "fio"):
        if shutil.which(program) is None:
            print(f"bench/jobs.py: {program} is not installed", file=sys.stderr)
            return 2
    with tempfile.TemporaryDirectory(prefix="qobra-bench-") as directory, warm_memory():
        return bench(directory, arguments)


def bench(directory: str, arguments: argparse.Namespace) -> int:
    """Measure the rows that were asked for, with images in ``directory``."""
    disks: dict[str, tuple[str, int]] = {}

    def disk(text: str) -> tuple[str, int]:
        if text not in disks:
            disks[text] = half_full(os.path.join(directory, "full-" + text), text)
        return disks[text]

    rows: dict[str, dict[str, float]] = {}
    missed = False
    for row in arguments.rows.split(","):
        if row == "merge":
            took = merge_ms()
            rows[row] = {"qobra_ms": took}
            met = took <= MERGE_GOAL_MS
            print(f"{row:8} {took:9.1f} ms  goal {MERGE_GOAL_MS:g} ms {'' if met else 'MISSED'}")
            missed = missed or not met
            continue
        if row.startswith("guest-"):
            full, size = disk(arguments.guest_size or arguments.size)
            kept: dict[str, list[Kept]] = {name: [] for name in DAEMONS}
            for _ in range(arguments.runs):
                for name, command in DAEMONS.items():
                    job = row.removeprefix("guest-")
                    depth, window = arguments.guest_depth, arguments.window
                    kept[name].append(guest_beside(directory, command, job, full, size, window, depth))
            rows[row] = {}
            for name, runs in kept.items():
                rows[row] |= {f"{name}_{member}": statistics.median(each[member] for each in runs) for member in KEPT}
                parts = [each["kept"] for each in runs]
                rows[row] |= {f"{name}_least": min(parts), f"{name}_most": max(parts)}
            met = rows[row]["qobra_kept"] >= GUEST_GOAL
            missed = missed or not met
            for name in DAEMONS:
                kept_all, first, job_seconds, idle = (rows[row][f"{name}_{member}"] for member in KEPT)
                least, most = rows[row][f"{name}_least"], rows[row][f"{name}_most"]
                verdict = "" if name == "qemu" else f"  goal {GUEST_GOAL:g} {'' if met else 'MISSED'}"
                print(
                    f"{row:13} {name:5}  kept {kept_all:5.2f} ({least:.2f} to {most:.2f})  "
                    f"in the first second {first:5.2f}  "
                    f"job {job_seconds:6.2f} s  idle {idle:6.0f} IOPS{verdict}",
                    flush=True,
                )
            continue
        full, size = disk(arguments.size)
        times: dict[str, list[float]] = {name: [] for name in DAEMONS}
        for _ in range(arguments.runs):
            for name, command in DAEMONS.items():
                times[name].append(one(directory, command, row, full, size))
        medians = {name: statistics.median(each) for name, each in times.items()}
        ratio = medians["qemu"] / medians["qobra"]
        rows[row] = {**medians, "ratio": ratio}
        met = ratio >= GOAL
        missed = missed or not met
        print(
            f"{row:8} qobra {medians['qobra']:7.3f} s  qemu {medians['qemu']:7.3f} s  ratio {ratio:5.2f}  "
            f"goal {GOAL:g} {'' if met else 'MISSED'}",
            flush=True,
        )
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(rows, file, indent=2)
    return 1 if missed else 0


def half_full(path: str, text: str) -> tuple[str, int]:
    """A new image, with data in every other 32 MiB, of the size that ``text`` says; also its size in bytes."""
    size = int(text[:-1]) * {"M": 1 << 20, "G": 1 << 30}[text[-1]]
    run("qemu-img", "create", "-q", "-f", "qcow2", path, str(size))
    step = 64 << 20
    writes = [f"write -q -P {1 + offset // step % 200} {offset} {step // 2}" for offset in range(0, size, step)]
    run("qemu-io", *(part for write in writes for part in ("-c", write)), path)
    return path, size


def one(directory: str, command: list[str], row: str, full: str, size: int) -> float:
    """Seconds of one job on fresh images."""
    daemon = start(directory, command, row, full, size)
    try:
        return daemon.job_seconds(JOBS[row][0], 0.01, JOB_LIMIT, **JOBS[row][1])
    finally:
        daemon.close()


JOBS: dict[str, tuple[str, dict[str, Any]]] = {
    "backup": ("blockdev-backup", {"device": "source", "target": "target", "sync": "full"}),
    "mirror": ("blockdev-mirror", {"device": "source", "target": "target", "sync": "full"}),
    "stream": ("block-stream", {"device": "source"}),
    "commit": ("block-commit", {"device": "source"}),
}


def start(directory: str, command: list[str], row: str, full: str, size: int) -> Daemon:
    """A daemon with the nodes of a job on fresh images."""
    source, other = os.path.join(directory, "source"), os.path.join(directory, "other")
    for path in (source, other):
        if os.path.exists(path):
            os.unlink(path)
    if row != "stream":
        shutil.copyfile(full, source)
    if row in ("backup", "mirror", "commit"):
        run("qemu-img", "create", "-q", "-f", "qcow2", other, str(size))
    if row == "stream":
        run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", full, source, str(size))
    os.sync()
    daemon = Daemon(command, directory)
    if row == "stream":
        daemon.add("base", full)
        daemon.add("source", source, "base")
    elif row == "commit":
        daemon.add("base", other)
        daemon.add("source", source, "base")
    else:
        daemon.add("source", source)
        daemon.add("target", other)
    return daemon


KEPT = ("kept", "first", "job", "idle")
Kept = dict[str, float]
"""What a guest kept beside a job, in all and in the first second; the job's seconds; the guest's IOPS without it."""


def guest_beside(
    directory: str, command: list[str], row: str, full: str, size: int, window: float, depth: int = 16
) -> Kept:
    """Have a guest, with ``depth`` requests under way, at work before, during and after a job."""
    daemon = start(directory, command, row, full, size)
    try:
        path, log = os.path.join(directory, "nbd"), os.path.join(directory, "guest")
        if os.path.exists(path):
            os.unlink(path)
        daemon.execute("nbd-server-start", addr={"type": "unix", "data": {"path": path}})
        daemon.execute("block-export-add", type="nbd", id="e", node_name="source", name="x", writable=True)
        logging = (f"--write_iops_log={log}", f"--log_avg_msec={INTERVAL_MS}", "--log_unix_epoch=1")
        lasting = GUEST_LEAD + GUEST_JOB_LIMIT + SETTLING + IDLE + 10
        guest = subprocess.Popen(
            [*fio(f"nbd+unix:///x?socket={path}", lasting, depth), *logging], stdout=subprocess.DEVNULL
        )
        time.sleep(GUEST_LEAD)
        if guest.poll() is not None:
            raise RuntimeError("fio failed")
        begin = time.time()
        took = daemon.job_seconds(JOBS[row][0], INTERVAL_MS / 1000, GUEST_JOB_LIMIT, **JOBS[row][1])
        if daemon.execute("query-jobs")[0]["status"] != "concluded":
            daemon.execute("block-job-cancel", device="j", force=True)
        end = time.time()
        time.sleep(SETTLING + IDLE)
        guest.terminate()  # it writes its log
        guest.wait()
        idle = rate(log, begin - IDLE, begin), rate(log, end + SETTLING, end + SETTLING + IDLE)
        mean = max(1.0, statistics.mean(idle))
        kept, first = (rate(log, begin, begin + min(took, seconds)) / mean for seconds in (window, 1))
        return {"kept": kept, "first": first, "job": took, "idle": mean}
    finally:
        daemon.close()


def rate(log: str, begin: float, end: float) -> float:
    """The IOPS that fio's log (milliseconds since the epoch, IOPS, ...) tells of the time between."""
    done = 0.0
    with open(log + "_iops.1.log") as file:
        for line in file:
            milliseconds, value = line.split(",")[:2]
            # Each value, of reads or of writes, is of the interval that ends there.
            last = int(milliseconds) / 1000
            shared = min(end, last) - max(begin, last - INTERVAL_MS / 1000)
            done += float(value) * max(0.0, shared)
    return done / (end - begin)


def fio(uri: str, seconds: float, depth: int = 16) -> list[str]:
    """The command of the guest."""
    return [
        *("fio", "--name=guest", "--ioengine=nbd", f"--uri={uri}", "--rw=randrw", "--bs=4k", f"--iodepth={depth}"),
        *(f"--runtime={seconds:g}", "--time_based", "--randrepeat=1", "--thread", "--output-format=json"),
    ]


def merge_ms() -> float:
    """Milliseconds for merging two bitmaps of a 1 TiB disk, 64 KiB granularity, a third of it dirty in each."""
    from qobra.block.bitmap import DirtyBitmap
    from qobra.block.layer import BlockLayer

    layer = BlockLayer()
    node = layer.add_node({"driver": "null-co", "node-name": "disk", "size": 1 << 40})
    bitmaps = [DirtyBitmap(node, name, 65536, enabled=False) for name in ("one", "two")]
    for index, bitmap in enumerate(bitmaps):
        for offset in range(index << 20, 1 << 40, 3 << 20):
            bitmap.set(offset, 1 << 20)
    begin = time.perf_counter()
    bitmaps[0].merge(bitmaps[1])
    took = (time.perf_counter() - begin) * 1e3
    layer.close()
    return took


def run(*command: str) -> None:
    """Run a program that has to succeed."""
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    sys.exit(main())
