"""Throttling: what a client gets through a throttle node in real time, against the limit.

    python bench/throttle.py [--seconds 10] [--json FILE]

fio writes and reads 4K at random over NBD, as fast as it may. For each limit the rate over the whole time is printed
with its deviation; the goal is 2 %. The exit code is 1 if it is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from typing import Any

from jobs import Daemon, fio

GOAL = 0.02
BLOCK = 4096
LIMITS: dict[str, tuple[dict[str, int], float]] = {
    "iops-total 500": ({"iops-total": 500}, 500),
    "iops-total 5000": ({"iops-total": 5000}, 5000),
    "bps-total 4 MiB": ({"bps-total": 4 << 20}, (4 << 20) / BLOCK),
    "iops-size 2048, iops-total 2000": ({"iops-total": 2000, "iops-size": 2048}, 1000),
}
"""The limits of a group, and the requests in a second that they allow."""


def main() -> int:
    """Run, print, and say whether the goal was reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    if shutil.which("fio") is None:
        print("bench/throttle.py: fio is not installed", file=sys.stderr)
        return 2
    missed = False
    rows: dict[str, Any] = {}
    for name, (limits, allowed) in LIMITS.items():
        rate = measure(limits, arguments.seconds)
        off = rate / allowed - 1
        missed = missed or abs(off) > GOAL
        rows[name] = {"rate": rate, "allowed": allowed, "off": off}
        print(f"{name:34} {rate:9.1f} of {allowed:7.1f} a second  {off:+.2%} {'' if abs(off) <= GOAL else 'MISSED'}")
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(rows, file, indent=2)
    return 1 if missed else 0


def measure(limits: dict[str, int], seconds: int) -> float:
    """Requests in a second that get through."""
    with tempfile.TemporaryDirectory(prefix="qobra-bench-") as directory:
        program = os.path.join(os.path.dirname(sys.executable), "qobra-storage-daemon")
        daemon = Daemon([program], directory)
        try:
            path = os.path.join(directory, "nbd")
            daemon.execute("object-add", qom_type="throttle-group", id="g", limits=limits)
            daemon.execute("blockdev-add", driver="null-co", node_name="disk", size=1 << 30, read_zeroes=True)
            daemon.execute("blockdev-add", driver="throttle", node_name="slow", throttle_group="g", file="disk")
            daemon.execute("nbd-server-start", addr={"type": "unix", "data": {"path": path}})
            daemon.execute("block-export-add", type="nbd", id="e", node_name="slow", name="x", writable=True)
            return random_io(f"nbd+unix:///x?socket={path}", seconds)
        finally:
            daemon.close()


def random_io(uri: str, seconds: float) -> float:
    """IOPS of 4K random reads and writes."""
    output = subprocess.run(fio(uri, seconds), check=True, stdout=subprocess.PIPE, text=True).stdout
    job = json.loads(output[output.index("{") :])["jobs"][0]
    return float(job["read"]["iops"] + job["write"]["iops"])


if __name__ == "__main__":
    sys.exit(main())
