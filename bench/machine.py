"""Machines without a CPU: what one costs, and device and type queries against QEMU.

Goals: 100 machines in a process at 3 MiB and 10 ms each or less; a device_add/device_del round trip and qom-list-types
no slower than QEMU's (ratio <= 1).
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from qobra.machine.launch import simple_machine
from qobra.testing.system import SystemProgram, peer_available

_MACHINES, _ROUNDS = 100, 40
_GOAL_MIB, _GOAL_MS = 3.0, 10.0


def _resident_mib() -> float:
    with open("/proc/self/statm") as stream:
        return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def machines() -> bool:
    """100 machines of each board, one after the other, all kept."""
    met = True
    for architecture, board in (("x86_64", "pc"), ("x86_64", "q35"), ("riscv64", "virt")):
        simple_machine(architecture, board).close()  # imports are not the machine's
        before, times, kept = _resident_mib(), [], []
        for _ in range(_MACHINES):
            start = time.perf_counter()
            kept.append(simple_machine(architecture, board))
            times.append((time.perf_counter() - start) * 1e3)
        mib, ms = (_resident_mib() - before) / _MACHINES, statistics.median(times)
        good = mib <= _GOAL_MIB and ms <= _GOAL_MS
        met = met and good
        print(f"machine {board:<5} {ms:6.2f} ms  {mib:5.2f} MiB each of {_MACHINES}   {'ok' if good else 'TOO MUCH'}")
        for machine in kept:
            machine.close()
    return met


def _round_trip_us(program: SystemProgram) -> float:
    start = time.perf_counter()
    assert program.qmp("device_add", {"driver": "scsi-cd", "id": "x", "bus": "s.0"}) == {}
    assert program.qmp("device_del", {"id": "x"}) == {}
    elapsed = (time.perf_counter() - start) * 1e6
    program.wait_event("DEVICE_DELETED")
    return elapsed


def _types_us(program: SystemProgram) -> float:
    start = time.perf_counter()
    program.qmp("qom-list-types", {"abstract": True})
    return (time.perf_counter() - start) * 1e6


def against_peer() -> bool:
    """Interleaved rounds on both programs."""
    if not peer_available("x86_64"):
        print("qemu-system-x86_64 is not installed: nothing to compare with")
        return True
    met = True
    with tempfile.TemporaryDirectory() as name:
        arguments = ("-machine", "pc", "-m", "64", "-device", "virtio-scsi-pci,id=s")
        with (
            SystemProgram(Path(name), "x86_64", *arguments) as own,
            SystemProgram(Path(name), "x86_64", *arguments, peer=True) as peer,
        ):
            for what, measure in (("device_add + device_del", _round_trip_us), ("qom-list-types", _types_us)):
                ours, theirs = [], []
                for _ in range(_ROUNDS):
                    ours.append(measure(own))
                    theirs.append(measure(peer))
                ratio = statistics.median(ours) / statistics.median(theirs)
                met = met and ratio <= 1
                print(
                    f"{what:<24} {statistics.median(ours):8.0f} us, QEMU {statistics.median(theirs):8.0f} us, "
                    f"ratio {ratio:.2f}   {'ok' if ratio <= 1 else 'SLOWER'}"
                )
    return met


if __name__ == "__main__":
    results = [machines(), against_peer()]
    sys.exit(0 if all(results) else 1)
