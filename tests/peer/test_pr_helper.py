"""pr-manager-helper against the real qemu-pr-helper."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from qobra.errors import QobraError
from qobra.machine.machine import Machine
from qobra.testing.waiting import wait_until

pytestmark = pytest.mark.skipif(shutil.which("qemu-pr-helper") is None, reason="needs qemu-pr-helper")


def test_connects_and_tells_of_the_helpers_end(tmp_path):
    path = tmp_path / "pr.sock"
    helper = subprocess.Popen(
        ["qemu-pr-helper", "-k", str(path), "-f", str(tmp_path / "pid")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    machine = Machine()
    events = []
    machine.events.subscribe(lambda event: events.append((event["event"], event["data"])))
    try:
        wait_until(path.exists)
        manager = machine.objects.create("pr-manager-helper", "pr0", {"path": str(path)})
        assert manager.is_connected()
        wait_until(lambda: ("PR_MANAGER_STATUS_CHANGED", {"id": "pr0", "connected": True}) in events)
        with open(tmp_path / "file", "wb") as file:
            status, _sense, _data = manager.execute(file.fileno(), bytes([0x5E, 0, 0, 0, 0, 0, 0, 0, 24, 0]))
        assert status == 2  # CHECK CONDITION: a file keeps no reservations
        helper.kill()
        helper.wait()
        wait_until(lambda: ("PR_MANAGER_STATUS_CHANGED", {"id": "pr0", "connected": False}) in events)
        with pytest.raises(QobraError, match="Persistent reservation helper failed"):
            manager.execute(os.open("/dev/null", os.O_RDONLY), bytes([0x5E]))
    finally:
        helper.kill()
        helper.wait()
        machine.close()
