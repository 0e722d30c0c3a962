"""Trace events of the monitor: what is asked and answered."""

from __future__ import annotations

from typing import Any

from qobra.json_text import compact
from qobra.qmp.output import Output
from qobra.qmp.session import Session
from qobra.trace import event


@event("handle_qmp_command", "mon %p req: %s", (Session, "_answer"))
def _asked(session: Session, request: Any) -> tuple[Any, ...]:
    return session, compact(request)


@event("monitor_qmp_cmd_in_band", "%s", (Session, "_answer"))
def _in_band(_session: Session, request: Any) -> tuple[Any, ...] | None:
    if type(request) is not dict or "exec-oob" in request:
        return None
    return (compact(request["id"]) if "id" in request else "",)


@event("monitor_qmp_cmd_out_of_band", "%s", (Session, "_answer"))
def _out_of_band(_session: Session, request: Any) -> tuple[Any, ...] | None:
    if type(request) is not dict or "exec-oob" not in request:
        return None
    return (compact(request["id"]) if "id" in request else "",)


@event("monitor_qmp_respond", "mon %p resp: %s", (Output, "reply"))
def _answered(output: Output, line: bytes, *_args: Any) -> tuple[Any, ...]:
    return output, line.decode("utf-8", "replace").rstrip()


@event("monitor_qmp_respond", "mon %p resp: %s", (Output, "event"))
def _told(output: Output, line: bytes) -> tuple[Any, ...]:
    return output, line.decode("utf-8", "replace").rstrip()
