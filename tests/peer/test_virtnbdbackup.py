"""virtnbdbackup saves a running domain, in full and what changed since, and restores it with our tools for QEMU's."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from qobra.testing.libvirt import libvirt_session, reason_to_skip

_REASON = "virtnbdbackup is not installed" if shutil.which("virtnbdbackup") is None else reason_to_skip()

pytestmark = pytest.mark.skipif(_REASON is not None, reason=_REASON or "")

_MIB = 1 << 20
_DEVICE = "/machine/peripheral/virtio-disk0/virtio-backend"


def test_incremental_backups_and_restore() -> None:
    with libvirt_session() as session:
        home = session.home
        disk = str(home / "disk.qcow2")
        subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -q -P 1 0 4M", disk], check=True)
        session.virsh("define", session.domain("q35"))
        session.virsh("start", "small")
        where = (
            "-U",
            session.uri,
            "-d",
            "small",
            "-o",
            str(home / "backup"),
            "-S",
            str(home),
            "-f",
            str(home / "nbd"),
            "-n",
        )
        for number in range(3):
            told = session.run("virtnbdbackup", "-l", "inc" if number else "full", *where)
            assert f"{_MIB if number else 4 * _MIB} bytes of data extents to backup" in told
            write = f'qemu-io -d {_DEVICE} "write -q -P {number + 2} {number + 2}M 1M"'
            assert "rror" not in session.virsh("qemu-monitor-command", "small", "--hmp", write)
        session.run("virtnbdbackup", "-l", "inc", *where)
        restored = home / "restored"
        session.run(
            "virtnbdrestore",
            "-U",
            session.uri,
            "-i",
            str(home / "backup"),
            "-o",
            str(restored),
            "-f",
            str(home / "r"),
            "-n",
        )
        session.virsh("destroy", "small")
        subprocess.run(["qemu-img", "compare", "-q", disk, str(restored / "disk.qcow2")], check=True)
        subprocess.run(["qemu-img", "check", "-q", str(restored / "disk.qcow2")], check=True)
