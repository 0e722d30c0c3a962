"""libvirt runs domains on our program: it starts, pauses, saves, restores, snapshots, ends them, minds their disks."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from qobra.testing.libvirt import Session, libvirt_session, reason_to_skip

pytestmark = pytest.mark.skipif(reason_to_skip() is not None, reason=reason_to_skip() or "")


@pytest.fixture
def session() -> Iterator[Session]:
    with libvirt_session() as made:
        yield made


@pytest.mark.parametrize("machine", ["pc", "q35"])
def test_a_domain_lives(session: Session, machine: str) -> None:
    home, virsh = session.home, session.virsh
    virsh("create", session.domain(machine))
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
    virsh("define", session.domain("q35"))  # checkpoints are for domains that last
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

    first, second = (session.write(name, _CHECKPOINT.format(name=name)) for name in ("one", "two"))
    virsh("backup-begin", "small", session.write("push.xml", _PUSH.format(home=home)), first)
    deadline = time.monotonic() + 60
    while "Completed" not in virsh("domjobinfo", "small", "--completed"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    virsh("backup-begin", "small", session.write("pull.xml", _PULL.format(home=home)), second)
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


_SCREEN = """\
<graphics type='vnc' port='-1' autoport='yes' passwd='secret'><listen type='address' address='127.0.0.1'/></graphics>
<video><model type='virtio'/></video><input type='tablet' bus='virtio'/><input type='keyboard' bus='virtio'/>
"""


def test_a_domain_has_a_screen(session: Session) -> None:
    home, virsh = session.home, session.virsh
    text = Path(session.domain("pc")).read_text().replace("</devices>", _SCREEN + "</devices>")
    virsh("create", session.write("screen.xml", text))
    address = virsh("vncdisplay", "small").strip()
    assert address.startswith("127.0.0.1:")
    with socket.create_connection(("127.0.0.1", 5900 + int(address.rpartition(":")[2])), 30) as viewer:
        assert viewer.recv(12, socket.MSG_WAITALL) == b"RFB 003.008\n"
        viewer.sendall(b"RFB 003.008\n")
        assert viewer.recv(2, socket.MSG_WAITALL) == b"\1\2"  # libvirt has set the password
    virsh("send-key", "small", "KEY_A")
    virsh("screenshot", "small", str(home / "screen"))


_DESKTOP = """\
<controller type='usb' model='qemu-xhci' ports='15'/><input type='tablet' bus='usb'/>
<disk type='file' device='disk'><source file='{home}/stick'/><target dev='sda' bus='usb' removable='on'/></disk>
<interface type='user'><model type='e1000e'/></interface>
<graphics type='vnc' port='-1' autoport='yes'/><video><model type='vga'/></video>
<parallel type='null'><target port='0'/></parallel>
<shmem name='x'><model type='ivshmem-plain'/><size unit='M'>1</size></shmem>
"""


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="needs qemu-img")
def test_a_desktop(session: Session) -> None:
    home, virsh = session.home, session.virsh
    text = Path(session.domain("q35")).read_text().replace("</devices>", _DESKTOP.format(home=home) + "</devices>")
    subprocess.run(["qemu-img", "create", "-q", str(home / "stick"), "1M"], check=True)
    (home / "stick").chmod(0o666)
    virsh("create", session.write("desktop.xml", text))
    assert "Product QEMU USB Tablet" in virsh("qemu-monitor-command", "small", "--hmp", "info usb")
    assert "e1000e" in virsh("domiflist", "small")
    forward = "hostfwd_add hostnet0 tcp:127.0.0.1:0-:22"
    virsh("qemu-monitor-command", "small", "--hmp", forward)
    assert "TCP[HOST_FORWARD]" in virsh("qemu-monitor-command", "small", "--hmp", "info usernet")
    virsh("screenshot", "small", str(home / "screen"))
    virsh("detach-device-alias", "small", "input0", "--live")


_SOUND = """\
<sound model='ich9'/><sound model='ac97'/><sound model='ich6'><codec type='micro'/><audio id='2'/></sound>
<audio id='1' type='none'/><audio id='2' type='file' path='{home}/sound.wav'/>
<graphics type='vnc' port='-1' autoport='yes'/><video><model type='vga'/></video>
"""


def test_a_domain_has_sound(session: Session) -> None:
    home, virsh = session.home, session.virsh
    text = Path(session.domain("q35")).read_text().replace("</devices>", _SOUND.format(home=home) + "</devices>")
    virsh("create", session.write("sound.xml", text))
    tree = virsh("qemu-monitor-command", "small", "--hmp", "info qtree")
    assert all(f"dev: {each}, id " in tree for each in ("ich9-intel-hda", "hda-duplex", "hda-micro", "AC97"))
    assert (home / "sound.wav").read_bytes().startswith(b"RIFF")
