"""Where the commands are: a client that was just greeted waits for the module of its first, not for all of them."""

from __future__ import annotations

import subprocess
import sys

from qobra.command import _generate, load
from qobra.machine.machine import Machine
from qobra.qmp.registry import served_names


def test_the_index_is_current() -> None:
    assert _generate.main(["--check"]) == 0, "run `make generate`"


def test_what_is_not_there_is_not_known() -> None:
    assert not load("no-such-command") and not load("")


PROGRAM = """
import sys
from qobra.machine.machine import Machine
from qobra.qmp import dispatch, registry
from qobra.errors import QobraError
machine = Machine()
print(dispatch.call(machine, "query-version", {})["qemu"]["major"])
print(sorted(name for name in sys.modules if name.startswith("qobra.command.") and "._" not in name))
print("qobra.block.node" in sys.modules)
print(len(dispatch.call(machine, "query-commands", {})), "qobra.command.block" in sys.modules)
names = registry.served_names(machine)
print(names == list(registry.served(machine)) == registry.served_names(machine))
try:
    dispatch.call(machine, "no-such-command", {})
except QobraError as error:
    print(error)
print("qobra.command.block" in sys.modules)
"""


def test_a_first_command_imports_its_own_module() -> None:
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert result.stdout.splitlines() == [
        "5",
        "['qobra.command.control']",
        "False",
        f"{len(served_names(Machine()))} False",
        "True",
        "The command no-such-command has not been found",
        "True",
    ], result.stderr
