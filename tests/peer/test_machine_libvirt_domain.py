"""libvirt runs domains on our program: it starts, pauses, saves, restores, snapshots and ends them.

The daemon is one of a session of the user ``libvirt-qemu``, so that nothing of the host is configured or touched.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

_SOURCE = Path(__file__).resolve().parents[2] / "src"
_USER = "libvirt-qemu"


def _as_user(*command: str) -> list[str]:
    return ["setpriv", f"--reuid={_USER}", f"--regid={pwd.getpwnam(_USER).pw_gid}", "--clear-groups", *command]


def _interpreter() -> str | None:
    """A Python that the user can run with our source."""
    code = f"import sys; sys.path.insert(0, {str(_SOURCE)!r}); import qobra.cli.system"
    for path in (sys.executable, "/usr/bin/python3"):
        # From a shell: what setpriv starts itself it still finds with the rights of root.
        command = _as_user("sh", "-c", f'exec {path} -B -c "$0"', code)
        if subprocess.run(command, capture_output=True, check=False).returncode == 0:
            return path
    return None


def _reason() -> str | None:
    if shutil.which("virsh") is None or not Path("/usr/sbin/libvirtd").exists() or shutil.which("setpriv") is None:
        return "libvirt is not installed"
    if os.geteuid() != 0:
        return "only root can become another user"
    try:
        pwd.getpwnam(_USER)
    except KeyError:
        return f"there is no user {_USER}"
    return None if _interpreter() else "the user cannot run our source"


pytestmark = pytest.mark.skipif(_reason() is not None, reason=_reason() or "")

_DAEMON = """\
unix_sock_dir = "{home}/run"
auth_unix_ro = "none"
auth_unix_rw = "none"
log_outputs = "3:file:{home}/log"
"""
_DOMAIN = """\
<domain type='qemu'>
  <name>small</name>
  <memory unit='MiB'>32</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='{machine}'>hvm</type></os>
  <devices>
    <emulator>{home}/qobra-system-x86_64</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='{home}/disk.qcow2'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <serial type='file'><source path='{home}/serial'/></serial>
    <memballoon model='virtio'/>
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
  </devices>
</domain>
"""


class Session:
    """A daemon of the user's own, and ``virsh`` for it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        kinds = {"CONFIG": "config", "CACHE": "cache", "DATA": "data", "RUNTIME": "run"}
        names = {f"XDG_{name}_{'DIR' if name == 'RUNTIME' else 'HOME'}": str(home / at) for name, at in kinds.items()}
        self.environment = os.environ | {"HOME": str(home)} | names

    def virsh(self, *arguments: str, fails: bool = False) -> str:
        """What ``virsh ARGUMENTS`` prints."""
        command = _as_user("virsh", "-c", f"qemu:///session?socket={self.home}/run/libvirt-sock", *arguments)
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=100, check=False)
        assert (done.returncode != 0) == fails, done.stderr + (self.home / "log").read_text()[-2000:]
        return done.stdout + done.stderr


@pytest.fixture
def session() -> Iterator[Session]:
    # Under /tmp: another user works here, and socket paths must be short.
    home = Path(subprocess.check_output(["mktemp", "-d", "/tmp/lvXXXXXX"], text=True).strip())
    for name in ("config/libvirt", "cache", "data", "run"):
        (home / name).mkdir(parents=True)
    (home / "libvirtd.conf").write_text(_DAEMON.format(home=home))
    (home / "config/libvirt/qemu.conf").write_text('stdio_handler = "file"\n')
    call = "import sys; from qobra.cli.system import main; sys.exit(main('x86_64', sys.argv[1:]))"
    emulator = home / "qobra-system-x86_64"
    emulator.write_text(f'#!/bin/sh\nexport PYTHONPATH={_SOURCE}\nexec {_interpreter()} -B -c "{call}" "$@"\n')
    emulator.chmod(0o755)
    image = [sys.executable, "-m", "qobra.cli.img", "create", "-q", "-f", "qcow2", str(home / "disk.qcow2"), "16M"]
    subprocess.run(image, check=True, env=os.environ | {"PYTHONPATH": str(_SOURCE)})
    user = pwd.getpwnam(_USER)
    for path in (home, *home.rglob("*")):
        os.chown(path, user.pw_uid, user.pw_gid)
    made = Session(home)
    command = _as_user("/usr/sbin/libvirtd", "-f", str(home / "libvirtd.conf"), "-p", str(home / "pid"))
    daemon = subprocess.Popen(
        command, env=made.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while not (home / "run/libvirt-sock").exists():
        assert daemon.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    yield made
    for name in made.virsh("list", "--name").split():
        made.virsh("destroy", name)
    daemon.terminate()
    daemon.wait()
    shutil.rmtree(home, ignore_errors=True)


@pytest.mark.parametrize("machine", ["pc", "q35"])
def test_a_domain_lives(session: Session, machine: str) -> None:
    home, virsh = session.home, session.virsh
    (home / "small.xml").write_text(_DOMAIN.format(home=home, machine=machine))
    virsh("create", str(home / "small.xml"))
    assert virsh("domstate", "small").strip() == "running"
    assert str(home / "disk.qcow2") in virsh("domblklist", "small")
    virsh("suspend", "small")
    assert virsh("domstate", "small").strip() == "paused"
    virsh("resume", "small")

    virsh("save", "small", str(home / "saved"))
    assert virsh("list", "--name").strip() == ""
    virsh("restore", str(home / "saved"))
    assert virsh("domstate", "small").strip() == "running"

    virsh("snapshot-create-as", "small", "then")
    virsh("snapshot-revert", "small", "then")
    assert virsh("domstate", "small").strip() == "running"
    virsh("snapshot-delete", "small", "then")
    memory = ("--memspec", str(home / "memory"), "--diskspec", f"vda,file={home}/overlay.qcow2")
    virsh("snapshot-create-as", "small", "outside", *memory)
    assert "overlay.qcow2" in virsh("domblklist", "small")
    virsh("dump", "small", str(home / "core"), "--memory-only")
    virsh("destroy", "small")
    assert virsh("list", "--name").strip() == ""


_CHECKPOINT = "<domaincheckpoint><name>{name}</name></domaincheckpoint>"
_PUSH = """\
<domainbackup mode='push'>
  <disks><disk name='vda' type='file'><driver type='qcow2'/><target file='{home}/backup.qcow2'/></disk></disks>
</domainbackup>
"""
_PULL = """\
<domainbackup mode='pull'>
  <incremental>one</incremental>
  <server transport='unix' socket='{home}/nbd'/>
  <disks>
    <disk name='vda' type='file' exportname='vda'><scratch file='{home}/scratch.qcow2'/></disk>
  </disks>
</domainbackup>
"""


def _extents(home: Path) -> list[str]:
    """Offset, length and state of the disk's parts, as a client of an incremental backup sees them."""
    export = f"nbd+unix:///vda?socket={home}/nbd"
    lines = subprocess.check_output(["nbdinfo", "--map=qemu:dirty-bitmap:backup-vda", export], text=True).splitlines()
    return [" ".join(line.split()) for line in lines]


@pytest.mark.skipif(
    shutil.which("nbdinfo") is None or shutil.which("qemu-img") is None, reason="needs nbdinfo, qemu-img"
)
def test_the_disk_of_a_running_domain(session: Session) -> None:
    home, virsh = session.home, session.virsh
    disk = home / "disk.qcow2"
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -q -P 7 0 4M", str(disk)], check=True)
    shutil.copy(disk, home / "before.qcow2")
    files = {"small.xml": _DOMAIN.format(home=home, machine="q35"), "push.xml": _PUSH.format(home=home)}
    files |= {f"{name}.xml": _CHECKPOINT.format(name=name) for name in ("one", "two")} | {
        "pull.xml": _PULL.format(home=home)
    }
    for name, text in files.items():
        (home / name).write_text(text)
    virsh("define", str(home / "small.xml"))  # checkpoints are for domains that last
    virsh("start", "small")

    virsh("blockresize", "small", "vda", "24M")
    assert virsh("domblkinfo", "small", "vda").split()[1] == str(24 << 20)
    virsh("blkdeviotune", "small", "vda", "--total-iops-sec", "1000", "--total-iops-sec-max", "2000")
    assert "total_iops_sec_max: 2000" in virsh("blkdeviotune", "small", "vda")
    for job in (("blockcommit", "--active", "--pivot"), ("blockpull",)):
        place = f"vda,file={home}/{job[0]}.qcow2"
        virsh("snapshot-create-as", "small", job[0], "--disk-only", "--no-metadata", "--diskspec", place)
        assert f"{job[0]}.qcow2" in virsh("domblklist", "small")
        virsh(job[0], "small", "vda", *job[1:], "--wait")
    copy = ("--dest", str(home / "copy.qcow2"), "--pivot", "--transient-job")
    virsh("blockcopy", "small", "vda", *copy, "--wait")
    assert "copy.qcow2" in virsh("domblklist", "small")

    virsh("backup-begin", "small", str(home / "push.xml"), str(home / "one.xml"))
    deadline = time.monotonic() + 60
    while "Completed" not in virsh("domjobinfo", "small", "--completed"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    virsh("backup-begin", "small", str(home / "pull.xml"), str(home / "two.xml"))
    assert _extents(home) == [f"0 {24 << 20} 0 clean"]
    virsh("domjobabort", "small")
    virsh("checkpoint-delete", "small", "one")
    assert virsh("checkpoint-list", "small", "--name").split() == ["two"]
    virsh("managedsave", "small")
    virsh("start", "small")
    virsh("destroy", "small")
    for name in ("copy.qcow2", "backup.qcow2"):
        subprocess.run(["qemu-img", "check", "-q", str(home / name)], check=True)
        subprocess.run(["qemu-img", "compare", "-q", str(home / name), str(home / "before.qcow2")], check=True)
    assert "name: two" in subprocess.check_output(["qemu-img", "info", str(home / "copy.qcow2")], text=True)
