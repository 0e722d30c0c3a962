"""``qobra-storage-daemon``: block nodes, exports and QMP monitors without a machine around them.

Takes the options of QEMU's storage daemon and does them in their order. Each calls what its QMP command calls.
"""

from __future__ import annotations

import sys

from qobra.cli._ending import Ending, Terminate
from qobra.cli._options import (
    Background,
    Option,
    fail,
    program,
    say,
    scan,
    structure,
    tree,
    warn,
    write_pidfile,
)
from qobra.errors import QobraError
from qobra.lean import defer_threading
from qobra.machine.machine import Machine
from qobra.qmp.monitor import Monitors
from qobra.report import print_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

HELP = "serve block nodes, exports and QMP without a machine (qemu-storage-daemon's command line)"

_FIRST_CLIENT = 0.005
"""Seconds in which a client comes that has waited for this start."""

_OPTIONS = (
    Option("blockdev"),
    Option("chardev"),
    Option("daemonize", takes_value=False),
    Option("export"),
    Option("help", short="h", takes_value=False),
    Option("monitor"),
    Option("nbd-server"),
    Option("object"),
    Option("pidfile"),
    Option("trace", short="T"),
    Option("version", short="V", takes_value=False),
)

_HELP = """\
Usage: {program} [options]
Qobra's storage daemon

  -h, --help             show this help and exit
  -T, --trace [enable=]<pattern>[,events=<file>][,file=<file>]
                         print trace events; 'help' lists them
  -V, --version          show the version and exit

  --blockdev [driver=]<driver>,node-name=<name>[,<option>=<value>...]
                         open a block node (blockdev-add)
  --chardev <backend>,id=<id>[,<option>=<value>...]
                         make a character device
  --export [type=]<type>,id=<id>,node-name=<name>[,<option>=<value>...]
                         export a block node (block-export-add)
  --monitor [chardev=]<id>[,mode=control|readline][,pretty=on|off]
                         serve QMP (or, with readline, a human) on a character device
  --nbd-server addr.type=inet,addr.host=<host>,addr.port=<port>[,<option>=<value>...]
  --nbd-server addr.type=unix,addr.path=<path>[,<option>=<value>...]
                         start the NBD server (nbd-server-start)
  --object [qom-type=]<type>,id=<id>[,<property>=<value>...]
                         make an object (object-add); 'help' lists the types, '<type>,help' the properties

  --daemonize            go into the background once everything is up
  --pidfile <path>       write the process ID to a file once everything is up

Options are done in their order. All but --chardev take JSON as well as key=value.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the storage daemon until ``quit`` or a signal; the exit status."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    try:
        options = list(scan(arguments, _OPTIONS))
    except QobraError as error:
        fail(str(error))
    names = [name for name, _, _ in options]
    if "help" in names or "version" in names:
        first = next(name for name in names if name in ("help", "version"))
        return print_text(_HELP.format(program=program()) if first == "help" else _version())
    if "daemonize" in names:
        _refuse_stdio(options)
    background = Background() if "daemonize" in names else None
    return _run(options, background)


def _run(options: list[tuple[str, str, str]], background: Background | None) -> int:
    ending = Ending()
    defer_threading()
    # An export's thread that comes back from a system call waits this long at most for one that computes (a job, a
    # query): with the default of 5 ms such a neighbour costs it four fifths of its requests, with this a twentieth.
    sys.setswitchinterval(0.0005)
    machine = Machine()
    machine.say, machine.warn = say, warn
    monitors = Monitors(machine)
    remove_pidfile = None
    status = 0
    try:
        pidfile = None
        with machine.control:  # nobody is answered before all is there that was asked for
            for name, value, typed in options:
                if name == "pidfile":
                    pidfile = value
                elif (text := _help(machine, name, value)) is not None:
                    return print_text(text)
                else:
                    _apply(machine, monitors, name, value, typed)
            # Whoever reads the pidfile may send a signal: it must not break off before it is known.
            ending.serve(machine)
            if pidfile is not None:
                try:
                    remove_pidfile = write_pidfile(pidfile)
                except QobraError as error:
                    fail(str(error))
            if background is not None:
                background.ready()
            # A first client is greeted before this takes the interpreter for milliseconds, and may send its commands
            # meanwhile; none is carried out before it is done.
            monitors.wait_for_greeting(_FIRST_CLIENT)
            import threading  # noqa: F401
        ending.wait()
    except Terminate:
        pass
    except SystemExit as exit:
        status = int(exit.code or 0)
    finally:
        ending.close()
        machine.close()
        monitors.close()
        if remove_pidfile is not None:
            remove_pidfile()
    return status


def _apply(machine: Machine, monitors: Monitors, name: str, value: str, typed: str) -> None:
    """Do one option, which was ``typed`` so; one line and out if it cannot be done."""
    try:
        if name == "chardev":
            _add_chardev(machine, value, typed)
        elif name == "monitor":
            monitors.add_options(_monitor_options(value))
        elif name == "object":
            _add_object(machine, value)
        elif name == "trace":
            _trace(value, typed)
        elif name in _COMMANDS:
            command, type_name, implied = _COMMANDS[name]
            _call(machine, command, structure(value, type_name, implied))
    except QobraError as error:
        fail(f"{typed}: {error}")


def _trace(value: str, typed: str) -> None:
    from qobra.cli._tool import trace
    from qobra.cli._tool.report import Program, ToolError

    try:
        trace.enable(Program(program()), value, typed=typed)
    except ToolError as error:
        sys.exit(Program(f"{program()}: {typed}").fail(error))


_COMMANDS: dict[str, tuple[str, str, str | None]] = {
    "blockdev": ("blockdev-add", "BlockdevOptions", "driver"),
    "export": ("block-export-add", "BlockExportOptions", "type"),
    "nbd-server": ("nbd-server-start", "NbdServerOptions", None),
}


def _call(machine: Machine, command: str, arguments: dict[str, Any]) -> None:
    from qobra.qmp import dispatch

    if command == "nbd-server-start":
        # The option has a flat address, where the command has one with a wrapper.
        address = dict(arguments["addr"])
        if address["type"] == "fd":
            from qobra.chardev.options import check_inherited

            check_inherited(address["str"])
        arguments = arguments | {"addr": {"type": address.pop("type"), "data": address}}
    dispatch.call(machine, command, arguments)


def _monitor_options(value: str) -> dict[str, Any]:
    """MonitorOptions. The usual forms are seen at a glance, so that the greeting need not wait for the contract."""
    id = value.removeprefix("chardev=").removesuffix(",mode=control")
    if id and not any(character in id for character in "=,.{?") and id != "help":
        return {"chardev": id}
    return structure(value, "MonitorOptions", "chardev")


def _add_chardev(machine: Machine, value: str, typed: str) -> None:
    from qobra.chardev.options import parse, warn_on_stderr

    id, backend = parse(value, warn=warn_on_stderr(f"{program()}: {typed}"))
    with machine.control:
        device = machine.chardevs.create(id, backend, failure="", asked_by=typed)
    if backend["type"] == "pty":
        say(f"char device redirected to {device.return_info()['pty']} (label {id})")  # which nobody can know before


def _refuse_stdio(options: list[tuple[str, str, str]]) -> None:
    """A program in the background has no standard input and output."""
    from qobra.chardev.options import kind

    for name, value, typed in options:
        if name == "chardev" and kind(value) == "stdio":
            fail(f"{typed}: cannot use stdio with -daemonize")


def _add_object(machine: Machine, value: str) -> None:
    properties, keyval = tree(value, "qom-type")
    for required in ("qom-type", "id"):
        if required not in properties:
            raise QobraError(f"Parameter '{required}' is missing")
    type_name, id = properties.pop("qom-type"), properties.pop("id")
    if machine.objects.find_type(type_name) is None:
        raise QobraError(f"Parameter 'qom-type' does not accept value '{type_name}'")
    with machine.control:
        machine.objects.create(type_name, id, properties, keyval=keyval)


def _help(machine: Machine, name: str, value: str) -> str | None:
    """The text for an option that only asks what there is."""
    if name == "object":
        from qobra.object.help import asks_help, object_help

        return object_help(machine.objects, value) if asks_help(value) else None
    if name == "trace" and value.removeprefix("enable=") in ("help", "?"):
        from qobra.trace import events

        return "".join(f"{event}\n" for event in events())
    if name == "chardev" and value in ("help", "?"):
        from qobra.chardev.chardev import registry

        return "Available chardev backend types: \n" + "".join(f"  {kind}\n" for kind in registry.names())
    if name == "chardev" and not {"help", "?"}.isdisjoint(value.split(",")[1:]):
        from qobra.machine.option_groups import group_help

        return group_help("chardev")
    return None


def _version() -> str:
    from qobra.qmp.version import PACKAGE

    return f"{program()} version 5.2.0 ({PACKAGE})\nThe Qobra project, under the Apache licence 2.0\n"


if __name__ == "__main__":
    sys.exit(main())
