"""A libvirt daemon of a session of its own user, whose domains run on our program; for tests that drive it.

Nothing of the host is configured or touched. It takes root to become another user, and Debian's libvirt.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SOURCE = Path(__file__).resolve().parents[2]
_USER = "libvirt-qemu"

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
    <emulator>{home}/bin/qobra-system-x86_64</emulator>
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
_PROGRAMS = {
    "qobra-system-x86_64": "from qobra.cli.system import main; sys.exit(main('x86_64', sys.argv[1:]))",
    "qemu-img": "from qobra.cli.img import main; sys.exit(main())",
    "qemu-nbd": "from qobra.cli.nbd import main; sys.exit(main())",
}
"""Our programs, and what runs them."""


def reason_to_skip() -> str | None:
    """Why there can be no such daemon here, or None."""
    if shutil.which("virsh") is None or not Path("/usr/sbin/libvirtd").exists() or shutil.which("setpriv") is None:
        return "libvirt is not installed"
    if os.geteuid() != 0:
        return "only root can become another user"
    try:
        pwd.getpwnam(_USER)
    except KeyError:
        return f"there is no user {_USER}"
    return None if _interpreter() else "the user cannot run our source"


class Session:
    """A daemon, and ``virsh`` for it at ``uri``. ``home`` has a new image ``disk.qcow2`` of 16 MiB."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.uri = f"qemu:///session?socket={home}/run/libvirt-sock"
        kinds = {"CONFIG": "config", "CACHE": "cache", "DATA": "data", "RUNTIME": "run"}
        names = {f"XDG_{name}_{'DIR' if name == 'RUNTIME' else 'HOME'}": str(home / at) for name, at in kinds.items()}
        self.environment = os.environ | {"HOME": str(home), "PATH": f"{home}/bin:{os.environ['PATH']}"} | names

    def run(self, *command: str, fails: bool = False) -> str:
        """What ``command`` prints as the daemon's user, who finds our programs under the names of QEMU's."""
        done = subprocess.run(
            _as_user(*command), env=self.environment, capture_output=True, text=True, timeout=100, check=False
        )
        assert (done.returncode != 0) == fails, done.stdout + done.stderr + (self.home / "log").read_text()[-2000:]
        return done.stdout + done.stderr

    def virsh(self, *arguments: str, fails: bool = False) -> str:
        """What ``virsh ARGUMENTS`` prints."""
        return self.run("virsh", "-c", self.uri, *arguments, fails=fails)

    def write(self, name: str, text: str) -> str:
        """Write a file below ``home``; its path."""
        (self.home / name).write_text(text)
        return str(self.home / name)

    def domain(self, machine: str) -> str:
        """The path of the description of a domain ``small`` that has the disk."""
        return self.write("small.xml", _DOMAIN.format(home=self.home, machine=machine))


@contextmanager
def libvirt_session() -> Iterator[Session]:
    """Start a daemon; its domains end with it."""
    # Under /tmp: another user works here, and socket paths must be short.
    home = Path(subprocess.check_output(["mktemp", "-d", "/tmp/lvXXXXXX"], text=True).strip())
    for name in ("config/libvirt", "cache", "data", "run", "bin"):
        (home / name).mkdir(parents=True)
    session = Session(home)
    session.write("libvirtd.conf", _DAEMON.format(home=home))
    session.write("config/libvirt/qemu.conf", 'stdio_handler = "file"\n')
    for name, call in _PROGRAMS.items():
        path = Path(session.write(f"bin/{name}", _script(call)))
        path.chmod(0o755)
    image = [sys.executable, "-m", "qobra.cli.img", "create", "-q", "-f", "qcow2", str(home / "disk.qcow2"), "16M"]
    subprocess.run(image, check=True, env=os.environ | {"PYTHONPATH": str(_SOURCE)})
    user = pwd.getpwnam(_USER)
    for path in (home, *home.rglob("*")):
        os.chown(path, user.pw_uid, user.pw_gid)
    command = _as_user("/usr/sbin/libvirtd", "-f", str(home / "libvirtd.conf"), "-p", str(home / "pid"))
    daemon = subprocess.Popen(
        command, env=session.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 60
        while not (home / "run/libvirt-sock").exists():
            assert daemon.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        yield session
        for name in session.virsh("list", "--name").split():
            session.virsh("destroy", name)
    finally:
        daemon.terminate()
        daemon.wait()
        shutil.rmtree(home, ignore_errors=True)


def _script(call: str) -> str:
    return f'#!/bin/sh\nexport PYTHONPATH={_SOURCE}\nexec {_interpreter()} -B -c "import sys; {call}" "$@"\n'


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
