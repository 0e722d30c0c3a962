"""How a machine comes to have a board: find the type, configure, build, finish, run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qobra.errors import QobraError
from qobra.machine.accelerator import registry as accelerators
from qobra.machine.board import Board, boards
from qobra.machine.devices import registry as devices

if TYPE_CHECKING:
    from qobra.machine.machine import Machine


def board_classes(architecture: str) -> list[type[Board]]:
    """Every board of an architecture."""
    found = {cls for cls in boards.load_all().values() if architecture in cls.architectures}
    return sorted(found, key=lambda cls: cls.machine_name)


def find_board(architecture: str, name: str | None) -> type[Board]:
    """The board ``name`` (or alias) of the architecture, or its default one. Raises QobraError."""
    if name is None:
        for cls in board_classes(architecture):
            if architecture in cls.default_for:
                return cls
        raise QobraError("No machine specified, and there is no default")
    found = boards.find(name) or boards.load_all().get(name)
    if found is None or architecture not in found.architectures:
        raise QobraError("unsupported machine type")
    return found


def attach_board(machine: Machine, board_class: type[Board]) -> Board:
    """Give ``machine`` a board of that class, not started: its properties can be set."""
    tree = machine.objects
    if devices not in tree.registries:
        tree.registries.append(devices)
        tree.registries.append(accelerators)
        tree.registries.append(boards)  # type: ignore[arg-type]
    board = board_class(tree)
    tree.root.add_child("machine", board)
    machine.board = board
    return board


def simple_machine(
    architecture: str = "x86_64",
    board_name: str | None = None,
    *,
    memory: int | None = None,
    max_memory: int = 0,
    slots: int = 0,
    cpus: int = 1,
    accelerator: str = "qtest",
    running: bool = False,
) -> Machine:
    """A machine for tests and programs: built, finished, and ``running`` if it shall.

    ``max_memory`` bytes and ``slots`` leave room for memory devices.
    """
    from qobra.machine.machine import Machine

    machine = Machine(capabilities=frozenset(("board", architecture)))
    with machine.control:
        board = attach_board(machine, find_board(architecture, board_name))
        board.accelerator = accelerator
        board.set_topology({"cpus": cpus})
        board.max_ram_size, board.memory_slots = max_memory, slots
        board.set_memory(board.default_ram_size if memory is None else memory)
        board.start()
        board.finish()
        if running:
            machine.run_state.start()
    return machine
