"""The states of a job, which follow which, and what may be asked of a job in each (JobStatus and JobVerb)."""

from __future__ import annotations

UNDEFINED = "undefined"
CREATED = "created"
RUNNING = "running"
PAUSED = "paused"
READY = "ready"
STANDBY = "standby"
WAITING = "waiting"
PENDING = "pending"
ABORTING = "aborting"
CONCLUDED = "concluded"
NULL = "null"

FOLLOWS: dict[str, frozenset[str]] = {
    UNDEFINED: frozenset({CREATED}),
    CREATED: frozenset({RUNNING, ABORTING, NULL}),
    RUNNING: frozenset({PAUSED, READY, WAITING, ABORTING}),
    PAUSED: frozenset({RUNNING}),
    READY: frozenset({STANDBY, WAITING, ABORTING}),
    STANDBY: frozenset({READY}),
    WAITING: frozenset({PENDING, ABORTING}),
    PENDING: frozenset({ABORTING, CONCLUDED}),
    ABORTING: frozenset({ABORTING, CONCLUDED}),
    CONCLUDED: frozenset({NULL}),
    NULL: frozenset(),
}
"""State to the states that may come next, as the diagram at JobStatus has it."""

_ACTIVE = frozenset({CREATED, RUNNING, PAUSED, READY, STANDBY})

ACCEPTS: dict[str, frozenset[str]] = {
    "cancel": _ACTIVE | {WAITING, PENDING},
    "pause": _ACTIVE,
    "resume": _ACTIVE,
    "set-speed": _ACTIVE,
    "complete": frozenset({READY, STANDBY}),
    "finalize": frozenset({PENDING}),
    "dismiss": frozenset({CONCLUDED}),
}
"""Verb to the states in which a job accepts it."""

COMPLETED = frozenset({WAITING, PENDING, ABORTING, CONCLUDED, NULL})
"""States in which a job's own work is over."""
