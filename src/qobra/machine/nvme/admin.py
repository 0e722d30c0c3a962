"""The admin commands (chapter 5): queues, identification, features, logs, events."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from qobra.errors import QobraError
from qobra.machine.nvme import identify, state, status
from qobra.machine.nvme.namespace import MAX_NAMESPACES, Namespace
from qobra.machine.nvme.queues import Command, CompletionQueue, SubmissionQueue, pages
from qobra.machine.nvme.status import Refused
from qobra.machine.vmstate import Field, Listed, Number, NumberSet, Together, VmState, u64

if TYPE_CHECKING:
    from qobra.machine.nvme.controller import Controller

ALL = 0xFFFFFFFF
_FEATURES_DEFAULT = {0x01: 7, 0x02: 0, 0x04: 0x157, 0x05: 0, 0x08: 0, 0x0A: 0, 0x0B: 0, 0x19: 0}
_CHANGEABLE = {0x04: 0x4, 0x05: 0x6, 0x06: 0x4, 0x07: 0x4, 0x0B: 0x4, 0x0E: 0x4, 0x19: 0x4}
_ERROR_RECOVERY, _WRITE_CACHE, _QUEUES, _VECTOR, _EVENTS, _TIMESTAMP, _PROFILE = (
    0x05,
    0x06,
    0x07,
    0x09,
    0x0B,
    0x0E,
    0x19,
)
_CHANGED_NAMESPACES = 4
_NOTICE = 2
_MAX_LISTED = 2047
# What can be identified (figure 244, and 1.4's TP 4056 for command sets).
_CONTROLLER, _IDENTIFIERS, _LIMITS, _COMMAND_SETS = 0x01, 0x03, 0x06, 0x1C
_ATTACHED_CONTROLLERS, _CONTROLLERS = 0x12, 0x13
_LISTS = (0x02, 0x07, 0x10, 0x1A)
_OF_ATTACHED = (0x00, 0x02, 0x03, 0x05, 0x07)
_OF_A_COMMAND_SET = (0x05, 0x06, 0x07, 0x1A, 0x1B)
_OF_A_NAMESPACE: dict[int, Callable[[Namespace], bytes]] = {
    0x00: identify.namespace,
    0x03: identify.identifiers,
    0x05: lambda _namespace: bytes(4096),
    0x11: identify.namespace,
    0x1B: lambda _namespace: bytes(4096),
}
_MAX_EVENTS = 64
_FEATURES = Listed(Together(Number(1), Number(4)), len(_FEATURES_DEFAULT))


def _load_features(admin: Admin, values: list[tuple[int, int]]) -> None:
    if dict(values).keys() != _FEATURES_DEFAULT.keys():
        raise QobraError("features are missing, or unknown")
    admin._features = dict(values)


def _load_waiting(admin: Admin, ids: list[int]) -> None:
    admin._waiting = deque(state.command_of(admin._controller, 0, id) for id in ids)


class Admin:
    """The admin commands of one controller. A handler gives the result, or None if the command stays open."""

    vmstate = VmState(
        Field("_features", _FEATURES, get=lambda self: sorted(self._features.items()), put=_load_features),
        u64("_timestamp_ms", "_timestamp_at_ns"),
        Field("_waiting", Listed(Number(2), 256), get=lambda self: [c.id for c in self._waiting], put=_load_waiting),
        Field("_events", Listed(Together(Number(1), Number(1)), _MAX_EVENTS)),
        Field("_masked", NumberSet(256)),
        Field("_changed", NumberSet(MAX_NAMESPACES + 1)),
    )

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._handlers: dict[int, Callable[[Command], int | None]] = {
            0x00: self._delete_submission_queue,
            0x01: self._create_submission_queue,
            0x02: self._get_log,
            0x04: self._delete_completion_queue,
            0x05: self._create_completion_queue,
            0x06: self._identify,
            0x08: lambda _command: 1,  # commands go too fast to be caught
            0x09: self._set_feature,
            0x0A: self._get_feature,
            0x0C: self._await_event,
            0x15: self._attach_namespace,
        }
        self.reset()

    def reset(self) -> None:
        """As when the controller is switched on."""
        self._features = dict(_FEATURES_DEFAULT)
        self._timestamp_ms = 0
        self._timestamp_at_ns = 0
        self._waiting: deque[Command] = deque()
        self._events: deque[tuple[int, int]] = deque()
        self._masked: set[int] = set()
        self._changed: set[int] = set()

    def execute(self, command: Command) -> int | None:
        """Carry out a command. Raises Refused."""
        handler = self._handlers.get(command.opcode)
        if handler is None:
            raise Refused(status.INVALID_OPCODE)
        return handler(command)

    def _give(self, command: Command, data: bytes) -> int:
        controller = self._controller
        pages(controller.memory, controller.page, command, len(data)).write(0, data)
        return 0

    # -- queues

    def _create_completion_queue(self, command: Command) -> int:
        controller, number, size = self._controller, command.dword(10) & 0xFFFF, (command.dword(10) >> 16) + 1
        flags, vector = command.dword(11) & 0xFFFF, command.dword(11) >> 16
        if not 0 < number <= controller.max_queues or number in controller.completions:
            raise Refused(status.INVALID_QUEUE)
        self._check_queue(command, size)
        if vector >= controller.vectors or (vector and not controller.messages_enabled()):
            raise Refused(status.INVALID_VECTOR)
        if not flags & 1:
            raise Refused(status.INVALID_FIELD)
        chosen = vector if flags & 2 else None
        controller.completions[number] = CompletionQueue(controller.memory, number, command.prp1, size, chosen)
        return 0

    def _create_submission_queue(self, command: Command) -> int:
        controller, number, size = self._controller, command.dword(10) & 0xFFFF, (command.dword(10) >> 16) + 1
        completions = controller.completions.get(command.dword(11) >> 16)
        if completions is None or not completions.number:
            raise Refused(status.INVALID_COMPLETION_QUEUE)
        if not 0 < number <= controller.max_queues or number in controller.submissions:
            raise Refused(status.INVALID_QUEUE)
        self._check_queue(command, size)
        if not command.dword(11) & 1:
            raise Refused(status.INVALID_FIELD)
        controller.submissions[number] = SubmissionQueue(controller.memory, number, command.prp1, size, completions)
        return 0

    def _check_queue(self, command: Command, size: int) -> None:
        if not 2 <= size <= self._controller.max_entries:
            raise Refused(status.INVALID_QUEUE_SIZE)
        if command.prp1 % self._controller.page:
            raise Refused(status.INVALID_PRP_OFFSET)

    def _delete_submission_queue(self, command: Command) -> int:
        number = command.dword(10) & 0xFFFF
        if not number or number not in self._controller.submissions:
            raise Refused(status.INVALID_QUEUE)
        self._controller.submissions.pop(number).close()
        return 0

    def _delete_completion_queue(self, command: Command) -> int:
        number = command.dword(10) & 0xFFFF
        queue = self._controller.completions.get(number)
        if not number or queue is None:
            raise Refused(status.INVALID_COMPLETION_QUEUE)
        if queue.users:
            raise Refused(status.QUEUE_IN_USE)
        del self._controller.completions[number]
        self._controller.update_pin()
        return 0

    # -- identification and logs

    def _identify(self, command: Command) -> int:
        kind, number = command.dword(10) & 0xFF, command.namespace
        command_set = command.dword(11) >> 24
        controller, allocation = self._controller, self._controller.device.allocation
        if kind == _CONTROLLER:
            return self._give(command, identify.controller(controller.device))
        if kind in _OF_A_COMMAND_SET and command_set:
            raise Refused(status.INVALID_FIELD)
        if kind in _OF_A_NAMESPACE:
            self._check_number(number)
            namespaces = controller.attached if kind in _OF_ATTACHED else allocation.namespaces
            namespace = namespaces.get(number)
            if kind == _IDENTIFIERS and namespace is None:
                raise Refused(status.INVALID_FIELD)
            return self._give(command, _OF_A_NAMESPACE[kind](namespace) if namespace is not None else bytes(4096))
        if kind in _LISTS:
            if number >= ALL - 1:
                raise Refused(status.INVALID_NAMESPACE)
            numbers = sorted(controller.attached if kind in _OF_ATTACHED else allocation.namespaces)
            return self._give(command, identify.numbers([each for each in numbers if each > number], 4))
        if kind in (_ATTACHED_CONTROLLERS, _CONTROLLERS):
            return self._give(command, self._controllers(kind, number, command.dword(10) >> 16))
        if kind == _LIMITS:
            return self._give(command, bytes(4096))
        if kind == _COMMAND_SETS:
            return self._give(command, (1).to_bytes(4096, "little"))
        raise Refused(status.INVALID_FIELD)

    def _check_number(self, number: int) -> None:
        if not 0 < number <= MAX_NAMESPACES:
            raise Refused(status.INVALID_NAMESPACE)

    def _controllers(self, kind: int, number: int, first: int) -> bytes:
        # Of the subsystem, or those that have a namespace: ids from ``first`` on, after how many they are.
        device = self._controller.device
        if device.subsys is None:
            raise Refused(status.INVALID_FIELD)
        ids = sorted(device.allocation.controllers)
        if kind == _ATTACHED_CONTROLLERS:
            namespace = device.allocation.namespaces.get(number)
            if namespace is None:
                raise Refused(status.INVALID_FIELD)
            ids = device.allocation.attached_to(namespace)
        ids = [id for id in ids if id >= first]
        return identify.numbers([len(ids), *ids], 2)

    def _attach_namespace(self, command: Command) -> int:
        """Namespace Attachment (5.20): give controllers of a list a namespace, or take it from them."""
        own, select, number = self._controller, command.dword(10) & 15, command.namespace
        allocation = own.device.allocation
        if number != ALL:
            self._check_number(number)
        namespace = allocation.namespaces.get(number)
        if namespace is None or own.device.subsys is None:
            raise Refused(status.INVALID_FIELD)
        data = pages(own.memory, own.page, command, 4096).read(0, 4096)
        count = min(int.from_bytes(data[:2], "little"), _MAX_LISTED)
        if not count:
            raise Refused(status.INVALID_CONTROLLER_LIST)
        for at in range(2, 2 * count + 2, 2):
            device = allocation.controllers.get(int.from_bytes(data[at : at + 2], "little"))
            if device is None:
                raise Refused(status.INVALID_CONTROLLER_LIST)
            controller = device.controller
            if select == 0:
                if number in controller.attached:
                    raise Refused(status.ALREADY_ATTACHED)
                if not namespace.shared and allocation.attached_to(namespace):
                    raise Refused(status.NAMESPACE_PRIVATE)
                controller.attach(namespace)
            elif select == 1:
                if number not in controller.attached:
                    raise Refused(status.NOT_ATTACHED)
                controller.detach(number)
            else:
                raise Refused(status.INVALID_FIELD)
            controller.namespace_changed(number)
        return 0

    def _get_log(self, command: Command) -> int:
        page, length = command.dword(10) & 0xFF, ((command.dword(11) & 0xFFFF) << 16 | command.dword(10) >> 16) + 1
        offset = command.dword(13) << 32 | command.dword(12)
        device = self._controller.device
        if page == 1:
            data = bytes(64)
        elif page == 2:
            data = identify.health(device, self._namespaces_of(command.namespace))
        elif page == 3:
            data = identify.firmware()
        elif page == _CHANGED_NAMESPACES:
            data = identify.numbers(sorted(self._changed), 4)
            self._changed.clear()
        elif page == 5:
            data = identify.effects()
        else:
            raise Refused(status.INVALID_FIELD)
        if not command.dword(10) & 1 << 15:
            self._masked.discard(page)
            self._deliver()
        if offset >= len(data) or offset % 4:
            raise Refused(status.INVALID_FIELD)
        return self._give(command, data[offset : offset + 4 * length])

    def _namespaces_of(self, number: int) -> list[Namespace]:
        # One that is attached, or all of them.
        if number == ALL:
            return list(self._controller.attached.values())
        self._check_number(number)
        namespace = self._controller.attached.get(number)
        if namespace is None:
            raise Refused(status.INVALID_NAMESPACE)
        return [namespace]

    # -- features

    def _get_feature(self, command: Command) -> int:
        feature, select = command.dword(10) & 0xFF, command.dword(10) >> 8 & 7
        known = {*_FEATURES_DEFAULT, _WRITE_CACHE, _QUEUES, _VECTOR, _TIMESTAMP}
        if feature not in known or select not in (0, 1, 2, 3):
            raise Refused(status.INVALID_FIELD)
        if feature == _ERROR_RECOVERY:
            self._check_number(command.namespace)
            self._namespaces_of(command.namespace)
        if select == 3:
            return _CHANGEABLE.get(feature, 0)
        if feature == _QUEUES:
            return self._queue_counts()
        if feature == _VECTOR:
            vector = command.dword(11) & 0xFFFF
            if vector >= self._controller.vectors:
                raise Refused(status.INVALID_FIELD)
            return vector | (0 if vector else 1 << 16)
        if feature == _TIMESTAMP:
            return self._give(command, self._timestamp().to_bytes(6, "little") + bytes(2))
        if select:
            return _FEATURES_DEFAULT.get(feature, 0)
        if feature == _WRITE_CACHE:
            return int(any(each.backend.writeback for each in self._controller.attached.values()))
        return self._features[feature]

    def _set_feature(self, command: Command) -> int:
        feature, value = command.dword(10) & 0xFF, command.dword(11)
        known = {*_FEATURES_DEFAULT, _WRITE_CACHE, _QUEUES, _VECTOR, _TIMESTAMP}
        if command.dword(10) >> 31:
            raise Refused(status.NOT_SAVEABLE)
        if feature not in known:
            raise Refused(status.INVALID_FIELD)
        if feature not in _CHANGEABLE:
            raise Refused(0x10E | status.DO_NOT_RETRY)
        if feature == _QUEUES:
            if value & 0xFFFF == 0xFFFF or value >> 16 == 0xFFFF:
                raise Refused(status.INVALID_FIELD)
            return self._queue_counts()
        if feature == _TIMESTAMP:
            data = pages(self._controller.memory, self._controller.page, command, 8).read(0, 8)
            self._timestamp_ms = int.from_bytes(data[:6], "little")
            self._timestamp_at_ns = self._controller.device.board.clock.now_ns()
        elif feature == _WRITE_CACHE:
            for each in self._controller.attached.values():
                each.backend.writeback = bool(value & 1)
        elif feature == _PROFILE:
            if value & 0x1FF:
                raise Refused(status.COMBINATION_REJECTED)
        elif feature != 0x04 or value >> 20 & 3 == 0:
            self._features[feature] = value & 0xFFFF if feature == 0x04 else value
        return 0

    def _queue_counts(self) -> int:
        count = int(self._controller.max_queues) - 1
        return count << 16 | count

    def _timestamp(self) -> int:
        passed: int = self._controller.device.board.clock.now_ns() - self._timestamp_at_ns
        return self._timestamp_ms + passed // 10**6 & (1 << 48) - 1

    # -- events

    def _await_event(self, command: Command) -> None:
        if len(self._waiting) > self._controller.device.aerl:
            raise Refused(status.TOO_MANY_EVENTS)
        self._waiting.append(command)
        self._deliver()

    def namespace_changed(self, number: int) -> None:
        """A namespace has come or gone, or has another size: a guest that wants to know is told."""
        self._changed.add(number)
        if self._features[_EVENTS] & 1 << 8 and len(self._events) < _MAX_EVENTS:
            self._events.append((_NOTICE, _CHANGED_NAMESPACES))
            self._deliver()

    def _deliver(self) -> None:
        # One of a kind at a time, until its log was read.
        while self._waiting and self._events:
            kind, page = self._events[0]
            if page in self._masked:
                return
            self._events.popleft()
            self._masked.add(page)
            self._controller.complete(self._waiting.popleft(), page << 16 | kind, status.SUCCESS)
