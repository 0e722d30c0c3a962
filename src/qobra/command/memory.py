"""Guest memory over QMP: save a part of it to a file."""

from __future__ import annotations

from typing import Any

from qobra.errors import QobraError, strerror
from qobra.machine.machine import Machine
from qobra.machine.memory import AddressSpace
from qobra.qmp.registry import command

_CHUNK = 1 << 20


@command("pmemsave", needs="board")
def pmemsave(machine: Machine, args: dict[str, Any]) -> None:
    """Write ``size`` bytes of physical memory from ``val`` on to a file."""
    assert machine.board is not None
    _save(machine.board.memory, args["val"], args["size"], args["filename"])


@command("memsave", needs="board")
def memsave(machine: Machine, args: dict[str, Any]) -> None:
    """The same for virtual memory, as a CPU sees it."""
    board = machine.board
    assert board is not None
    index = args.get("cpu-index", 0)
    if not any(cpu.index == index for cpu in board.cpus):
        raise QobraError("Parameter 'cpu-index' expects a CPU number")
    # After a reset, and so while no CPU has run, paging is off: virtual addresses are physical ones.
    _save(board.memory, args["val"], args["size"], args["filename"], must_exist=True)


def _save(memory: AddressSpace, address: int, size: int, filename: str, *, must_exist: bool = False) -> None:
    """Bytes where there is nothing are zero, or (with ``must_exist``) an error at which the file ends."""
    address &= (1 << 64) - 1
    asked = f"addr 0x{address:016x}/size {size}"
    if size < 0:
        raise QobraError("Parameter 'size' expects a non-negative number")
    try:
        with open(filename, "wb") as stream:
            while size:
                chunk = min(size, _CHUNK)
                if must_exist:
                    chunk = memory.mapped(address, chunk)
                    if not chunk:
                        raise QobraError(f"Invalid {asked} specified")
                stream.write(memory.read(address, chunk))
                address += chunk
                size -= chunk
    except OSError as error:
        raise QobraError(f"Could not open '{filename}': {strerror(error)}", errno=error.errno)
