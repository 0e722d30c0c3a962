"""What the programs import before they do their work: start-up time is mostly that."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
from pathlib import Path

from qobra.cli._bundle import WITHOUT_BUNDLE

# Each of these costs as much as the rest of a start together.
HEAVY = {
    "argparse",
    "asyncio",
    "concurrent.futures",
    "cryptography",
    "dataclasses",
    "hypothesis",
    "inspect",
    "logging",
    "msgspec",
    "numpy",
    "prompt_toolkit",
    "rich",
}


def imported(errors: str) -> set[str]:
    """The modules in the report of ``-X importtime``."""
    return {match.group(1) for match in re.finditer(r"^import time:\s+\d+ \|\s+\d+ \|\s+(\S+)$", errors, re.MULTILINE)}


def reporting(module: str) -> list[str]:
    """The beginning of a command line that tells what is ``imported``. What a bundle executes is in no report."""
    return [sys.executable, "-X", "importtime", "-c", WITHOUT_BUNDLE.format(path=sys.path, module=module)]


def test_the_daemon_up_to_its_greeting(tmp_path: Path) -> None:
    path = tmp_path / "qmp"
    command = reporting("qobra.cli.storage_daemon")
    command += ["--chardev", f"socket,id=qmp,path={path},server=on,wait=off", "--monitor", "chardev=qmp"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            deadline = time.monotonic() + 60
            while connection.connect_ex(str(path)) != 0:
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.01)
            assert b'"QMP"' in connection.recv(4096)
    finally:
        process.kill()
        _, errors = process.communicate()
    modules = imported(errors)
    assert "qobra.qmp.session" in modules
    assert modules & HEAVY == set()


def test_an_image_tool(tmp_path: Path) -> None:
    image = tmp_path / "disk.raw"
    image.write_bytes(bytes(65536))
    command = [*reporting("qobra.cli.img"), "info", str(image)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert imported(result.stderr) & HEAVY == set()


def test_image_tools_that_do_little_do_without_typing_and_re(tmp_path: Path) -> None:
    image = str(tmp_path / "disk.qcow2")
    for arguments in (
        ["create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", image, "1M"],
        ["snapshot", "-c", "s", image],
        ["snapshot", "-d", "s", image],
        ["resize", "-q", image, "2M"],
        ["check", "-q", image],
        ["map", image],
        ["measure", image],
        ["bitmap", "--add", image, "b"],
    ):
        command = [*reporting("qobra.cli.img"), *arguments]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        modules = imported(result.stderr)
        assert "qobra.cli.img" in modules
        # What `python -m` and the paths of the environment import is not ours; site does not import these.
        assert modules & (HEAVY | {"typing", "re", "enum"}) == set(), arguments
