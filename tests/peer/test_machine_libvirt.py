"""libvirt takes our program for an emulator: its probing succeeds and it reports what a domain may have."""

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


def _reason() -> str | None:
    if shutil.which("virsh") is None or not Path("/usr/sbin/libvirtd").exists():
        return "libvirt is not installed"
    if os.geteuid() != 0:
        return "libvirtd needs to be root"
    try:
        pwd.getpwnam("libvirt-qemu")
    except KeyError:
        return "there is no user libvirt-qemu"
    return None


pytestmark = pytest.mark.skipif(_reason() is not None, reason=_reason() or "")

_CONFIGURATION = """\
unix_sock_dir = "{directory}"
auth_unix_ro = "none"
auth_unix_rw = "none"
log_level = 3
log_outputs = "3:file:{directory}/log"
"""


@pytest.fixture
def libvirtd(tmp_path: Path) -> Iterator[Path]:
    # Under /tmp: libvirt's helpers run as another user, and socket paths must be short.
    directory = Path(subprocess.check_output(["mktemp", "-d", "/tmp/lvXXXXXX"], text=True).strip())
    directory.chmod(0o755)
    (directory / "libvirtd.conf").write_text(_CONFIGURATION.format(directory=directory))
    environment = os.environ | {"HOME": str(directory), "XDG_CACHE_HOME": str(directory / "cache")}
    daemon = subprocess.Popen(
        ["/usr/sbin/libvirtd", "-f", str(directory / "libvirtd.conf"), "-p", str(directory / "pid")],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 30
    while not (directory / "libvirt-sock").exists():
        assert daemon.poll() is None and time.monotonic() < deadline, (directory / "log").read_text()
        time.sleep(0.02)
    yield directory
    daemon.terminate()
    daemon.wait()
    shutil.rmtree(directory, ignore_errors=True)


@pytest.mark.parametrize(("architecture", "machine"), [("x86_64", "pc"), ("x86_64", "q35"), ("riscv64", "virt")])
def test_domain_capabilities(libvirtd: Path, architecture: str, machine: str) -> None:
    emulator = libvirtd / f"qobra-system-{architecture}"
    call = f"import sys; from qobra.cli.system import main; sys.exit(main({architecture!r}, sys.argv[1:]))"
    source = Path(__file__).resolve().parents[2] / "src"
    emulator.write_text(f'#!/bin/sh\nexport PYTHONPATH={source}\nexec {sys.executable} -c "{call}" "$@"\n')
    emulator.chmod(0o755)
    command = ["virsh", "-c", f"qemu:///system?socket={libvirtd}/libvirt-sock", "domcapabilities"]
    command += ["--virttype", "qemu", "--emulatorbin", str(emulator), "--machine", machine, "--arch", architecture]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr + (libvirtd / "log").read_text()[-2000:]
    assert f"<arch>{architecture}</arch>" in done.stdout
    for part in ("<domain>qemu</domain>", "<iothreads supported='yes'/>", "<value>virtio</value>"):
        assert part in done.stdout
    if architecture == "x86_64":
        for model in ("tpm-tis", "tpm-crb"):
            assert f"<value>{model}</value>" in done.stdout
