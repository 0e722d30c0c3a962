"""What serial and parallel ports, and the monitor, are connected to where nobody says."""

from __future__ import annotations

import json
import subprocess

import pytest

from qobra.testing.system import program_command


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (("-machine", "pc"), {"serial0": "vc", "parallel0": "vc"}),
        (("-machine", "pc", "-serial", "null"), {"serial0": "null", "parallel0": "vc"}),
        (("-machine", "pc", "-serial", "vc:80Cx24C", "-monitor", "vc"), {"serial0": "vc", "parallel0": "vc"}),
        (("-machine", "pc", "-nodefaults"), {}),
        (("-machine", "none"), {}),
        (("-machine", "pc", "-nographic", "-serial", "null"), {"serial0": "null", "parallel0": "null"}),
    ],
)
def test_ports(arguments: tuple[str, ...], found: dict[str, str]) -> None:
    requests = [{"execute": name} for name in ("qmp_capabilities", "query-chardev", "quit")]
    program = program_command("x86_64", peer=False)
    line = [*program, "-S", "-display", "none", "-net", "none", *arguments, "-qmp", "stdio"]
    text = "".join(map(json.dumps, requests))
    done = subprocess.run(line, input=text, capture_output=True, text=True, timeout=60, check=True)
    answers = [json.loads(each)["return"] for each in done.stdout.splitlines() if each.startswith('{"return"')]
    ports = {each["label"]: each["filename"] for each in answers[1] if not each["label"].startswith("compat")}
    assert ports == found


def test_a_monitor_for_people() -> None:
    line = [*program_command("x86_64", peer=False), "-S", "-machine", "none", "-nographic"]
    done = subprocess.run(line, input="info chardev\nquit\n", capture_output=True, text=True, timeout=60, check=True)
    assert "compat_monitor0: filename=stdio" in done.stdout
