"""The commands of block namespaces (chapter 6): read, write, compare, flush, write zeroes, deallocate, verify."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from qobra.block.accounting import READ, UNMAP, WRITE
from qobra.machine.nvme import status
from qobra.machine.nvme.namespace import MAX_NAMESPACES, Namespace
from qobra.machine.nvme.queues import MAX_TRANSFER, Command, pages
from qobra.machine.nvme.status import Refused

if TYPE_CHECKING:
    from qobra.block.backend import BlockBackend
    from qobra.machine.nvme.controller import Controller

FLUSH, WRITE_BLOCKS, READ_BLOCKS, COMPARE, WRITE_ZEROES, DATA_SET, VERIFY = 0x00, 0x01, 0x02, 0x05, 0x08, 0x09, 0x0C
_ALL = 0xFFFFFFFF
_FORCE, _DEALLOCATE, _DEALLOCATE_RANGES = 1 << 30, 1 << 25, 1 << 2
_VERIFY_CHUNK = 1 << 20


class BlockCommands:
    """The I/O commands of one controller. Each is begun here and ended by the controller when the storage is done."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._handlers: dict[int, Callable[[Command, Namespace], None]] = {
            FLUSH: self._flush,
            WRITE_BLOCKS: self._write,
            READ_BLOCKS: self._read,
            COMPARE: self._compare,
            WRITE_ZEROES: self._write_zeroes,
            DATA_SET: self._data_set,
            VERIFY: self._verify,
        }

    def execute(self, command: Command) -> None:
        """Begin a command. Raises Refused."""
        handler = self._handlers.get(command.opcode)
        if command.namespace == _ALL and command.opcode == FLUSH:
            self._flush_all(command)
            return
        if not 0 < command.namespace <= MAX_NAMESPACES and command.namespace != _ALL:
            raise Refused(status.INVALID_NAMESPACE)
        namespace = self._controller.attached.get(command.namespace)
        if namespace is None:
            raise Refused(status.INVALID_FIELD)
        if handler is None:
            raise Refused(status.INVALID_OPCODE)
        handler(command, namespace)

    def _submit(
        self, command: Command, namespace: Namespace, operation: Callable[[BlockBackend], Any], *,
        is_read: bool = False, then: Callable[[Any], int] | None = None,
    ) -> None:  # fmt: skip
        failure = status.UNRECOVERED_READ if is_read else status.WRITE_FAULT

        def done(result: Any, error: Exception | None) -> None:
            code = failure if error is not None else then(result) if then is not None else status.SUCCESS
            self._controller.end(command, code)

        self._controller.begin(namespace, operation, done, is_read=is_read)

    def _range(self, command: Command, namespace: Namespace, kind: int, *, moves: bool = True) -> tuple[int, int]:
        block = command.dword(11) << 32 | command.dword(10)
        count = (command.dword(12) & 0xFFFF) + 1
        length = count * namespace.block_size
        if moves and (length > self._controller.max_transfer or length > MAX_TRANSFER):
            raise Refused(status.INVALID_FIELD)
        if block + count > namespace.blocks:
            namespace.backend.accounting.add_invalid(kind)
            raise Refused(status.LBA_OUT_OF_RANGE)
        return block * namespace.block_size, length

    def _check_writable(self, namespace: Namespace) -> None:
        backend = namespace.backend
        if backend.node is None or backend.node.read_only:
            raise Refused(status.WRITE_PROTECTED)

    def _flush(self, command: Command, namespace: Namespace) -> None:
        self._submit(command, namespace, lambda backend: backend.flush())

    def _flush_all(self, command: Command) -> None:
        attached = list(self._controller.attached.values())
        if not attached:
            self._controller.complete(command, 0, status.SUCCESS)
            return
        left, code = len(attached), status.SUCCESS

        def flushed(_none: Any, error: Exception | None) -> None:
            nonlocal left, code
            left -= 1
            code = status.WRITE_FAULT if error is not None else code
            if left:
                self._controller.part_ended()
            else:
                self._controller.end(command, code)

        for namespace in attached:
            self._controller.begin(namespace, lambda backend: backend.flush(), flushed, is_read=False)

    def _read(self, command: Command, namespace: Namespace) -> None:
        offset, length = self._range(command, namespace, READ)
        memory = pages(self._controller.memory, self._controller.page, command, length)

        def then(data: bytes | None) -> int:
            if data is not None:
                memory.write(0, data)
            return status.SUCCESS

        self._submit(command, namespace, lambda backend: backend.read(offset, length), is_read=True, then=then)

    def _write(self, command: Command, namespace: Namespace) -> None:
        offset, length = self._range(command, namespace, WRITE)
        self._check_writable(namespace)
        data = pages(self._controller.memory, self._controller.page, command, length).read(0, length)
        force = bool(command.dword(12) & _FORCE)
        self._submit(command, namespace, lambda backend: backend.write(offset, data, fua=force))

    def _compare(self, command: Command, namespace: Namespace) -> None:
        offset, length = self._range(command, namespace, READ)
        wanted = pages(self._controller.memory, self._controller.page, command, length).read(0, length)

        def then(data: bytes | None) -> int:
            return status.SUCCESS if data is None or data == wanted else status.COMPARE_FAILURE

        self._submit(command, namespace, lambda backend: backend.read(offset, length), is_read=True, then=then)

    def _write_zeroes(self, command: Command, namespace: Namespace) -> None:
        offset, length = self._range(command, namespace, WRITE, moves=False)
        self._check_writable(namespace)
        unmap, force = bool(command.dword(12) & _DEALLOCATE), bool(command.dword(12) & _FORCE)
        self._submit(
            command, namespace, lambda backend: backend.write_zeroes(offset, length, may_unmap=unmap, fua=force)
        )

    def _data_set(self, command: Command, namespace: Namespace) -> None:
        count = (command.dword(10) & 0xFF) + 1
        data = pages(self._controller.memory, self._controller.page, command, 16 * count).read(0, 16 * count)
        if not command.dword(11) & _DEALLOCATE_RANGES:
            self._submit(command, namespace, lambda _backend: None)
            return
        self._check_writable(namespace)
        ranges = []
        for at in range(0, len(data), 16):
            length = int.from_bytes(data[at + 4 : at + 8], "little")
            block = int.from_bytes(data[at + 8 : at + 16], "little")
            if block + length > namespace.blocks:
                namespace.backend.accounting.add_invalid(UNMAP)
                raise Refused(status.LBA_OUT_OF_RANGE)
            if length:
                ranges.append((block * namespace.block_size, length * namespace.block_size))

        def discard(backend: BlockBackend) -> None:
            for offset, size in ranges:
                backend.discard(offset, size)

        self._submit(command, namespace, discard)

    def _verify(self, command: Command, namespace: Namespace) -> None:
        offset, length = self._range(command, namespace, READ, moves=False)
        self._submit(command, namespace, partial(_read_all, offset, length), is_read=True)


def _read_all(offset: int, length: int, backend: BlockBackend) -> None:
    for at in range(0, length, _VERIFY_CHUNK):
        backend.read(offset + at, min(_VERIFY_CHUNK, length - at))
