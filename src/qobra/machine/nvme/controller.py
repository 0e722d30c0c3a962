"""An NVMe controller (NVM Express 1.4, chapter 3): registers, doorbells, and the way of commands through the queues."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from qobra.errors import QobraError
from qobra.machine.block_requests import BlockRequests, Done, Operation
from qobra.machine.nvme import identify, state, status
from qobra.machine.nvme.admin import Admin
from qobra.machine.nvme.io import BlockCommands
from qobra.machine.nvme.namespace import Namespace
from qobra.machine.nvme.queues import Command, CompletionQueue, SubmissionQueue
from qobra.machine.nvme.status import Refused
from qobra.machine.vmstate import Field, Number, NumberSet, VmState, part, u32, u64

if TYPE_CHECKING:
    from qobra.machine.device.nvme import Nvme
    from qobra.machine.dma import GuestMemory

_CAP, _VS, _INTMS, _INTMC, _CC, _CSTS, _AQA, _ASQ, _ACQ = 0x00, 0x08, 0x0C, 0x10, 0x14, 0x1C, 0x24, 0x28, 0x30
DOORBELLS = 0x1000
_MAX_ENTRIES = 2048
_MAX_PAGE_SHIFT = 16
_BLOCK_SET, _CHOSEN_SETS, _ADMIN_ONLY = 0, 6, 7
# Entries, contiguous queues, 7.5 seconds to start; command sets, pages of up to 64 KiB.
_COMMAND_SETS = 1 << _BLOCK_SET | 1 << _CHOSEN_SETS | 1 << _ADMIN_ONLY
_CAPABILITIES = _MAX_ENTRIES - 1 | 1 << 16 | 15 << 24 | _COMMAND_SETS << 37 | (_MAX_PAGE_SHIFT - 12) << 52
_ENABLE, _READY, _FAILED, _SHUT_DOWN = 0x1, 0x1, 0x2, 0x8
_MAX_UNDER_WAY = 64
"""Commands that the storage is given at a time; the others wait in their queues."""


class Controller:
    """The controller of ``device``. Everything here runs inside the control strand.

    ``messages_enabled`` and ``notify(vector)`` are the device's MSI-X, ``set_pin`` its interrupt pin.
    """

    max_entries = _MAX_ENTRIES

    vmstate = VmState(
        Field("_configuration", Number(4), put=lambda self, value: self._set_configuration(value)),
        u32("_status", "_masked", "_admin_sizes"),
        u64("_admin_submissions", "_admin_completions"),
        Field("completions", state.COMPLETIONS, get=state.save_completions, put=state.load_completions),
        Field("submissions", state.SUBMISSIONS, get=state.save_submissions, put=state.load_submissions),
        Field("answers", state.ANSWERS, get=state.save_answers, put=state.load_answers),
        Field("_signalled", NumberSet(1 << 16)),
        part("admin"),
    )

    def __init__(
        self, device: Nvme, memory: GuestMemory, vectors: int, messages_enabled: Callable[[], bool],
        notify: Callable[[int], None],
    ) -> None:  # fmt: skip
        self.device = device
        self.memory = memory
        self.vectors = vectors
        self.messages_enabled = messages_enabled
        self._notify = notify
        self.max_queues = device.max_ioqpairs
        self.attached: dict[int, Namespace] = {}
        """The namespaces that the controller has."""
        self._requests: dict[int, BlockRequests] = {}
        self.admin = Admin(self)
        self._io = BlockCommands(self)
        self.submissions: dict[int, SubmissionQueue] = {}
        self.completions: dict[int, CompletionQueue] = {}
        self.page = 4096
        self._configuration = self._status = self._masked = 0
        self._admin_sizes = self._admin_submissions = self._admin_completions = 0
        self._under_way = 0
        self._signalled: set[int] = set()

    @property
    def working(self) -> bool:
        """Whether the storage has a command under way."""
        return any(requests.working for requests in self._requests.values())

    @property
    def max_transfer(self) -> int:
        """Bytes that one command may move."""
        return self.page << self.device.mdts if self.device.mdts else 1 << 62

    def reset(self) -> None:
        """Stopped; where the admin queues are stays, as in a reset of the controller (NVMe 1.4, 7.3.2)."""
        self._stop()
        self._configuration = self._status = self._masked = 0

    def close(self) -> None:
        """Stop for good."""
        self._stop()
        for number in list(self._requests):
            self._requests.pop(number).close()

    # -- namespaces

    def attach(self, namespace: Namespace) -> None:
        """Have ``namespace`` from now on."""
        self.attached[namespace.number] = namespace

    def detach(self, number: int) -> None:
        """Have a namespace no longer; what is under way there goes on."""
        self.attached.pop(number, None)

    def forget(self, number: int) -> None:
        """A namespace ceases to be, and what is under way there with it."""
        self.detach(number)
        requests = self._requests.pop(number, None)
        if requests is not None:
            self._under_way -= requests.pending
            requests.close()

    def namespace_changed(self, number: int) -> None:
        """A namespace has come or gone, or is another: the guest is told if it wants to know."""
        if self._status & _READY:
            self.admin.namespace_changed(number)

    def namespace_resized(self, number: int) -> None:
        """The medium has another length."""
        if number in self.attached:
            self.namespace_changed(number)

    # -- registers

    def read(self, offset: int) -> int:
        """The 32-bit register at ``offset``."""
        wide = {
            _CAP: _CAPABILITIES | self.device.memories.capabilities,
            _ASQ: self._admin_submissions,
            _ACQ: self._admin_completions,
        }
        if offset & ~7 in wide:
            return wide[offset & ~7] >> 8 * (offset & 4) & 0xFFFFFFFF
        return {
            _VS: identify.VERSION,
            _INTMS: self._masked,
            _INTMC: self._masked,
            _CC: self._configuration,
            _CSTS: self._status,
            _AQA: self._admin_sizes,
        }.get(offset, 0)

    def write(self, offset: int, value: int) -> None:
        """Write the 32-bit register at ``offset``."""
        if offset >= DOORBELLS:
            self._ring((offset - DOORBELLS) // 4, value & 0xFFFF)
        elif offset == _INTMS:
            self._masked |= value
            self.update_pin()
        elif offset == _INTMC:
            self._masked &= ~value
            self.update_pin()
        elif offset == _CC:
            self._configure(value)
        elif offset == _AQA:
            self._admin_sizes = value
        elif offset & ~7 == _ASQ:
            self._admin_submissions = half(self._admin_submissions, offset & 4, value)
        elif offset & ~7 == _ACQ:
            self._admin_completions = half(self._admin_completions, offset & 4, value)

    def _configure(self, value: int) -> None:
        before, self._configuration = self._configuration, value
        if value & _ENABLE and not before & _ENABLE:
            self._status = _READY if self._start() else _FAILED
            return
        elif before & _ENABLE and not value & _ENABLE:
            self.reset()
            return
        if value >> 14 & 3 and not before >> 14 & 3:
            self._shut_down()
        elif not value >> 14 & 3:
            self._status &= ~_SHUT_DOWN

    def _shut_down(self) -> None:
        left = set(self.attached)

        def flushed(number: int, _none: Any, _error: Exception | None) -> None:
            left.discard(number)
            if not left:
                self._status |= _SHUT_DOWN

        for number in self.attached:
            self._requests_of(number).submit(lambda backend: backend.flush(), partial(flushed, number), is_read=False)
        if not left:
            self._status |= _SHUT_DOWN

    def _start(self) -> bool:
        shift = (self._configuration >> 7 & 15) + 12
        commands, sizes = self._configuration >> 4 & 7, self._configuration >> 16 & 0xFF
        submissions, completions = (self._admin_sizes & 0xFFF) + 1, (self._admin_sizes >> 16 & 0xFFF) + 1
        if (
            shift > _MAX_PAGE_SHIFT
            or commands not in (_BLOCK_SET, _CHOSEN_SETS, _ADMIN_ONLY)
            or sizes != 0x46
            or (self._admin_submissions | self._admin_completions) & (1 << shift) - 1
            or submissions < 2
            or completions < 2
        ):
            return False
        self.page = 1 << shift
        self.admin.reset()
        queue = CompletionQueue(self.memory, 0, self._admin_completions, completions, 0)
        self.completions[0] = queue
        self.submissions[0] = SubmissionQueue(self.memory, 0, self._admin_submissions, submissions, queue)
        return True

    def _set_configuration(self, value: int) -> None:
        shift = (value >> 7 & 15) + 12
        if shift > _MAX_PAGE_SHIFT:
            raise QobraError(f"{value} is out of range")
        self._configuration, self.page = value, 1 << shift

    def _stop(self) -> None:
        for requests in self._requests.values():
            requests.cancel()
        self._under_way = 0
        self.submissions.clear()
        self.completions.clear()
        self._signalled.clear()
        self.update_pin()

    def _ring(self, number: int, value: int) -> None:
        queue_number = number >> 1
        if number & 1:
            completions = self.completions.get(queue_number)
            if completions is None or value >= completions.size:
                return
            completions.head = value
            self._flush(completions)
            if completions.empty:
                self._signalled.discard(queue_number)
                self.update_pin()
            self._process()
            return
        submissions = self.submissions.get(queue_number)
        if submissions is not None and value < submissions.size:
            submissions.tail = value
            self._process()

    # -- commands

    def _process(self) -> None:
        # Turn by turn, so that no queue waits for another; until all are empty, or their answers find no room.
        progress = True
        while progress:
            progress = False
            for queue in list(self.submissions.values()):
                if queue.closed or queue.completions.waiting or (queue.number and self._under_way >= _MAX_UNDER_WAY):
                    continue
                command = queue.next()
                if command is not None:
                    progress = True
                    self._execute(command)

    def _execute(self, command: Command) -> None:
        try:
            if command.queue.number:
                if self._configuration >> 4 & 7 == _ADMIN_ONLY:
                    raise Refused(status.INVALID_OPCODE)
                self._io.execute(command)
                return
            result = self.admin.execute(command)
        except Refused as refused:
            self.complete(command, 0, refused.status)
            return
        if result is not None:
            self.complete(command, result, status.SUCCESS)

    def begin(self, namespace: Namespace, operation: Operation, done: Done, *, is_read: bool) -> None:
        """Give the storage something to do for a command; :meth:`end` follows."""
        self._under_way += 1
        self._requests_of(namespace.number).submit(operation, done, is_read=is_read)

    def _requests_of(self, number: int) -> BlockRequests:
        requests = self._requests.get(number)
        if requests is None:
            requests = self._requests[number] = BlockRequests(self.attached[number].device)
        return requests

    def part_ended(self) -> None:
        """The storage is done with one of the things that a command has it do, not with the last."""
        self._under_way -= 1

    def end(self, command: Command, code: int) -> None:
        """The storage is done with a command."""
        self._under_way -= 1
        self.complete(command, 0, code)
        self._process()

    def complete(self, command: Command, result: int, code: int) -> None:
        """Tell the guest how a command ended."""
        if not command.queue.closed:
            completions = command.queue.completions
            completions.waiting.append((command, result, code))
            self._flush(completions)

    # -- interrupts

    def _flush(self, completions: CompletionQueue) -> None:
        if completions.flush() and completions.vector is not None:
            if self.messages_enabled():
                self._notify(completions.vector)
            else:
                self._signalled.add(completions.number)
                self.update_pin()

    def update_pin(self) -> None:
        """Drive the pin: some queue that is not masked has answers for the guest."""
        vectors = (self.completions[n].vector for n in self._signalled if n in self.completions)
        level = any(vector is not None and not self._masked >> min(vector, 31) & 1 for vector in vectors)
        self.device.set_pin(level and not self.messages_enabled())


def half(old: int, high: int, value: int) -> int:
    """``old`` with its low or high 32 bits replaced."""
    return old & 0xFFFFFFFF | value << 32 if high else old >> 32 << 32 | value
