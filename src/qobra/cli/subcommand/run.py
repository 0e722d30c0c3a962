"""``qobra run``: a machine in friendlier words than the system programs take."""

from __future__ import annotations

import sys

HELP = "start a machine with disks, to be driven over QMP"

_USAGE = """\
usage: qobra run [DISK...] [options] [-- OPTION...]

Starts a machine with the DISKs as virtio disks and prints where its QMP monitor is.

  --arch ARCH       x86_64 (default) or riscv64
  --board BOARD     the machine type (see 'qobra-system-ARCH -machine help')
  --memory SIZE     memory, such as 512M (default) or 2G
  --cpus N          number of CPUs (default 1)
  --name NAME       a name for the machine
  --snapshot        leave the DISKs as they are: writes go to temporary files
  --read-only       the DISKs cannot be written
  --qmp ADDRESS     the monitor: unix:PATH, tcp:HOST:PORT or stdio (default: a socket in the run-time directory)
  --serial DEVICE   the serial port: stdio, pty, file:PATH, none (default)
  --paused          do not start the machine: wait for 'cont'
  --no-accel        no CPU at all: a test drives the machine (qtest)

What follows '--' is for the system program as it is.
"""

_TAKES_VALUE = ("--arch", "--board", "--memory", "--cpus", "--name", "--qmp", "--serial")
_SWITCHES = ("--snapshot", "--read-only", "--paused", "--no-accel")


def main(argv: list[str]) -> int:
    """Run the subcommand; returns its exit status."""
    if "-h" in argv or "--help" in argv:
        print(_USAGE, end="")
        return 0
    try:
        disks, values, switches, rest = _parse(argv)
    except ValueError as error:
        print(f"qobra run: {error}; see 'qobra run --help'", file=sys.stderr)
        return 2
    from qobra.cli import system

    qmp = values.get("--qmp") or _default_socket()
    architecture = values.get("--arch", "x86_64")
    if architecture not in ("x86_64", "riscv64"):
        print(f"qobra run: there is no architecture '{architecture}'", file=sys.stderr)
        return 2
    if qmp != "stdio":
        print(f"QMP: {qmp}   (try: qobra shell {qmp.removeprefix('unix:').split(',')[0]})", flush=True)
    return system.main(architecture, options(disks, values, switches, qmp) + rest)


def options(disks: list[str], values: dict[str, str], switches: set[str], qmp: str) -> list[str]:
    """The system program's options for what was said."""
    board = values.get("--board") or ("virt" if values.get("--arch") == "riscv64" else "q35")
    result = ["-nodefaults", "-display", "none", "-machine", board]
    result += ["-m", values.get("--memory", "512M"), "-smp", values.get("--cpus", "1")]
    server = ",server=on,wait=off" if qmp.startswith(("unix:", "tcp:")) and "server=" not in qmp else ""
    result += ["-qmp", qmp + server]
    if "--name" in values:
        result += ["-name", values["--name"]]
    if values.get("--serial", "none") != "none":
        result += ["-serial", values["--serial"]]
    for number, disk in enumerate(disks):
        drive = f"file={disk.replace(',', ',,')},if=virtio,id=disk{number}"
        drive += ",read-only=on" if "--read-only" in switches else ""
        drive += ",snapshot=on" if "--snapshot" in switches else ""
        result += ["-drive", drive]
    if "--paused" in switches:
        result.append("-S")
    if "--no-accel" in switches:
        result += ["-accel", "qtest"]
    return result


def _parse(argv: list[str]) -> tuple[list[str], dict[str, str], set[str], list[str]]:
    disks: list[str] = []
    values: dict[str, str] = {}
    switches: set[str] = set()
    position = 0
    while position < len(argv):
        word = argv[position]
        position += 1
        if word == "--":
            return disks, values, switches, argv[position:]
        name, equals, value = word.partition("=")
        if name in _TAKES_VALUE:
            if not equals:
                if position == len(argv):
                    raise ValueError(f"'{name}' needs a value")
                value = argv[position]
                position += 1
            values[name] = value
        elif word in _SWITCHES:
            switches.add(word)
        elif word.startswith("-"):
            raise ValueError(f"'{word}' is no option")
        else:
            disks.append(word)
    return disks, values, switches, []


def _default_socket() -> str:
    import os
    import tempfile

    directory = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    return f"unix:{directory}/qobra-{os.getpid()}.qmp"
