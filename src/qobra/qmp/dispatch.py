"""From a request to a call: check it as QEMU does, find the command, check its arguments, run it."""

from __future__ import annotations

import os
import sys

from qobra.errors import COMMAND_NOT_FOUND, NUL_IN_NAME, QobraError, is_nul_in_name
from qobra.json_text import ordered
from qobra.qmp import registry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from qobra.machine.machine import Machine
    from qobra.qmp.session import Session


def check_request(request: Any, *, oob_enabled: bool) -> tuple[str, dict[str, Any], bool]:
    """The command, the arguments and whether it is to run out of band; QobraError if it is no valid request."""
    if type(request) is not dict:
        raise QobraError("QMP input must be a JSON object")
    name = request.get("execute")
    arguments = request.get("arguments")
    if type(name) is str:
        # Nearly every request: just these members.
        expected = 1 + ("arguments" in request) + ("id" in request)
        if len(request) == expected and (type(arguments) is dict or "arguments" not in request):
            return name, arguments or {}, False
    return _check_unusual(request, oob_enabled)


def _check_unusual(request: dict[str, Any], oob_enabled: bool) -> tuple[str, dict[str, Any], bool]:
    found: str | None = None
    for member, value in ordered(request):  # of several faults, the one that QEMU comes upon first
        if member == "execute" or (member == "exec-oob" and oob_enabled):
            if type(value) is not str:
                raise QobraError(f"QMP input member '{member}' must be a string")
            if found is not None:
                raise QobraError(f"QMP input member '{member}' clashes with '{found}'")
            found = member
        elif member == "arguments":
            if type(value) is not dict:
                raise QobraError("QMP input member 'arguments' must be an object")
        elif member != "id":
            raise QobraError(f"QMP input member '{member}' is unexpected")
    if found is None:
        raise QobraError("QMP input lacks member 'execute'")
    return request[found], request.get("arguments", {}), found == "exec-oob"


def call(
    machine: Machine,
    name: str,
    arguments: dict[str, Any],
    *,
    session: Session | None = None,
    oob: bool = False,
) -> Any:
    """Run the command ``name`` in the calling thread: in the strand, or outside it if ``oob``.

    Returns what the handler returns. Raises QobraError, also for a command that does not exist or whose arguments are
    wrong, and whatever a defective handler raises.
    """
    from qobra.qapi.contract import contract

    found = registry.find(machine, name)
    specs = contract().commands
    if found is None or name not in specs:
        raise QobraError(f"The command {name} has not been found", COMMAND_NOT_FOUND)
    spec = specs[name]
    if oob and not spec.oob:
        raise QobraError(f"The command {name} does not support OOB")
    if not spec.allow_preconfig and machine.preconfig:
        raise QobraError(f"The command '{name}' is permitted only after machine initialization has completed")
    handler = found.handler
    if found.older is not None and found.older[0](arguments):
        handler, checked = found.older[1], arguments
    else:
        checked = contract().check_arguments(name, arguments)
    parameters = (machine, checked, session) if found.with_session else (machine, checked)
    if oob:
        return handler(*parameters)
    with machine.control:
        return handler(*parameters)


def describe(name: str, error: Exception) -> QobraError:
    """The QobraError that a client gets for ``error``, which the command ``name`` raised."""
    if isinstance(error, QobraError):
        return error
    if is_nul_in_name(error):
        return QobraError(NUL_IN_NAME)
    if os.getenv("QOBRA_DEBUG"):
        sys.excepthook(type(error), error, error.__traceback__)
    if isinstance(error, OSError):
        return QobraError.from_os(name, error)
    return QobraError(f"Internal error in {name}: {type(error).__name__}: {error}")
