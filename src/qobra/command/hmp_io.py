"""The human monitor's command ``qemu-io``: one request by hand to a block device of the machine.

What comes of the request goes to standard output and not to the monitor, as with QEMU: test suites read it there.
"""

from __future__ import annotations

import sys
import weakref
from typing import TYPE_CHECKING, Any

from qobra.block import permissions
from qobra.block.backend import BlockBackend
from qobra.errors import QobraError
from qobra.machine.machine import Machine
from qobra.qmp.hmp import hmp_command
from qobra.report import print_error

if TYPE_CHECKING:
    from qobra.block.io_commands._interpreter import Interpreter

# Requests may go on after their command, to be waited for by a later one.
_interpreters: weakref.WeakKeyDictionary[BlockBackend, Interpreter] = weakref.WeakKeyDictionary()


@hmp_command(
    "qemu-io",
    args="qdev:-d,device:B,command:s",
    params='[-d] [device] "[command]"',
    help="carry out one of qemu-io's commands on a drive or node (-d: on the drive of that device)",
)
def qemu_io(machine: Machine, args: dict[str, Any]) -> str:
    """Run one line of qemu-io's language on a drive, a device or a node."""
    name = args["device"]
    layer = machine.block
    backend: BlockBackend | None = layer.find_qdev(name) if args.get("qdev") else layer.backends.get(name)
    if backend is not None:
        return _run(_interpreter(machine, backend), args["command"])
    backend = BlockBackend(layer, perm=0)
    backend.insert(layer.find_node(name))
    interpreter = _new_interpreter(machine, backend, temporary=True)
    try:
        return _run(interpreter, args["command"])
    finally:
        _report(interpreter, temporary=True)


def _interpreter(machine: Machine, backend: BlockBackend) -> Interpreter:
    known = _interpreters.get(backend)
    if known is None:
        known = _interpreters[backend] = _new_interpreter(machine, backend)
    return known


def _new_interpreter(machine: Machine, backend: BlockBackend, *, temporary: bool = False) -> Interpreter:
    from qobra.block.io_commands._interpreter import Interpreter

    def out(text: str) -> None:
        machine.control.serve()  # events of a request come before what is said of it
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except (OSError, ValueError):
            pass  # nobody reads it any more

    interpreter = Interpreter(backend, out, print_error)
    interpreter.ended = lambda: machine.control.defer(_report, interpreter, temporary)
    return interpreter


def _run(interpreter: Interpreter, line: str) -> str:
    words = line.split()
    command = interpreter.commands.get(words[0]) if words else None
    backend = interpreter.root
    may_write = backend.perm & permissions.WRITE
    if command is not None and command.writes and not may_write and backend.node:
        # It stays: the request may outlive the command. Not asked for twice, as that would wait for such a request.
        try:
            backend.set_permissions(backend.perm | permissions.WRITE, backend.shared)
        except QobraError as error:
            return f"{error}\n"
    said: list[str] = []
    interpreter.refuse = lambda text: said.append(text + "\n")
    interpreter.detail = said.append
    interpreter.run(line)
    return "".join(said)


def _report(interpreter: Interpreter, temporary: bool = False) -> None:
    """Tell of requests that have ended; a ``temporary`` backend goes with the last."""
    from qobra.block.io_commands.asynchronous import report_ended

    report_ended(interpreter)
    if temporary and not interpreter.pending:
        interpreter.root.remove()
