"""The storage daemon of the demonstration, and what is asked of it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import qobra.nbd
from qobra.client.sync import Client
from qobra.errors import QobraError

START_TIMEOUT = 30.0


class Daemon:
    """A qobra-storage-daemon of our own, with QMP and NBD on unix sockets in ``directory``."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._qmp_path = os.path.join(directory, "qmp.sock")
        self._nbd_path = os.path.join(directory, "nbd.sock")
        self._has_base = False
        self.backup_path = os.path.join(directory, "backup.qcow2")
        began = time.monotonic()
        command = [sys.executable, "-m", "qobra.cli.storage_daemon"]
        command += ["--chardev", f"socket,id=qmp,path={self._qmp_path},server=on,wait=off"]
        command += ["--monitor", "chardev=qmp"]
        self._log_path = os.path.join(directory, "daemon.log")
        # A session and outputs of its own: it outlives us where it is to stay.
        with open(self._log_path, "wb") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        try:
            self.qmp = self._connect(began + START_TIMEOUT)
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise
        self.start_ms = (time.monotonic() - began) * 1000
        self.qmp.nbd_server_start(addr={"type": "unix", "data": {"path": self._nbd_path}})

    def add_new_disk(self, size: int) -> int:
        """Create a qcow2 disk and export it; returns its size."""
        path = os.path.join(self._directory, "disk.qcow2")
        self._create_qcow2("disk", path, size)
        self._add("disk", {"driver": "qcow2", "file": {"driver": "file", "filename": path}}, writable=True)
        return size

    def add_overlay(self, path: str) -> int:
        """Put an overlay over the image at ``path`` and export both; returns the size."""
        file = {"driver": "file", "filename": os.path.abspath(path)}
        self._add("base", {"driver": image_format(path), "read-only": True, "file": file}, writable=False)
        self._has_base = True
        nodes = self.qmp.query_named_block_nodes(flat=True)
        size = next(node["image"]["virtual-size"] for node in nodes if node.get("node-name") == "base")
        overlay = os.path.join(self._directory, "overlay.qcow2")
        self._create_qcow2("overlay", overlay, size)
        file = {"driver": "file", "filename": overlay}
        self._add("disk", {"driver": "qcow2", "file": file, "backing": "base"}, writable=True)
        return size

    def add_backup_target(self, size: int) -> None:
        """Create the image that the backup goes to."""
        self._create_qcow2("backup", self.backup_path, size)
        file = {"driver": "file", "filename": self.backup_path}
        self.qmp.blockdev_add({"driver": "qcow2", "node-name": "backup", "file": file})

    def start_backup(self, speed: int) -> None:
        """Start to copy the disk as it is now, at most ``speed`` bytes a second."""
        self.qmp.blockdev_backup(job_id="backup", device="disk", target="backup", sync="full", speed=speed)

    def verify(self, compare: Callable[[qobra.nbd.Client, qobra.nbd.Client | None], int]) -> int:
        """Call ``compare`` with clients of the backup and of the disk's base, if it has one."""
        self.qmp.block_export_add(type="nbd", id="backup", node_name="backup", name="backup")
        with self.nbd("backup") as backup:
            if not self._has_base:
                return compare(backup, None)
            with self.nbd("base") as base:
                return compare(backup, base)

    def uri(self, export: str) -> str:
        """Where an export is."""
        return f"nbd+unix:///{export}?socket={self._nbd_path}"

    def nbd(self, export: str) -> qobra.nbd.Client:
        """A client of an export."""
        return qobra.nbd.connect(self.uri(export))

    def how_to_connect(self) -> str:
        """What to type to use the daemon, which stays; it is no longer ours."""
        self.qmp.disconnect()
        shell = os.path.join(os.path.dirname(sys.executable), "qobra-shell")
        program = shell if os.path.exists(shell) else f"{sys.executable} -m qobra.cli.shell"
        return f"""
The daemon stays up (process {self._process.pid}, files in {self._directory}).
  QMP     {program} {self._qmp_path}
          {program} {self._qmp_path} -c 'query-block-exports'
  NBD     nbdinfo '{self.uri("disk")}'
          qemu-img info '{self.uri("disk")}'
  stop    {program} {self._qmp_path} -c quit; rm -r {self._directory}"""

    def close(self) -> None:
        """Ask the daemon to end, and see to it that it does."""
        try:
            if self.qmp.connected:
                self.qmp.execute("quit", timeout=10)
            self._process.wait(10)
        except (QobraError, TimeoutError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self.qmp.disconnect()

    def _connect(self, deadline: float) -> Client:
        while True:
            try:
                return Client.connect(self._qmp_path, timeout=max(0.1, deadline - time.monotonic()))
            except QobraError:
                if self._process.poll() is not None:
                    with open(self._log_path, errors="replace") as log:
                        raise QobraError(f"the storage daemon did not start: {log.read().strip()}") from None
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.002)

    def _create_qcow2(self, name: str, path: str, size: int) -> None:
        self._create(f"{name}-file", {"driver": "file", "filename": path, "size": 0})
        protocol = f"{name}-protocol"
        self.qmp.blockdev_add({"driver": "file", "node-name": protocol, "filename": path})
        self._create(f"{name}-image", {"driver": "qcow2", "file": protocol, "size": size})
        self.qmp.blockdev_del(node_name=protocol)

    def _create(self, job: str, options: Any) -> None:
        self.qmp.blockdev_create(job_id=job, options=options)
        self.qmp.jobs[job].wait()
        self.qmp.jobs[job].dismiss()

    def _add(self, name: str, options: dict[str, Any], *, writable: bool) -> None:
        self.qmp.blockdev_add({"node-name": name, **options})
        self.qmp.block_export_add(type="nbd", id=name, node_name=name, name=name, writable=writable)


def image_format(path: str) -> str:
    """``qcow2`` by its magic bytes, else ``raw``."""
    with open(path, "rb") as stream:
        return "qcow2" if stream.read(4) == b"QFI\xfb" else "raw"
