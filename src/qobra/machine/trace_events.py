"""Trace events of the machine."""

from __future__ import annotations

from typing import Any, get_args

from qobra.machine.run_state import RunState
from qobra.model.run_state import RunState as States
from qobra.trace import event


@event("runstate_set", "current_run_state %d (%s) new_state %d (%s)", (RunState, "set"))
def _changed(run_state: RunState, state: str) -> tuple[Any, ...] | None:
    if state == run_state.state:
        return None
    order = get_args(States)
    return order.index(run_state.state), run_state.state, order.index(state), state
