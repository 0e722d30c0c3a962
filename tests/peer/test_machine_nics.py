"""Network cards by ``-net`` and ``-nic``: the same hubs, cards and refusals as with QEMU."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from qobra.testing.system import SystemProgram, peer_available

pytestmark = pytest.mark.skipif(not peer_available("x86_64"), reason="qemu-system-x86_64 is not installed")

_LISTEN = "listen=127.0.0.1:0"


@pytest.mark.parametrize(
    "arguments",
    [
        f"-net nic,model=e1000,macaddr=52:54:00:12:34:77 -net socket,{_LISTEN},id=ss",
        "-net nic -net nic,model=virtio",
        f"-net socket,{_LISTEN},id=ss",
        f"-nic socket,{_LISTEN},model=e1000,id=q,mac=2-0-0-0-0-9",
        "-nic hubport,hubid=1,model=e1000 -nic hubport,hubid=1 -nic none -net none",
        "-netdev hubport,id=h,hubid=3 -net nic,netdev=h,vectors=5,model=virtio-net-pci,addr=7",
        "-nic hubport,hubid=1,model=e1000 -device virtio-rng-pci",
        "-net nic -net user,hostfwd=tcp:127.0.0.1:0-:22",
        "-nic user,id=u,model=e1000,net=172.31.0.0,restrict=on",
        "-netdev user,id=u,ipv6=off -device e1000,netdev=u",
    ],
)
def test_cards_and_hubs(tmp_path: Path, arguments: str) -> None:
    found = []
    for peer in (False, True):
        with SystemProgram(tmp_path, "x86_64", "-machine", "pc", *arguments.split(), peer=peer) as program:
            text = program.qmp("human-monitor-command", {"command-line": "info network"})
            # Backends without a name are numbered, or named by chance; details of sockets end a line.
            lines = [re.sub(r"#net\d+|__org\.qemu\.net\d+", "NAME", line).rstrip(",") for line in text.splitlines()]
            tree = program.qmp("human-monitor-command", {"command-line": "info qtree"})
            properties = re.findall(r"(?:mac|vectors) = \S+", tree)
            slots = [each["slot"] for each in program.qmp("query-pci")[0]["devices"]]
            found.append((lines, properties, slots))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "arguments",
    [
        "-net foo",
        "-net nic,model=zz",
        "-net nic,netdev=x",
        "-net nic,macaddr=zz",
        "-net nic,foo=1",
        "-net nic,vectors=99999999999",
        "-net hubport,hubid=0",
        "-netdev user,id=u,net=10.0.2.0/33",
        "-netdev user,id=u,hostfwd=tcp::80",
        "-netdev user,id=u,guestfwd=tcp:10.0.2.2:80-cmd:cat",
        "-net nic -net user,ipv4=off,ipv6=off",
        "-nic hubport,hubid=1,model=zz",
        "-nic hubport,hubid=1,mac=zz",
        "-machine pc,memory-encryption=x",
        "-machine pc,x-oem-id=1234567",
        "-machine pc,x-oem-table-id=123456789",
    ],
)
def test_refusals(arguments: str) -> None:
    words = ["-nodefaults", "-display", "none", "-S", *arguments.split()]
    call = "import sys; from qobra.cli.system import main; sys.exit(main('x86_64', sys.argv[1:]))"
    texts = []
    for command in ([sys.executable, "-c", call], ["qemu-system-x86_64"]):
        found = subprocess.run([*command, *words], capture_output=True, text=True, timeout=60)
        assert found.returncode == 1
        texts.append(found.stderr.partition(": ")[2])
    assert texts[0] == texts[1]
