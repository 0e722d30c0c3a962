"""QMP: the storage daemon against qemu-storage-daemon: round trips, start to greeting, memory at rest.

    python bench/qmp.py [--runs 9] [--json FILE]

Runs are interleaved, so that whatever else the machine does hits both alike. For each row the medians and their ratio
(below 1: Qobra is faster) are printed, with the goal. The exit code is 1 if a goal is missed.
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

# name: (round trips a run, goal: at most this times qemu-storage-daemon's)
COMMANDS = {
    "query-version": (300, 0.8),
    "query-named-block-nodes": (300, 0.8),
    "query-qmp-schema": (5, 0.1),
}
START_GOAL_MS = 20.0
MEMORY_GOAL_MIB = 40.0
PATIENCE_S = 10
TRIES = 3

# The program as the environment has it.
QOBRA = [os.path.join(os.path.dirname(sys.executable), "qobra-storage-daemon")]


class Daemon:
    """A running daemon and a negotiated connection to it. ``greeted_ms`` is how long the greeting took.

    Raises TimeoutError for a daemon that does not answer.
    """

    def __init__(self, command: list[str], directory: str) -> None:
        path = os.path.join(directory, "qmp")
        listening = f"socket,id=c,path={path},server=on,wait=off"
        begin = time.perf_counter()
        self.process = subprocess.Popen([*command, "--chardev", listening, "--monitor", "chardev=c"])
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE_S)
        while True:
            try:
                self.sock.connect(path)
                break
            except OSError:
                time.sleep(0.0002)
        try:
            self.receive()
            self.greeted_ms = (time.perf_counter() - begin) * 1e3
            self.round_trip_us(b'{"execute":"qmp_capabilities"}')
        except TimeoutError:
            self.close()
            raise

    def receive(self) -> bytes:
        data = self.sock.recv(1 << 20)
        while not data.endswith(b"\r\n"):
            data += self.sock.recv(1 << 20)
        return data

    def round_trip_us(self, request: bytes) -> float:
        begin = time.perf_counter()
        self.sock.sendall(request)
        self.receive()
        return (time.perf_counter() - begin) * 1e6

    def memory_mib(self) -> float:
        with open(f"/proc/{self.process.pid}/status") as status:
            return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmRSS:"))

    def close(self) -> None:
        self.sock.close()
        self.process.kill()
        self.process.wait()


def _started(command: list[str], directory: str) -> Daemon:
    """A daemon that answers: one of QEMU's may fail to, if it is connected to while it starts."""
    for _ in range(TRIES):
        try:
            return Daemon(command, tempfile.mkdtemp(dir=directory))
        except TimeoutError:
            print(f"bench/qmp.py: {command[0]} does not answer; started again", file=sys.stderr)
    sys.exit(1)


def main() -> int:
    """Run, print, and say whether every goal was reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    qemu = shutil.which("qemu-storage-daemon")
    if qemu is None:
        print("bench/qmp.py: qemu-storage-daemon is not installed", file=sys.stderr)
        return 2
    # An environment without bytecode would compile every module at each start.
    subprocess.run([sys.executable, "-m", "compileall", "-q", os.path.dirname(_package())], check=False)
    subprocess.run([sys.executable, "-m", "qobra.cli._bundle"], check=False)
    commands = {"qobra": QOBRA, "qemu": [qemu]}
    results = measure_start(commands, arguments.runs) | measure_round_trips(commands, arguments.runs)
    missed = 0
    print(f"{'row':<26} {'qobra':>10} {'qemu':>10} {'ratio':>6}  goal")
    for row, result in results.items():
        missed += not result["reached"]
        ratio = result["qobra"] / result["qemu"]
        verdict = "" if result["reached"] else "  MISSED"
        print(f"{row:<26} {result['qobra']:>10.1f} {result['qemu']:>10.1f} {ratio:>6.2f}  {result['goal']}{verdict}")
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(results, file, indent=2)
    return 1 if missed else 0


def _package() -> str:
    import qobra

    return qobra.__file__


def measure_start(commands: dict[str, list[str]], runs: int) -> dict[str, Any]:
    """Exec to greeting, and memory then."""
    times: dict[str, list[float]] = {name: [] for name in commands}
    memory: dict[str, float] = {}
    for _ in range(runs + 1):
        for name, command in commands.items():
            with tempfile.TemporaryDirectory(prefix="qobra-bench-") as directory:
                daemon = _started(command, directory)
                times[name].append(daemon.greeted_ms)
                memory[name] = daemon.memory_mib()
                daemon.close()
    # The first run of each warms the caches.
    medians = {name: statistics.median(values[1:]) for name, values in times.items()}
    return {
        "start to greeting, ms": medians
        | {"goal": f"<= {START_GOAL_MS:g} ms", "reached": medians["qobra"] <= START_GOAL_MS},
        "memory at rest, MiB": memory
        | {"goal": f"<= {MEMORY_GOAL_MIB:g} MiB", "reached": memory["qobra"] <= MEMORY_GOAL_MIB},
    }


def measure_round_trips(commands: dict[str, list[str]], runs: int) -> dict[str, Any]:
    """The median time of a round trip of each command, in microseconds."""
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="qobra-bench-") as directory:
        daemons = {}
        for name, command in commands.items():
            os.mkdir(os.path.join(directory, name))
            daemons[name] = _started(command, os.path.join(directory, name))
        for row, (count, goal) in COMMANDS.items():
            request = json.dumps({"execute": row}).encode()
            medians: dict[str, list[float]] = {name: [] for name in daemons}
            for _ in range(runs):
                for name, daemon in daemons.items():
                    trips = [daemon.round_trip_us(request) for _ in range(count)]
                    medians[name].append(statistics.median(trips))
            figures: dict[str, Any] = {name: statistics.median(values) for name, values in medians.items()}
            figures["goal"] = f"<= {goal:g} x"
            figures["reached"] = figures["qobra"] <= goal * figures["qemu"]
            results[f"{row}, us"] = figures
        for daemon in daemons.values():
            daemon.close()
    return results


if __name__ == "__main__":
    sys.exit(main())
