"""The state of an NVMe controller: its queues and what waits in them, as numbers, and put together again.

No command of a namespace is under way when state is saved; what waits are answers that found no room, and commands
that wait for an event.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qobra.errors import QobraError
from qobra.machine.nvme.queues import Command, CompletionQueue, SubmissionQueue
from qobra.machine.vmstate import Listed, Number, Together

if TYPE_CHECKING:
    from qobra.machine.nvme.controller import Controller

_MAX_QUEUES = 0xFFFF
_ENTRY = Number(2)
COMPLETIONS = Listed(Together(_ENTRY, Number(8), _ENTRY, Number(4), _ENTRY, _ENTRY, Number(1, maximum=1)), _MAX_QUEUES)
"""Number, base, size, vector + 1 or 0, head, tail, phase."""
SUBMISSIONS = Listed(Together(_ENTRY, Number(8), _ENTRY, _ENTRY, _ENTRY, _ENTRY), _MAX_QUEUES)
"""Number, base, size, completion queue, head, tail."""
ANSWERS = Listed(Together(_ENTRY, _ENTRY, _ENTRY, Number(8), _ENTRY), _MAX_QUEUES)
"""Completion queue, submission queue, command id, result, status."""


def save_completions(controller: Controller) -> list[tuple[int, ...]]:
    """What :data:`COMPLETIONS` holds."""
    return [
        (q.number, q.base, q.size, 0 if q.vector is None else q.vector + 1, q.head, q.tail, q.phase)
        for q in controller.completions.values()
    ]


def load_completions(controller: Controller, entries: list[tuple[int, ...]]) -> None:
    """Make the queues. Raises QobraError for what no guest can have made."""
    controller.completions.clear()
    for number, base, size, vector, head, tail, phase in entries:
        _check(controller, number, size, head, tail)
        if vector > controller.vectors:
            raise QobraError(f"{vector} is out of range")
        queue = CompletionQueue(controller.memory, number, base, size, vector - 1 if vector else None)
        queue.head, queue.tail, queue.phase = head, tail, phase
        controller.completions[number] = queue


def save_submissions(controller: Controller) -> list[tuple[int, ...]]:
    """What :data:`SUBMISSIONS` holds."""
    return [(q.number, q.base, q.size, q.completions.number, q.head, q.tail) for q in controller.submissions.values()]


def load_submissions(controller: Controller, entries: list[tuple[int, ...]]) -> None:
    """Make the queues. Raises QobraError for what no guest can have made."""
    controller.submissions.clear()
    for number, base, size, completions, head, tail in entries:
        _check(controller, number, size, head, tail)
        if completions not in controller.completions:
            raise QobraError(f"there is no completion queue {completions}")
        queue = SubmissionQueue(controller.memory, number, base, size, controller.completions[completions])
        queue.head, queue.tail = head, tail
        controller.submissions[number] = queue


def save_answers(controller: Controller) -> list[tuple[int, ...]]:
    """What :data:`ANSWERS` holds."""
    return [
        (queue.number, command.queue.number, command.id, result, code)
        for queue in controller.completions.values()
        for command, result, code in queue.waiting
    ]


def load_answers(controller: Controller, entries: list[tuple[int, ...]]) -> None:
    """Put the answers back. Raises QobraError for those of queues that there are not."""
    for completions, submissions, id, result, code in entries:
        if completions not in controller.completions:
            raise QobraError(f"there is no completion queue {completions}")
        command = command_of(controller, submissions, id)
        controller.completions[completions].waiting.append((command, result, code))


def command_of(controller: Controller, submissions: int, id: int) -> Command:
    """A command of which nothing but its id matters any more. Raises QobraError."""
    queue = controller.submissions.get(submissions)
    if queue is None:
        raise QobraError(f"there is no submission queue {submissions}")
    return Command(queue, bytes(2) + id.to_bytes(2, "little") + bytes(60))


def _check(controller: Controller, number: int, size: int, head: int, tail: int) -> None:
    known = number in controller.completions and number in controller.submissions
    if number > controller.max_queues or not 2 <= size <= controller.max_entries or known:
        raise QobraError(f"queue {number} cannot be")
    if head >= size or tail >= size:
        raise QobraError(f"queue {number} ends before {max(head, tail)}")
