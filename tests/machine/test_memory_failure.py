"""Broken memory of the host is reported. The kernel's signal is forged, in a process of its own."""

from __future__ import annotations

import json
import platform
import subprocess
import sys

import pytest

_SCRIPT = r"""
import ctypes, json, os, signal, sys, time
from qobra.machine import memory_failure
memory_failure.block()
from qobra.machine.launch import simple_machine
machine = simple_machine("x86_64", "pc", memory=16 << 20)
events = []
machine.events.subscribe(events.append)
memory_failure.watch(machine)
libc = ctypes.CDLL(None, use_errno=True)
view = machine.board.ram.view
guest = ctypes.addressof(ctypes.c_char.from_buffer(view)) + 0x100000
own = ctypes.addressof(ctypes.create_string_buffer(64))
for address in (guest, own):
    fields = (signal.SIGBUS, 0, 5, 0)
    info = b"".join(n.to_bytes(4, "little") for n in fields) + address.to_bytes(8, "little")
    count = len(events)
    assert libc.syscall(129, os.getpid(), int(signal.SIGBUS), info.ljust(128, b"\0")) == 0, ctypes.get_errno()
    deadline = time.monotonic() + 30
    while len(events) == count and time.monotonic() < deadline:
        time.sleep(0.005)
print(json.dumps([[event["event"], event["data"]] for event in events]))
sys.stdout.flush()
os._exit(0)
"""


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="the system call's number is of Linux on x86-64"
)
def test_failures_of_memory_that_nobody_used_yet() -> None:
    done = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    flags = {"action-required": False, "recursive": False}
    assert json.loads(done.stdout) == [
        ["MEMORY_FAILURE", {"recipient": "guest", "action": "ignore", "flags": flags}],
        ["MEMORY_FAILURE", {"recipient": "hypervisor", "action": "ignore", "flags": flags}],
    ]
